// ClipSpec: the definition of a clip, as in pipeline/clip/spec.py; its frame indices (pipeline/clip/sampling.py), sizes
// and crops (pipeline/clip/preprocess.py), and the average over views (pipeline/clip/view_scores.py).
#ifndef FLOWLESS_SRC_CLIP_SPEC_H
#define FLOWLESS_SRC_CLIP_SPEC_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace flowless::detail {

struct ClipSpec {
  int32_t segments = 0;
  int32_t framesPerSegment = 0;
  int32_t height = 0;
  int32_t width = 0;
  int32_t shortSide = 0;
  std::string sampling;  // centre, two-clip, ten-draw, one-dense, dense, consecutive, ten-consecutive
  bool threeCrops = false;
  int32_t cropSide = 0;  // 0: none
  bool averageSoftmax = false;

  int32_t crops() const { return threeCrops ? 3 : 1; }
  int32_t clips() const;
  size_t pictureBytes() const {
    return size_t{3} * static_cast<size_t>(height) * static_cast<size_t>(width);
  }  // of one crop
  size_t clipBytes() const {
    return pictureBytes() * static_cast<size_t>(segments) * static_cast<size_t>(framesPerSegment);
  }
};

struct Size {
  int32_t width = 0;
  int32_t height = 0;
};

struct Corner {
  int32_t left = 0;
  int32_t top = 0;
};

// Size after resizing the short side.
Size resizedSize(Size frame, int32_t shortSide);

// Corners of the crops in a resized frame, in the order of the views; the first crops() entries count.
std::array<Corner, 3> cropCorners(Size resized, ClipSpec const& spec);

// Write the frame indices [clips, segments, frames] of a video of numFrames frames, which must be at least 1, into
// `indices`, which holds so many numbers.
void clipIndices(ClipSpec const& spec, int64_t numFrames, int64_t* indices);

// Average scores [views, classes] over the views, in double; `scores` may be `views`.
void averageViews(ClipSpec const& spec, float const* views, int32_t count, int32_t classes, float* scores);

}  // namespace flowless::detail

#endif
