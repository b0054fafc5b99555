// The C++ layer over flowless.h: header only, so that one library serves every compiler. Failing calls throw
// flowless::Error.
#ifndef FLOWLESS_FLOWLESS_HPP
#define FLOWLESS_FLOWLESS_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "flowless/flowless.h"

namespace flowless {

class Error : public std::runtime_error {
 public:
  Error(flowless_status status, char const* text) : std::runtime_error(text), mStatus(status) {}
  flowless_status status() const noexcept { return mStatus; }

 private:
  flowless_status mStatus;
};

inline void check(flowless_status status) {
  if (status != FLOWLESS_OK) {
    throw Error(status, flowless_error());
  }
}

// A decoded frame, upright, RGB, uint8. stride 0: 3 x width.
inline flowless_frame frame(uint8_t const* rgb, int32_t width, int32_t height, ptrdiff_t stride = 0,
                            int64_t ptsNs = 0) {
  return flowless_frame{sizeof(flowless_frame), rgb, width, height, stride, ptsNs};
}

// How to open a bundle; empty and 0: the best engine that runs here.
struct Options {
  std::string target;
  std::string precision;
  std::string device;
  int32_t threads = 0;
};

// A class with its share of the softmax.
struct Label {
  std::string label;
  int32_t index = 0;
  double score = 0.0;
};

class Engine;

// One camera. It must not outlive its engine.
class Stream {
 public:
  void push(flowless_frame const& newest) { check(flowless_stream_push(mHandle.get(), &newest)); }
  void reset() { check(flowless_stream_reset(mHandle.get())); }
  flowless_stream_state state() const {
    flowless_stream_state state{};
    state.size = sizeof(state);
    check(flowless_stream_look(mHandle.get(), &state));
    return state;
  }
  flowless_stream* handle() const noexcept { return mHandle.get(); }

 private:
  friend class Engine;
  struct Close {
    void operator()(flowless_stream* stream) const noexcept { flowless_stream_close(stream); }
  };
  explicit Stream(flowless_stream* stream) : mHandle(stream) {}
  std::unique_ptr<flowless_stream, Close> mHandle;
};

class Engine {
 public:
  explicit Engine(std::string const& bundle, Options const& options = {}) {
    auto const text = [](std::string const& value) { return value.empty() ? nullptr : value.c_str(); };
    flowless_options const given{sizeof(flowless_options), text(options.target), text(options.precision),
                                 text(options.device),     options.threads,      0};
    flowless_engine* engine = nullptr;
    check(flowless_open(bundle.c_str(), &given, &engine));
    mHandle.reset(engine);
    mInfo.size = sizeof(mInfo);
    check(flowless_describe(engine, &mInfo));
    for (int32_t index = 0; index < mInfo.classes; ++index) {
      char const* label = nullptr;
      check(flowless_label(engine, index, &label));
      mLabels.emplace_back(label);
    }
  }

  flowless_info const& info() const noexcept { return mInfo; }
  std::vector<std::string> const& labels() const noexcept { return mLabels; }
  flowless_engine* handle() const noexcept { return mHandle.get(); }

  // Frames of a video that its clips consist of, [clips, segments, frames].
  std::vector<int64_t> indices(int64_t numFrames) const {
    std::vector<int64_t> result(static_cast<size_t>(mInfo.clips) * static_cast<size_t>(mInfo.segments) *
                                static_cast<size_t>(mInfo.frames));
    check(flowless_indices(mHandle.get(), numFrames, result.data(), result.size()));
    return result;
  }

  // A frame resized and cropped, uint8 [crops, height, width, 3].
  std::vector<uint8_t> prepare(flowless_frame const& given) const {
    std::vector<uint8_t> picture(mInfo.picture_bytes);
    check(flowless_prepare(mHandle.get(), &given, picture.data(), picture.size()));
    return picture;
  }

  // Scores of clips, uint8 [batch, segments, frames, height, width, 3]: float32 [batch, classes].
  std::vector<float> run(std::vector<uint8_t> const& clips) const {
    size_t const batch = clips.size() / mInfo.clip_bytes;
    std::vector<float> scores(batch * static_cast<size_t>(mInfo.classes));
    check(flowless_run(mHandle.get(), clips.data(), clips.size(), static_cast<int32_t>(batch), scores.data(),
                       scores.size()));
    return scores;
  }

  // Average scores of a video's views, [views, classes], as the bundle says.
  std::vector<float> average(std::vector<float> const& views) const {
    std::vector<float> scores(static_cast<size_t>(mInfo.classes));
    check(flowless_average(mHandle.get(), views.data(), static_cast<int32_t>(views.size() / scores.size()),
                           scores.data(), scores.size()));
    return scores;
  }

  // Scores of a video whose prepared pictures of each frame are given by `picture(ordinal)`, a uint8 const* that stays
  // valid.
  template <class Picture>
  std::vector<float> video(int64_t numFrames, Picture picture) const {
    std::vector<int64_t> const wanted = indices(numFrames);
    size_t const one = mInfo.picture_bytes / static_cast<size_t>(mInfo.crops);
    std::vector<uint8_t> clips;
    clips.reserve(wanted.size() * mInfo.picture_bytes);
    for (size_t crop = 0; crop < static_cast<size_t>(mInfo.crops); ++crop) {
      for (int64_t const ordinal : wanted) {
        uint8_t const* const start = picture(ordinal) + crop * one;
        clips.insert(clips.end(), start, start + one);
      }
    }
    return average(run(clips));
  }

  Stream stream(flowless_stream_options options = {}) const {
    options.size = sizeof(options);
    flowless_stream* opened = nullptr;
    check(flowless_stream_open(mHandle.get(), &options, &opened));
    return Stream(opened);
  }

  // Score, in one batch, every stream that has a new frame: calls answer(position, scores [classes]) for each.
  template <class Answer>
  void step(std::vector<Stream> const& streams, Answer answer) {
    auto const classes = static_cast<size_t>(mInfo.classes);
    mHandles.clear();
    for (Stream const& stream : streams) {
      mHandles.push_back(stream.handle());
    }
    mScores.resize(streams.size() * classes);
    mAnswered.assign(streams.size(), 0);
    check(flowless_step(mHandle.get(), mHandles.data(), static_cast<int32_t>(streams.size()), mScores.data(),
                        mScores.size(), mAnswered.data()));
    for (size_t index = 0; index < streams.size(); ++index) {
      if (mAnswered[index] != 0) {
        answer(index, mScores.data() + index * classes);
      }
    }
  }

  // The classes with the highest scores [classes], the most likely first.
  std::vector<Label> top(float const* scores, size_t count = 5) const {
    std::vector<int32_t> order(mLabels.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    double sum = 0.0;
    for (size_t index = 0; index < mLabels.size(); ++index) {
      sum += std::exp(static_cast<double>(scores[index]) - static_cast<double>(scores[order[0]]));
    }
    std::vector<Label> result;
    for (size_t rank = 0; rank < std::min(count, order.size()); ++rank) {
      int32_t const index = order[rank];
      double const share = std::exp(static_cast<double>(scores[index]) - static_cast<double>(scores[order[0]])) / sum;
      result.push_back({mLabels[static_cast<size_t>(index)], index, share});
    }
    return result;
  }

 private:
  struct Close {
    void operator()(flowless_engine* engine) const noexcept { flowless_close(engine); }
  };
  std::unique_ptr<flowless_engine, Close> mHandle;
  flowless_info mInfo{};
  std::vector<std::string> mLabels;
  std::vector<flowless_stream*> mHandles;
  std::vector<float> mScores;
  std::vector<uint8_t> mAnswered;
};

}  // namespace flowless

#endif
