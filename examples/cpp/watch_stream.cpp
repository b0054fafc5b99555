// Watch a camera, a network stream or a file, and print what is seen whenever it changes, until its end or Ctrl-C:
//   watch_stream BUNDLE ADDRESS [WINDOW]
// ADDRESS: a file, /dev/video0, rtsp://camera/stream, ... WINDOW: so many newest frames are scored together, sampled as
// a video's; 64 without it. A bundle of `flowless export --online` or `--streaming` scores each frame with what it
// keeps of those before it.
#include <cstdlib>
#include <future>

#include "push_frames.hpp"

int main(int argc, char** argv) {
  int const window = argc == 4 ? std::atoi(argv[3]) : 0;
  if (argc < 3 || argc > 4 || window < argc - 3) {
    std::fprintf(stderr, "usage: %s BUNDLE ADDRESS [WINDOW]\n", argv[0]);
    return 2;
  }
  stopOnCtrlC();
  try {
    flowless::Engine engine(argv[1]);
    flowless_stream_options options{};
    options.window_frames = window;
    options.mode = window > 0 ? FLOWLESS_MODE_ROLLING : FLOWLESS_MODE_DEFAULT;
    options.max_gap_ns = 2'000'000'000;
    std::vector<flowless::Stream> streams;
    streams.push_back(engine.stream(options));
    flowless::Stream& stream = streams.front();

    std::string last;
    auto const score = [&] {
      engine.step(streams, [&](size_t, float const* scores) {
        flowless::Label const now = engine.top(scores, 1).front();
        if (now.label != last) {
          std::printf("%.3f s  %.6f  %s\n", static_cast<double>(stream.state().pts_ns) / 1e9, now.score,
                      now.label.c_str());
          std::fflush(stdout);
          last = now.label;
        }
      });
    };

    // A file waits until its frame is scored. A camera does not wait: a thread reads it, and what is scored is always
    // its newest frame.
    if (!isLive(argv[2])) {
      pushFrames(argv[2], stream, [&](RgbFrame const&) { score(); });
      return 0;
    }
    auto reader = std::async(std::launch::async, [&] { pushFrames(argv[2], stream, [](RgbFrame const&) {}); });
    StopAtEnd const stopAtEnd;
    while (reader.wait_for(std::chrono::milliseconds(2)) != std::future_status::ready) {
      score();
    }
    reader.get();
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
