// Streams from several threads, for the thread sanitizer, which a real engine's library is not built for: the backend
// here scores a view by the first byte of each of its pictures. tests/cpp/test_streams.py compares streams of real
// engines with Python.
#include "stream.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <limits>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "engine.h"
#include "status.h"

namespace flowless::detail {
namespace {

constexpr int32_t kSegments = 4;
constexpr int32_t kSide = 8;

enum class Graph { kClips, kMemory, kState };

// Scores of a view: the first byte of each picture, the oldest first. With a state, whose segments have two frames:
// that of the newest frame and 1000 times that of the one before, for each of the last segments
// (engines/streaming/state.py).
class FirstBytes : public Backend {
 public:
  explicit FirstBytes(Graph graph) : mGraph(graph) {}

  void run(uint8_t const* clips, int32_t batch, float* scores) override {
    called();
    for (int32_t picture = 0; picture < batch * kSegments; ++picture) {
      scores[picture] = clips[picture * 3 * kSide * kSide];
    }
    batches.push_back(batch);
  }
  void step(uint8_t const* frames, void* const* carried, int32_t batch, float* scores) override {
    called();
    batches.push_back(batch);
    if (mGraph == Graph::kState) {
      for (int32_t view = 0; view < batch; ++view) {
        stepState(frames[view * 3 * kSide * kSide], carried, view, scores + view * kSegments);
      }
      return;
    }
    auto const* const memory = static_cast<uint8_t const*>(carried[0]);
    for (int32_t view = 0; view < batch; ++view) {
      for (int32_t picture = 0; picture < kSegments - 1; ++picture) {
        scores[view * kSegments + picture] = memory[(view * (kSegments - 1) + picture) * 3 * kSide * kSide];
      }
      scores[view * kSegments + kSegments - 1] = frames[view * 3 * kSide * kSide];
    }
  }
  char const* device() const override { return "CPU"; }

  std::vector<int32_t> batches;
  std::function<void()> during;  // called in every call
  size_t failAt = SIZE_MAX;      // the call that fails

 private:
  void called() {
    if (during) {
      during();
    }
    if (batches.size() == failAt) {
      failAt = SIZE_MAX;
      throw Error(FLOWLESS_RUNTIME, "This call fails.");
    }
  }

  static void stepState(uint8_t newest, void* const* carried, int32_t view, float* scores) {
    auto* const earlier = static_cast<uint8_t*>(carried[0]) + view * 3 * kSide * kSide;
    float* const features = static_cast<float*>(carried[1]) + view * (kSegments - 1);
    float* const started = static_cast<float*>(carried[2]) + view * 2;
    uint8_t const before = started[1] != 0.0F ? earlier[0] : newest;
    float const feature = static_cast<float>(newest) + 1000.0F * static_cast<float>(before);
    for (int32_t segment = 0; segment < kSegments; ++segment) {
      bool const missing = started[0] == 0.0F || segment == kSegments - 1;
      scores[segment] = missing ? feature : features[segment];
    }
    std::copy(scores + 1, scores + kSegments, features);
    std::fill_n(started, 2, 1.0F);
    std::fill_n(earlier, 3 * kSide * kSide, newest);
  }

  Graph mGraph;
};

std::shared_ptr<Engine> makeEngine(Graph graph, FirstBytes** backend = nullptr) {
  Manifest manifest;
  manifest.spec.segments = kSegments;
  manifest.spec.framesPerSegment = graph == Graph::kState ? 2 : 1;
  manifest.spec.height = manifest.spec.width = manifest.spec.shortSide = kSide;
  manifest.spec.sampling = "centre";
  manifest.labels = {"a", "b", "c", "d"};
  manifest.memory = graph == Graph::kMemory ? kSegments - 1 : 0;
  if (graph == Graph::kState) {
    manifest.state = {
        {kFrames, true, {1, kSide, kSide, 3}}, {kFeatures, false, {kSegments - 1, 1}}, {kStarted, false, {2}}};
  }
  auto made = std::make_unique<FirstBytes>(graph);
  if (backend != nullptr) {
    *backend = made.get();
  }
  return std::make_shared<Engine>(std::move(manifest), std::move(made));
}

// A frame of one grey value, of the size that needs no resizing.
class Grey {
 public:
  explicit Grey(uint8_t value) : mPixels(3 * kSide * kSide, value) {}
  flowless_frame at(int64_t ptsNs) const { return {sizeof(flowless_frame), mPixels.data(), kSide, kSide, 0, ptsNs}; }

 private:
  std::vector<uint8_t> mPixels;
};

std::vector<float> stepOne(Engine& engine, std::shared_ptr<Stream> const& stream) {
  std::vector<float> scores(kSegments, -1.0F);
  uint8_t answered = 0;
  engine.step({stream}, scores.data(), &answered);
  return answered != 0 ? scores : std::vector<float>{};
}

}  // namespace

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

TEST_CASE("beside a state, a segment is the newest frames that were pushed, and the state that of the newest step") {
  auto const engine = makeEngine(Graph::kState);
  auto const stream = std::make_shared<Stream>(engine, StreamOptions{});
  auto const push = [&](std::vector<uint8_t> const& values) {
    for (uint8_t const value : values) {
      stream->push(Grey(value).at(value));
    }
    return stepOne(*engine, stream);
  };
  CHECK(push({1}) == std::vector<float>{1001, 1001, 1001, 1001});
  CHECK(push({2}) == std::vector<float>{1001, 1001, 1001, 1002});
  CHECK(push({3, 4, 5}) == std::vector<float>{1001, 1001, 1002, 4005});
  CHECK(push({}).empty());
  flowless_stream_state state{};
  stream->state(state);
  CHECK(state.pushed == 5);
  CHECK(state.replaced == 2);
  CHECK(state.scored == 3);
  CHECK(state.frames == 2);
  stream->reset();
  CHECK(push({7}) == std::vector<float>{7007, 7007, 7007, 7007});
  stream->reset();
  CHECK(push({8, 9}) == std::vector<float>{8009, 8009, 8009, 8009});
}

TEST_CASE("a graph with a state scores whole clips, one segment after another") {
  FirstBytes* backend = nullptr;
  auto const engine = makeEngine(Graph::kState, &backend);
  size_t const picture = 3 * kSide * kSide;
  std::vector<uint8_t> clips(70 * 2 * kSegments * picture);
  for (size_t index = 0; index < 70 * 2 * kSegments; ++index) {
    std::fill_n(clips.begin() + static_cast<ptrdiff_t>(index * picture), picture, static_cast<uint8_t>(index % 251));
  }
  std::vector<float> scores(70 * kSegments);
  engine->run(clips.data(), 70, scores.data());
  for (size_t index = 0; index < 70 * kSegments; ++index) {
    CHECK(scores[index] == static_cast<float>((2 * index + 1) % 251) + 1000.0F * static_cast<float>(2 * index % 251));
  }
  CHECK(backend->batches == std::vector<int32_t>{64, 64, 64, 64, 6, 6, 6, 6});
  auto const stream = std::make_shared<Stream>(engine, StreamOptions{FLOWLESS_MODE_ROLLING, 8, 0, 0});
  for (uint8_t value = 1; value <= 8; ++value) {
    stream->push(Grey(value).at(value));
  }
  CHECK(stepOne(*engine, stream) == std::vector<float>{1002, 3004, 5006, 7008});
}

TEST_CASE("streams of both modes are stepped together") {
  FirstBytes* backend = nullptr;
  auto const engine = makeEngine(Graph::kState, &backend);
  std::vector<std::shared_ptr<Stream>> streams;
  for (uint8_t index = 0; index < 140; ++index) {
    flowless_mode const mode = index % 2 == 0 ? FLOWLESS_MODE_ROLLING : FLOWLESS_MODE_DEFAULT;
    streams.push_back(std::make_shared<Stream>(engine, StreamOptions{mode, 0, 0, 0}));
    streams.back()->push(Grey(index).at(0));
  }
  std::vector<float> scores(140 * kSegments);
  std::vector<uint8_t> answered(140);
  engine->step(streams, scores.data(), answered.data());
  CHECK(answered == std::vector<uint8_t>(140, 1));
  for (size_t index = 0; index < 140 * kSegments; ++index) {
    CHECK(scores[index] == 1001.0F * static_cast<float>(index / kSegments));
  }
  CHECK(backend->batches == std::vector<int32_t>{64, 64, 64, 64, 6, 6, 6, 6, 64, 6});
}

TEST_CASE("a step that fails leaves the streams as they were") {
  for (Graph const graph : {Graph::kClips, Graph::kMemory, Graph::kState}) {
    FirstBytes* backend = nullptr;
    auto const engine = makeEngine(graph, &backend);
    auto const reference = makeEngine(graph);
    std::vector<std::shared_ptr<Stream>> streams;
    std::vector<std::shared_ptr<Stream>> others;
    for (int32_t index = 0; index < 70; ++index) {
      streams.push_back(std::make_shared<Stream>(engine, StreamOptions{}));
      others.push_back(std::make_shared<Stream>(reference, StreamOptions{}));
    }
    std::vector<float> scores(70 * kSegments);
    std::vector<float> expected(70 * kSegments);
    std::vector<uint8_t> answered(70);
    for (uint8_t turn = 1; turn < 12; ++turn) {
      for (size_t index = 0; index < 70; ++index) {
        Grey const frame(static_cast<uint8_t>(turn + index));
        streams[index]->push(frame.at(turn));
        others[index]->push(frame.at(turn));
      }
      backend->failAt = backend->batches.size() + turn % 2;  // the first batch of 64 views, or the one of 6
      CHECK_THROWS_AS(engine->step(streams, scores.data(), answered.data()), Error);
      CHECK(answered == std::vector<uint8_t>(70, 0));
      flowless_stream_state state{};
      streams[0]->state(state);
      CHECK(state.ready == 1);
      CHECK(state.replaced == 0);
      CHECK(state.scored == turn - 1U);
      engine->step(streams, scores.data(), answered.data());
      reference->step(others, expected.data(), answered.data());
      CHECK(scores == expected);
    }
  }
}

TEST_CASE("a frame or a reset that comes while a step runs") {
  for (Graph const graph : {Graph::kClips, Graph::kMemory, Graph::kState}) {
    FirstBytes* backend = nullptr;
    auto const engine = makeEngine(graph, &backend);
    auto const stream = std::make_shared<Stream>(engine, StreamOptions{});
    auto const state = [&] {
      flowless_stream_state found{};
      stream->state(found);
      return found;
    };
    stream->push(Grey(1).at(1));
    backend->during = [&] { stream->push(Grey(2).at(2)); };
    backend->failAt = 0;
    CHECK_THROWS_AS(stepOne(*engine, stream), Error);
    CHECK(state().replaced == 1);  // the frame that was not scored, by the one that came meanwhile
    CHECK(state().ready == 1);
    backend->during = [&] { stream->reset(); };
    CHECK_FALSE(stepOne(*engine, stream).empty());
    CHECK(state().scored == 1);
    CHECK(state().pts_ns == 2);
    CHECK(state().frames == 0);
    stream->push(Grey(5).at(5));
    backend->failAt = backend->batches.size();
    CHECK_THROWS_AS(stepOne(*engine, stream), Error);
    CHECK(state().ready == 0);  // forgotten by the reset
    backend->during = nullptr;
    stream->push(Grey(7).at(7));
    float const alone = graph == Graph::kState ? 7007.0F : 7.0F;
    CHECK(stepOne(*engine, stream) == std::vector<float>(kSegments, alone));
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
