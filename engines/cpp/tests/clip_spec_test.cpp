// Sizes, crops, frame indices and averages. tests/cpp/test_prepare.py compares many more with Python.
#include "clip_spec.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "status.h"

using namespace flowless::detail;

namespace {

using Indices = std::vector<int64_t>;

ClipSpec ruleOf(char const* sampling, int32_t segments, int32_t frames) {
  ClipSpec spec;
  spec.sampling = sampling;
  spec.segments = segments;
  spec.framesPerSegment = frames;
  return spec;
}

Indices indicesOf(ClipSpec const& spec, int64_t numFrames) {
  Indices indices(static_cast<size_t>(spec.clips() * spec.segments * spec.framesPerSegment), -1);
  clipIndices(spec, numFrames, indices.data());
  return indices;
}

Indices clipOf(Indices const& indices, size_t clip, size_t length) {
  return {indices.begin() + static_cast<ptrdiff_t>(clip * length),
          indices.begin() + static_cast<ptrdiff_t>((clip + 1) * length)};
}

}  // namespace

TEST_CASE("the short side is resized, the long side rounded down") {
  struct Row {
    Size frame;
    Size resized;
  };
  for (Row const& row : {Row{{640, 480}, {341, 256}}, Row{{480, 640}, {256, 341}}, Row{{340, 256}, {340, 256}},
                         Row{{1920, 1080}, {455, 256}}, Row{{426, 240}, {454, 256}}, Row{{100, 100}, {256, 256}},
                         Row{{1, 32768}, {256, 8388608}}}) {
    Size const found = resizedSize(row.frame, 256);
    CHECK(found.width == row.resized.width);
    CHECK(found.height == row.resized.height);
  }
}

TEST_CASE("a centre crop's corner is rounded half to even") {
  ClipSpec spec;
  spec.height = spec.width = 224;
  auto const leftOf = [&](int32_t width) { return cropCorners({width, 256}, spec)[0].left; };
  CHECK(leftOf(341) == 58);  // 58.5
  CHECK(leftOf(343) == 60);  // 59.5
  CHECK(leftOf(225) == 0);   // 0.5
  CHECK(leftOf(227) == 2);   // 1.5
  CHECK(leftOf(224) == 0);
  CHECK(cropCorners({341, 256}, spec)[0].top == 16);
}

TEST_CASE("three crops lie along the long side") {
  ClipSpec spec;
  spec.height = spec.width = 224;
  spec.threeCrops = true;
  auto const check = [&](Size resized, std::array<Corner, 3> const& expected) {
    std::array<Corner, 3> const found = cropCorners(resized, spec);
    for (size_t crop = 0; crop < 3; ++crop) {
      CHECK(found[crop].left == expected[crop].left);
      CHECK(found[crop].top == expected[crop].top);
    }
  };
  check({341, 256}, {Corner{0, 16}, Corner{116, 16}, Corner{58, 16}});
  check({256, 341}, {Corner{16, 0}, Corner{16, 116}, Corner{16, 58}});
  check({256, 256}, {Corner{0, 16}, Corner{32, 16}, Corner{16, 16}});
  spec.cropSide = 256;
  check({455, 256}, {Corner{0, 0}, Corner{196, 0}, Corner{98, 0}});
}

TEST_CASE("the rules' indices") {
  CHECK(indicesOf(ruleOf("centre", 3, 2), 13) == Indices{2, 3, 6, 7, 10, 11});
  CHECK(indicesOf(ruleOf("two-clip", 3, 2), 13) == Indices{2, 3, 6, 7, 10, 11, 0, 1, 4, 5, 8, 9});
  CHECK(indicesOf(ruleOf("consecutive", 3, 2), 13) == Indices{3, 4, 5, 6, 7, 8});
  CHECK(indicesOf(ruleOf("one-dense", 4, 1), 100) == Indices{18, 34, 50, 66});
  Indices const dense = indicesOf(ruleOf("dense", 4, 1), 100);
  CHECK(clipOf(dense, 1, 4) == Indices{4, 20, 36, 52});
  CHECK(clipOf(dense, 9, 4) == Indices{36, 52, 68, 84});
  Indices const consecutive = indicesOf(ruleOf("ten-consecutive", 2, 2), 20);
  CHECK(clipOf(consecutive, 2, 4) == Indices{3, 4, 5, 6});
  CHECK(clipOf(consecutive, 9, 4) == Indices{16, 17, 18, 19});
}

TEST_CASE("random draws are those of NumPy") {
  Indices const few = indicesOf(ruleOf("ten-draw", 3, 2), 13);
  CHECK(clipOf(few, 0, 6) == Indices{2, 3, 6, 7, 10, 11});
  CHECK(clipOf(few, 9, 6) == Indices{1, 2, 4, 5, 8, 9});
  Indices const many = indicesOf(ruleOf("ten-draw", 8, 1), 100);
  CHECK(clipOf(many, 0, 8) == Indices{10, 16, 30, 45, 48, 69, 81, 91});
  CHECK(clipOf(many, 9, 8) == Indices{5, 20, 33, 43, 51, 71, 78, 84});
}

TEST_CASE("a short video repeats its last frame, or wraps") {
  CHECK(indicesOf(ruleOf("centre", 2, 4), 1) == Indices(8, 0));
  CHECK(indicesOf(ruleOf("centre", 2, 4), 3) == Indices{0, 1, 2, 2, 0, 1, 2, 2});
  CHECK(indicesOf(ruleOf("one-dense", 4, 1), 30) == Indices{0, 16, 2, 18});
  CHECK(indicesOf(ruleOf("consecutive", 2, 2), 3) == Indices{0, 1, 2, 2});
}

TEST_CASE("rules and videos that do not exist are refused") {
  CHECK_THROWS_WITH_AS(
      ruleOf("random", 1, 1).clips(),
      "ClipSpec: sampling is 'random'; it must be one of centre, two-clip, ten-draw, one-dense, dense, "
      "consecutive, ten-consecutive.",
      Error);
  int64_t index = 0;
  CHECK_THROWS_WITH_AS(clipIndices(ruleOf("centre", 1, 1), 0, &index),
                       "num_frames is 0; it must be an integer of at least 1 and at most 2^53.", Error);
  CHECK_THROWS_AS(clipIndices(ruleOf("dense", 1, 1), std::numeric_limits<int64_t>::max(), &index), Error);
}

TEST_CASE("averages of logits and of softmax differ") {
  std::vector<float> const views = {9, 0, 0, 0, 3, 0, 0, 3, 0};
  std::vector<float> scores(3);
  ClipSpec spec;
  averageViews(spec, views.data(), 3, 3, scores.data());
  CHECK(scores == std::vector<float>{3, 2, 0});
  spec.averageSoftmax = true;
  averageViews(spec, views.data(), 3, 3, scores.data());
  CHECK(scores == std::vector<float>{-0x1.031c44p+0F, -0x1.0029fap-1F, -0x1.bfe01ap+1F});
  std::vector<float> inPlace = views;
  averageViews(spec, inPlace.data(), 3, 3, inPlace.data());
  CHECK(std::vector<float>(inPlace.begin(), inPlace.begin() + 3) == scores);
}

TEST_CASE("one view is unchanged, large logits stay finite, NaN is not hidden") {
  ClipSpec spec;
  spec.averageSoftmax = true;
  std::vector<float> scores(3);
  std::vector<float> const large = {1000, 0, -1000, 1000, 0, -1000};
  averageViews(spec, large.data(), 1, 3, scores.data());
  CHECK(scores == std::vector<float>{1000, 0, -1000});
  averageViews(spec, large.data(), 2, 3, scores.data());
  CHECK(scores == std::vector<float>{0, -1000, -2000});
  std::vector<float> const wrong = {1, std::nanf(""), 0, 1, 0, 0};
  averageViews(spec, wrong.data(), 2, 3, scores.data());
  CHECK(scores[0] != scores[0]);
  CHECK_THROWS_WITH_AS(averageViews(spec, large.data(), 0, 3, scores.data()),
                       "0 views of 3 scores were given; there must be at least one of each.", Error);
}
