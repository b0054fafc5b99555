// Streams from several threads, for the thread sanitizer, which a real engine's library is not built for.
// tests/cpp/test_streams.py compares streams of real engines with Python.
#include "stream.h"

#include <doctest/doctest.h>

#include <atomic>
#include <limits>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "first_bytes.h"

namespace flowless::detail {

TEST_CASE("an online stream keeps the frames that were scored, the first in place of those that are missing") {
  for (Graph const graph : {Graph::kClips, Graph::kMemory}) {
    auto const engine = makeEngine(graph);
    StreamOptions options;
    options.mode = FLOWLESS_MODE_ONLINE;
    auto const stream = std::make_shared<Stream>(engine, options);
    std::vector<std::vector<float>> const wanted = {{1, 1, 1, 1}, {1, 1, 1, 2}, {1, 1, 2, 3},
                                                    {1, 2, 3, 4}, {2, 3, 4, 5}, {3, 4, 5, 6}};
    for (uint8_t value = 1; value <= 6; ++value) {
      stream->push(Grey(value).at(value));
      CHECK(stepOne(*engine, stream) == wanted[value - 1U]);
    }
    CHECK(stepOne(*engine, stream).empty());
  }
}

TEST_CASE("a rolling stream samples the window") {
  auto const engine = makeEngine(Graph::kClips);
  StreamOptions options;
  options.windowFrames = 4;
  auto const stream = std::make_shared<Stream>(engine, options);
  for (uint8_t value = 1; value <= 9; ++value) {
    stream->push(Grey(value).at(value));
  }
  CHECK(stepOne(*engine, stream) == std::vector<float>{6, 7, 8, 9});
  flowless_stream_state state{};
  stream->state(state);
  CHECK(state.pushed == 9);
  CHECK(state.replaced == 8);
  CHECK(state.pts_ns == 9);
}

TEST_CASE("any time stamps may follow each other") {
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  auto const engine = makeEngine(Graph::kClips);
  auto const framesAfter = [&](StreamOptions const& options, std::vector<int64_t> const& stamps) {
    Stream stream(engine, options);
    for (int64_t const stamp : stamps) {
      stream.push(Grey(1).at(stamp));
    }
    flowless_stream_state state{};
    stream.state(state);
    return std::pair<int32_t, uint64_t>(state.frames, state.resets);
  };
  CHECK(framesAfter({FLOWLESS_MODE_ROLLING, 8, 100, 0}, {0, 50, kLeast}) == std::pair<int32_t, uint64_t>(3, 0));
  CHECK(framesAfter({FLOWLESS_MODE_ROLLING, 8, kMost, 0}, {-10, -5, 0}) == std::pair<int32_t, uint64_t>(3, 0));
  CHECK(framesAfter({FLOWLESS_MODE_ROLLING, 8, kMost, 0}, {kLeast, kMost}) == std::pair<int32_t, uint64_t>(1, 0));
  CHECK(framesAfter({FLOWLESS_MODE_ROLLING, 8, 0, 100}, {kMost, kLeast}) == std::pair<int32_t, uint64_t>(1, 1));
  CHECK(framesAfter({FLOWLESS_MODE_ROLLING, 8, 0, 100}, {kLeast, kMost}) == std::pair<int32_t, uint64_t>(1, 1));
}

TEST_CASE("a reconnect is one reset, also where time begins anew") {
  auto const engine = makeEngine(Graph::kClips);
  Stream stream(engine, {FLOWLESS_MODE_ROLLING, 8, 0, 100});
  stream.push(Grey(1).at(5000));
  stream.reset();
  stream.push(Grey(2).at(0));
  flowless_stream_state state{};
  stream.state(state);
  CHECK(state.resets == 1);
  CHECK(state.frames == 1);
}

TEST_CASE("more views than are scored at once are scored in several batches") {
  FirstBytes* backend = nullptr;
  auto const engine = makeEngine(Graph::kClips, &backend);
  std::vector<std::shared_ptr<Stream>> streams;
  for (int32_t index = 0; index < 150; ++index) {
    streams.push_back(std::make_shared<Stream>(engine, StreamOptions{FLOWLESS_MODE_ROLLING, 2, 0, 0}));
    if (index % 10 != 0) {
      streams.back()->push(Grey(static_cast<uint8_t>(index)).at(0));
    }
  }
  std::vector<float> scores(150 * kSegments, -1.0F);
  std::vector<uint8_t> answered(150, 9);
  engine->step(streams, scores.data(), answered.data());
  CHECK(backend->batches == std::vector<int32_t>{64, 64, 7});
  for (size_t index = 0; index < 150; ++index) {
    CHECK(answered[index] == (index % 10 != 0 ? 1 : 0));
    CHECK(scores[index * kSegments] == (index % 10 != 0 ? static_cast<float>(index) : -1.0F));
  }
}

TEST_CASE("cameras push and reset in their threads while the engine steps") {
  for (Graph const graph : {Graph::kClips, Graph::kMemory, Graph::kState}) {
    auto const engine = makeEngine(graph);
    std::vector<std::shared_ptr<Stream>> streams;
    for (int32_t index = 0; index < 4; ++index) {
      int32_t const window = graph == Graph::kClips ? 6 : 0;
      streams.push_back(std::make_shared<Stream>(engine, StreamOptions{FLOWLESS_MODE_DEFAULT, window, 0, 0}));
    }
    std::atomic<bool> stop{false};
    std::vector<std::thread> cameras;
    for (size_t index = 0; index < streams.size(); ++index) {
      cameras.emplace_back([&, index] {
        Grey const frame(static_cast<uint8_t>(10 * (index + 1)));
        for (int64_t turn = 0; !stop; ++turn) {
          streams[index]->push(frame.at(turn));
          if (turn % 50 == 49) {
            streams[index]->reset();
          }
          std::this_thread::yield();
        }
      });
    }
    std::vector<float> scores(4 * kSegments);
    std::vector<uint8_t> answered(4);
    int wrong = 0;
    for (int turn = 0; turn < 2000; ++turn) {
      engine->step(streams, scores.data(), answered.data());
      for (size_t index = 0; index < 4; ++index) {
        for (size_t picture = 0; answered[index] != 0 && picture < kSegments; ++picture) {
          float const expected = static_cast<float>(10 * (index + 1)) * (graph == Graph::kState ? 1001.0F : 1.0F);
          wrong += scores[index * kSegments + picture] == expected ? 0 : 1;
        }
      }
    }
    stop = true;
    for (std::thread& camera : cameras) {
      camera.join();
    }
    CHECK(wrong == 0);
  }
}

}  // namespace flowless::detail
