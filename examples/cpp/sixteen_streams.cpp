// Score many sources, such as sixteen cameras, with one engine: a thread reads each, and all that have a new frame are
// one batch.
//   sixteen_streams BUNDLE ADDRESS...
// Files are read at their own pace, as if they were cameras. A source that fails does not stop the others; the exit
// code is then 1.
#include <future>

#include "push_frames.hpp"

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
    std::vector<std::future<bool>> readers;
    for (size_t index = 0; index < addresses.size(); ++index) {
      readers.push_back(
          std::async(std::launch::async, [&, index] { return readSource(addresses[index], streams[index]); }));
    }
    StopAtEnd const stopAtEnd;

    std::vector<flowless::Label> latest(streams.size(), {"nothing", 0, 0.0});
    auto const score = [&] {
      engine.step(streams, [&](size_t index, float const* row) { latest[index] = engine.top(row, 1).front(); });
    };
    for (std::future<bool>& reader : readers) {
      while (reader.wait_for(std::chrono::milliseconds(2)) != std::future_status::ready) {
        score();
      }
    }
    score();  // the last frames
    bool good = true;
    for (size_t index = 0; index < streams.size(); ++index) {
      flowless_stream_state const state = streams[index].state();
      std::printf("%s  %.6f  %s  %d frames, %d scored\n", addresses[index].c_str(), latest[index].score,
                  latest[index].label.c_str(), static_cast<int>(state.pushed), static_cast<int>(state.scored));
      good = readers[index].get() && good;
    }
    return good ? 0 : 1;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
