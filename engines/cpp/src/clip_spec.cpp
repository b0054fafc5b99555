#include "clip_spec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "random_draws.h"
#include "status.h"

namespace flowless::detail {
namespace {

struct Rule {
  char const* name;
  int32_t clips;
};

constexpr int32_t kManyClips = 10;
constexpr Rule kRules[] = {{"centre", 1},         {"two-clip", 2},    {"ten-draw", kManyClips},       {"one-dense", 1},
                           {"dense", kManyClips}, {"consecutive", 1}, {"ten-consecutive", kManyClips}};
// Consecutive frames over which dense sampling spreads a clip, where its stacks fit.
constexpr int64_t kDenseSpan = 64;
// Numbers of frames up to this are exact in double.
constexpr int64_t kMostFrames = int64_t{1} << 53;

// Starts of the stacks in the middle of the segments (clip 0) or at their start (clip 1).
void segmentStarts(ClipSpec const& spec, int64_t numFrames, int32_t clip, int64_t* starts) {
  // Doubles in this order of operations, truncated towards zero: another order changes some indices by one.
  double const tick = static_cast<double>(numFrames - spec.framesPerSegment + 1) / static_cast<double>(spec.segments);
  double const offset = clip == 0 ? tick / 2.0 : 0.0;
  for (int32_t segment = 0; segment < spec.segments; ++segment) {
    double const advance = tick * static_cast<double>(segment);
    // A video shorter than a stack has a negative tick; the nearest frame is its first.
    starts[segment] = std::max(static_cast<int64_t>(offset + advance), int64_t{0});
  }
}

// The first frame of a clip among `count` possible ones; of ten clips as numpy.linspace spaces them.
int64_t firstStart(ClipSpec const& spec, int64_t count, int32_t clip) {
  if (spec.clips() == 1) {
    return (count - 1) / 2;
  }
  if (clip == kManyClips - 1) {
    return count - 1;
  }
  double const step = static_cast<double>(count - 1) / static_cast<double>(kManyClips - 1);
  return static_cast<int64_t>(std::floor(static_cast<double>(clip) * step));
}

// Starts of equally spaced stacks: dense and consecutive rules.
void spreadStarts(ClipSpec const& spec, int64_t numFrames, int32_t clip, int64_t* starts) {
  bool const dense = spec.sampling == "dense" || spec.sampling == "one-dense";
  int64_t const frames = spec.framesPerSegment;
  // At the published distance of 64 / N, stacks longer than that would overlap.
  int64_t const stride = dense ? std::max(kDenseSpan / spec.segments, frames) : frames;
  int64_t const spanned = std::max(dense ? kDenseSpan : 1, spec.segments * stride);
  int64_t const first = firstStart(spec, std::max(int64_t{1}, 1 + numFrames - spanned), clip);
  for (int32_t segment = 0; segment < spec.segments; ++segment) {
    starts[segment] = (first + segment * stride) % numFrames;
  }
}

// What numpy.logaddexp computes.
double joinLogarithms(double one, double two) {
  if (one == two) {
    return one + 0.693147180559945309417232121458176568;
  }
  double const difference = one - two;
  if (difference > 0) {
    return one + std::log1p(std::exp(-difference));
  }
  return difference <= 0 ? two + std::log1p(std::exp(difference)) : difference;
}

// Views of a video whose softmax is averaged without an allocation; no ClipSpec has more than 30.
constexpr size_t kFewViews = 64;

struct Shift {
  double largest;
  double logSum;  // of the exponentials of the scores less the largest
};

Shift shiftOf(float const* scores, size_t classes) {
  double largest = scores[0];
  for (size_t index = 1; index < classes; ++index) {
    largest = std::max(largest, static_cast<double>(scores[index]));
  }
  double sum = 0.0;
  for (size_t index = 0; index < classes; ++index) {
    sum += std::exp(scores[index] - largest);  // NaN stays NaN
  }
  return {largest, std::log(sum)};
}

void averageSoftmax(float const* views, size_t count, size_t classes, float* scores) {
  std::array<Shift, kFewViews> few;
  std::vector<Shift> many(count > few.size() ? count : 0);
  Shift* const shifts = many.empty() ? few.data() : many.data();
  for (size_t view = 0; view < count; ++view) {
    shifts[view] = shiftOf(views + view * classes, classes);
  }
  for (size_t index = 0; index < classes; ++index) {
    auto const logarithm = [&](size_t view) {
      return views[view * classes + index] - shifts[view].largest - shifts[view].logSum;
    };
    double total = logarithm(0);
    for (size_t view = 1; view < count; ++view) {
      total = joinLogarithms(total, logarithm(view));
    }
    scores[index] = static_cast<float>(total - std::log(static_cast<double>(count)));
  }
}

}  // namespace

int32_t ClipSpec::clips() const {
  for (Rule const& rule : kRules) {
    if (sampling == rule.name) {
      return rule.clips;
    }
  }
  std::string allowed;
  for (Rule const& rule : kRules) {
    allowed += (allowed.empty() ? "" : ", ") + std::string(rule.name);
  }
  throw Error(FLOWLESS_INVALID,
              format("ClipSpec: sampling is %s; it must be one of %s.", quoted(sampling).c_str(), allowed.c_str()));
}

Size resizedSize(Size frame, int32_t shortSide) {
  int64_t const low = std::min(frame.width, frame.height);
  int64_t const high = std::max(frame.width, frame.height);
  if (low == shortSide) {
    return frame;
  }
  double const scaled = static_cast<double>(shortSide * high) / static_cast<double>(low);
  if (scaled > std::numeric_limits<int32_t>::max()) {
    throw Error(
        FLOWLESS_INVALID,
        format("A frame of %d x %d pixels cannot be resized to a short side of %d: its long side would have more "
               "than %d pixels. Crop the frame first.",
               frame.width, frame.height, shortSide, std::numeric_limits<int32_t>::max()));
  }
  auto const rounded = static_cast<int32_t>(scaled);
  return frame.width <= frame.height ? Size{shortSide, rounded} : Size{rounded, shortSide};
}

std::array<Corner, 3> cropCorners(Size resized, ClipSpec const& spec) {
  int32_t const across = resized.width - (spec.cropSide > 0 ? spec.cropSide : spec.width);
  int32_t const down = resized.height - (spec.cropSide > 0 ? spec.cropSide : spec.height);
  if (!spec.threeCrops) {
    // Half of an odd number is rounded to the even neighbour, as Python's round does.
    auto const half = [](int32_t free) { return free / 2 + (free % 4 == 3 ? 1 : 0); };
    return {Corner{half(across), half(down)}, Corner{}, Corner{}};
  }
  int32_t const x = across / 4;
  int32_t const y = down / 4;
  if (resized.width >= resized.height) {
    return {Corner{0, 2 * y}, Corner{4 * x, 2 * y}, Corner{2 * x, 2 * y}};
  }
  return {Corner{2 * x, 0}, Corner{2 * x, 4 * y}, Corner{2 * x, 2 * y}};
}

void clipIndices(ClipSpec const& spec, int64_t numFrames, int64_t* indices) {
  if (numFrames < 1 || numFrames > kMostFrames) {
    throw Error(FLOWLESS_INVALID, format("num_frames is %lld; it must be an integer of at least 1 and at most 2^53.",
                                         static_cast<long long>(numFrames)));
  }
  int32_t const clips = spec.clips();
  for (int32_t clip = 0; clip < clips; ++clip) {
    if (spec.sampling == "ten-draw") {
      randomStarts(spec, numFrames, clip, indices);
    } else if (spec.sampling == "centre" || spec.sampling == "two-clip") {
      segmentStarts(spec, numFrames, clip, indices);
    } else {
      spreadStarts(spec, numFrames, clip, indices);
    }
    // From the last on, each start becomes its stack. Past the end of the video the last frame repeats.
    for (int64_t segment = spec.segments - 1; segment >= 0; --segment) {
      int64_t const start = indices[segment];
      for (int64_t frame = spec.framesPerSegment - 1; frame >= 0; --frame) {
        indices[segment * spec.framesPerSegment + frame] = std::min(start + frame, numFrames - 1);
      }
    }
    indices += static_cast<ptrdiff_t>(spec.segments) * spec.framesPerSegment;
  }
}

void averageViews(ClipSpec const& spec, float const* views, int32_t count, int32_t classes, float* scores) {
  if (count < 1 || classes < 1) {
    throw Error(FLOWLESS_INVALID,
                format("%d views of %d scores were given; there must be at least one of each.", count, classes));
  }
  auto const rows = static_cast<size_t>(count);
  auto const columns = static_cast<size_t>(classes);
  if (spec.averageSoftmax && count > 1) {
    averageSoftmax(views, rows, columns, scores);
    return;
  }
  for (size_t index = 0; index < columns; ++index) {
    double total = views[index];
    for (size_t view = 1; view < rows; ++view) {
      total += views[view * columns + index];
    }
    scores[index] = static_cast<float>(total / static_cast<double>(count));
  }
}

}  // namespace flowless::detail
