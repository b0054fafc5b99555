// Pushes the frames of a file, camera or network stream into a stream of an engine. A camera that fails is opened
// again.
#ifndef PUSH_FRAMES_HPP
#define PUSH_FRAMES_HPP

#include <chrono>
#include <csignal>
#include <cstdio>
#include <flowless/flowless.hpp>
#include <thread>

#include "video_frames.hpp"

// Set by Ctrl-C, which ends reading, connecting and waiting.
inline std::atomic<bool> gStop{false};

inline void stopOnCtrlC() {
  std::signal(SIGINT, [](int) { gStop = true; });
  std::signal(SIGTERM, [](int) { gStop = true; });
}

// Ends reading where its block ends, also by an exception. Declare it after the futures of threads that read, which
// wait for them.
struct StopAtEnd {
  ~StopAtEnd() { gStop = true; }
};

// Push every frame of `address` until its end or Ctrl-C, and call pushed(frame) after each. A camera or network stream
// that ends or fails is opened again after a second, until Ctrl-C; an error of a file is thrown.
template <class Pushed>
void pushFrames(std::string const& address, flowless::Stream& stream, Pushed pushed) {
  bool const live = isLive(address);
  do {
    try {
      VideoFrames video(address, &gStop);
      while (!gStop && video.next()) {
        RgbFrame const rgb = video.rgb();
        stream.push(flowless::frame(rgb.rgb, rgb.width, rgb.height, rgb.stride, rgb.ptsNs));
        pushed(rgb);
      }
    } catch (std::runtime_error const& error) {
      if (!live) {
        throw;
      }
      if (!gStop) {
        std::fprintf(stderr, "%s Trying again in a second.\n", error.what());
      }
    }
    for (int tenth = 0; live && tenth < 10 && !gStop; ++tenth) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    if (live) {
      stream.reset();  // frames from before the gap and after it are not one action
    }
  } while (live && !gStop);
}

#endif
