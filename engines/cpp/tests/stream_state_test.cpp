// Streams with a state, and what a step leaves behind where it fails, or where a frame or a reset comes meanwhile.
// tests/cpp/test_streaming.py compares streaming engines with Python.
#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "first_bytes.h"

namespace flowless::detail {

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
  for (uint8_t index = 1; index < 140; index += 2) {
    streams[index]->push(Grey(static_cast<uint8_t>(index + 1)).at(1));
  }
  engine->step(streams, scores.data(), answered.data());
  for (size_t index = 1; index < 140; index += 2) {  // each goes on from its own state
    CHECK(scores[index * kSegments + kSegments - 2] == 1001.0F * static_cast<float>(index));
    CHECK(scores[index * kSegments + kSegments - 1] == 1001.0F * static_cast<float>(index) + 1.0F);
  }
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
    auto const scoresAlone = [&](uint8_t value) {
      stream->push(Grey(value).at(value));
      float const alone = static_cast<float>(value) * (graph == Graph::kState ? 1001.0F : 1.0F);
      return stepOne(*engine, stream) == std::vector<float>(kSegments, alone);
    };
    backend->during = nullptr;
    CHECK(scoresAlone(4));
    backend->during = [&] { stream->reset(); };
    stream->push(Grey(5).at(5));
    backend->failAt = backend->batches.size();
    CHECK_THROWS_AS(stepOne(*engine, stream), Error);
    CHECK(state().ready == 0);  // forgotten by the reset
    backend->during = nullptr;
    CHECK(scoresAlone(7));
  }
}

}  // namespace flowless::detail
