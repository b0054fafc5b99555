// An engine without a library, for tests of streams: its scores are the first bytes of pictures.
#ifndef FLOWLESS_TESTS_FIRST_BYTES_H
#define FLOWLESS_TESTS_FIRST_BYTES_H

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "engine.h"
#include "status.h"
#include "stream.h"

namespace flowless::detail {

inline constexpr int32_t kSegments = 4;
inline constexpr int32_t kSide = 8;

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

inline std::shared_ptr<Engine> makeEngine(Graph graph, FirstBytes** backend = nullptr) {
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

inline std::vector<float> stepOne(Engine& engine, std::shared_ptr<Stream> const& stream) {
  std::vector<float> scores(kSegments, -1.0F);
  uint8_t answered = 0;
  engine.step({stream}, scores.data(), &answered);
  return answered != 0 ? scores : std::vector<float>{};
}

}  // namespace flowless::detail

#endif
