// Score many sources, such as sixteen cameras, with one engine: a thread reads each, and all that have a new frame are
// one batch.
//   sixteen_streams BUNDLE ADDRESS...
// Files are read at their own pace, as if they were cameras. A source that fails does not stop the others.
#include <future>

#include "push_frames.hpp"

// Read one source to its end; a file's frames come at their time stamps.
static void readSource(std::string const& address, flowless::Stream& stream) {
  try {
    pushFrames(address, stream, [&, start = std::chrono::steady_clock::now()](RgbFrame const& frame) {
      if (!isLive(address)) {
        std::this_thread::sleep_until(start + std::chrono::nanoseconds(frame.ptsNs));
      }
    });
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s BUNDLE ADDRESS...\n", argv[0]);
    return 2;
  }
  stopOnCtrlC();
  try {
    flowless::Engine engine(argv[1]);
    std::vector<std::string> const addresses(argv + 2, argv + argc);
    std::vector<flowless::Stream> streams;
    for (size_t index = 0; index < addresses.size(); ++index) {
      streams.push_back(engine.stream());
    }
    std::vector<std::future<void>> readers;
    for (size_t index = 0; index < addresses.size(); ++index) {
      readers.push_back(std::async(std::launch::async, [&, index] { readSource(addresses[index], streams[index]); }));
    }
    StopAtEnd const stopAtEnd;

    std::vector<flowless::Label> latest(streams.size(), {"nothing", 0, 0.0});
    auto const score = [&] {
      engine.step(streams, [&](size_t index, float const* row) { latest[index] = engine.top(row, 1).front(); });
    };
    for (std::future<void>& reader : readers) {
      while (reader.wait_for(std::chrono::milliseconds(2)) != std::future_status::ready) {
        score();
      }
    }
    score();  // the last frames
    for (size_t index = 0; index < streams.size(); ++index) {
      flowless_stream_state const state = streams[index].state();
      std::printf("%s  %.6f  %s  %d frames, %d scored\n", addresses[index].c_str(), latest[index].score,
                  latest[index].label.c_str(), static_cast<int>(state.pushed), static_cast<int>(state.scored));
    }
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
