// Pushes the frames of a file, camera or network stream into a stream of an engine. A camera that fails is opened
// again.
#ifndef PUSH_FRAMES_HPP
#define PUSH_FRAMES_HPP

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <flowless/flowless.hpp>
#include <thread>

#include "video_frames.hpp"

// Set by Ctrl-C, which ends reading, connecting and waiting.
inline std::atomic<bool> gStop{false};

// The first signal ends the program in order, a second one at once.
inline void stopOnCtrlC() {
  auto const stop = [](int number) {
    gStop = true;
    std::signal(number, SIG_DFL);
  };
  std::signal(SIGINT, stop);
  std::signal(SIGTERM, stop);
}

// Sleep until `time`, or until Ctrl-C.
inline void sleepUntil(std::chrono::steady_clock::time_point time) {
  for (auto now = std::chrono::steady_clock::now(); now < time && !gStop; now = std::chrono::steady_clock::now()) {
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(time - now, std::chrono::milliseconds(100)));
  }
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

// Read one source to its end, a file's frames at their time stamps; return whether that went well.
inline bool readSource(std::string const& address, flowless::Stream& stream) {
  try {
    pushFrames(address, stream, [&, start = std::chrono::steady_clock::now()](RgbFrame const& frame) {
      if (!isLive(address)) {
        sleepUntil(start + std::chrono::nanoseconds(frame.ptsNs));
      }
    });
    return true;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return false;
  }
}

#endif
