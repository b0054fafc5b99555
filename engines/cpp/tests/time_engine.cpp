// Times what an application that embeds the library waits for, beside the bare OpenVINO call on the same engine; for
// `flowless bench embed`.
//
// time_engine BUNDLE ENGINE.xml THREADS [HINT]: reads commands from standard input and prints a line of numbers for
// each:
//   run             milliseconds of the bare call and of flowless_run on one clip
//   prepare W H     milliseconds of flowless_prepare on a frame of W x H
//   allocations     allocations of one call: the bare one, flowless_run, flowless_prepare, flowless_stream_push,
//                   flowless_step; the least of 20
//   calls N         N times: prepare, push, step and run; resident kilobytes before and after, and the largest between
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <new>
#include <openvino/openvino.hpp>
#include <string>
#include <vector>

#include "flowless/flowless.hpp"

namespace {

std::atomic<long> gAllocations{0};

}  // namespace

// Every C++ allocation of the process, those of the libraries as well.
void* operator new(size_t size) {
  ++gAllocations;
  if (void* const memory = std::malloc(size == 0 ? 1 : size)) {
    return memory;
  }
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

using Clock = std::chrono::steady_clock;

double millisecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

long residentKilobytes() {
  std::ifstream file("/proc/self/statm");
  long size = 0;
  long pages = 0;
  file >> size >> pages;
  return pages * 4;
}

// OpenVINO alone, with the settings that the library uses.
class Bare {
 public:
  Bare(std::string const& path, int threads, std::string const& hint) {
    std::shared_ptr<ov::Model> const model = mCore.read_model(path);
    std::map<ov::Output<ov::Node>, ov::PartialShape> shapes;
    for (ov::Output<ov::Node> const& input : model->inputs()) {
      shapes[input] = input.get_partial_shape();
      shapes[input][0] = 1;
    }
    model->reshape(shapes);
    ov::AnyMap settings{
        {"PERFORMANCE_HINT", "LATENCY"}, {"INFERENCE_PRECISION_HINT", hint}, {"ENABLE_CPU_PINNING", false}};
    if (threads > 0) {
      settings["INFERENCE_NUM_THREADS"] = threads;
    }
    mRequest = mCore.compile_model(model, "CPU", settings).create_infer_request();
  }

  // The first input, which is the clip or the frame.
  ov::Tensor input() { return mRequest.get_input_tensor(0); }
  void infer() { mRequest.infer(); }

 private:
  ov::Core mCore;
  ov::InferRequest mRequest;
};

class Timer {
 public:
  Timer(std::string const& bundle, std::string const& path, int threads, std::string const& hint)
      : mEngine(bundle, {"openvino", "", "", threads}), mBare(path, threads, hint), mStream(mEngine.stream()) {
    flowless_info const& info = mEngine.info();
    mClip.resize(info.clip_bytes);
    mPicture.resize(info.picture_bytes);
    mScores.resize(static_cast<size_t>(info.classes));
    uint32_t state = 1;
    for (uint8_t& byte : mClip) {
      state = state * 1664525U + 1013904223U;
      byte = static_cast<uint8_t>(state >> 24U);
    }
    ov::Tensor input = mBare.input();
    std::copy_n(mClip.begin(), input.get_byte_size(), input.data<uint8_t>());
  }

  // Each call in turn comes first, so that neither always finds the other's caches.
  void run() {
    mBareFirst = !mBareFirst;
    double const first = mBareFirst ? bare() : own();
    double const second = mBareFirst ? own() : bare();
    std::printf("%.6f %.6f\n", mBareFirst ? first : second, mBareFirst ? second : first);
  }

  void prepare(int width, int height) {
    mFrame.resize(size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(height), 90);
    flowless_frame const given = flowless::frame(mFrame.data(), width, height);
    Clock::time_point const start = Clock::now();
    flowless::check(flowless_prepare(mEngine.handle(), &given, mPicture.data(), mPicture.size()));
    std::printf("%.6f\n", millisecondsSince(start));
  }

  void allocations() {
    mFrame.resize(size_t{3} * 160 * 120, 90);
    flowless_frame const given = flowless::frame(mFrame.data(), 160, 120);
    flowless_stream* const stream = mStream.handle();
    auto const step = [&] {
      uint8_t answered = 0;
      flowless::check(flowless_step(mEngine.handle(), &stream, 1, mScores.data(), mScores.size(), &answered));
    };
    auto const prepare = [&] {
      flowless::check(flowless_prepare(mEngine.handle(), &given, mPicture.data(), mPicture.size()));
    };
    long least[5] = {1L << 40, 1L << 40, 1L << 40, 1L << 40, 1L << 40};
    for (int turn = 0; turn < 20; ++turn) {
      long const counts[5] = {counted([&] { bare(); }), counted([&] { own(); }), counted(prepare),
                              counted([&] { mStream.push(given); }), counted(step)};
      for (int call = 0; call < 5; ++call) {
        least[call] = std::min(least[call], counts[call]);
      }
    }
    std::printf("%ld %ld %ld %ld %ld\n", least[0], least[1], least[2], least[3], least[4]);
  }

  void calls(long count) {
    mFrame.resize(size_t{3} * 160 * 120, 90);
    flowless_frame const given = flowless::frame(mFrame.data(), 160, 120);
    long before = 0;
    long largest = 0;
    for (long done = 0; done < count; ++done) {
      flowless::check(flowless_prepare(mEngine.handle(), &given, mPicture.data(), mPicture.size()));
      mStream.push(given);
      flowless_stream* const stream = mStream.handle();
      uint8_t answered = 0;
      flowless::check(flowless_step(mEngine.handle(), &stream, 1, mScores.data(), mScores.size(), &answered));
      own();
      if (done == count / 100) {
        before = residentKilobytes();
      }
      largest = done % 1000 == 0 ? std::max(largest, residentKilobytes()) : largest;
    }
    std::printf("%ld %ld %ld\n", before, residentKilobytes(), largest);
  }

 private:
  template <class Call>
  static long counted(Call call) {
    long const before = gAllocations;
    call();
    return gAllocations - before;
  }

  double bare() {
    Clock::time_point const start = Clock::now();
    mBare.infer();
    return millisecondsSince(start);
  }

  double own() {
    Clock::time_point const start = Clock::now();
    flowless::check(flowless_run(mEngine.handle(), mClip.data(), mClip.size(), 1, mScores.data(), mScores.size()));
    return millisecondsSince(start);
  }

  flowless::Engine mEngine;
  Bare mBare;
  flowless::Stream mStream;
  bool mBareFirst = false;
  std::vector<uint8_t> mClip;
  std::vector<uint8_t> mPicture;
  std::vector<uint8_t> mFrame;
  std::vector<float> mScores;
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) {
    std::fprintf(stderr, "time_engine BUNDLE ENGINE.xml THREADS HINT\n");
    return 2;
  }
  Timer timer(argv[1], argv[2], std::atoi(argv[3]), argv[4]);
  std::string command;
  while (std::cin >> command) {
    if (command == "run") {
      timer.run();
    } else if (command == "prepare") {
      int width = 0;
      int height = 0;
      std::cin >> width >> height;
      timer.prepare(width, height);
    } else if (command == "allocations") {
      timer.allocations();
    } else if (command == "calls") {
      long count = 0;
      std::cin >> count;
      timer.calls(count);
    } else {
      std::fprintf(stderr, "%s is none of run, prepare, allocations, calls\n", command.c_str());
      return 2;
    }
    std::fflush(stdout);
  }
  return 0;
} catch (std::exception const& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
