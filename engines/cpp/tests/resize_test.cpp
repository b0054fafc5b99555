// Resizing and cropping. tests/cpp/test_prepare.py compares many more frames with Pillow.
#include "resize.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "resample.h"
#include "status.h"

using namespace flowless::detail;

namespace {

std::vector<int32_t> all(int32_t outputs) {
  std::vector<int32_t> numbers(static_cast<size_t>(outputs));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

std::vector<uint8_t> noise(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> result(bytes);
  for (uint8_t& value : result) {
    value = static_cast<uint8_t>(random());
  }
  return result;
}

ClipSpec specOf(int32_t height, int32_t width, int32_t shortSide, bool threeCrops = false, int32_t cropSide = 0) {
  ClipSpec spec;
  spec.segments = 1;
  spec.framesPerSegment = 1;
  spec.height = height;
  spec.width = width;
  spec.shortSide = shortSide;
  spec.sampling = "centre";
  spec.threeCrops = threeCrops;
  spec.cropSide = cropSide;
  return spec;
}

struct Frame {
  Frame(int32_t columns, int32_t rows, uint32_t seed) : width(columns), height(rows) {
    rgb = noise(size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(height), seed);
  }

  int32_t width;
  int32_t height;
  std::vector<uint8_t> rgb;
};

std::vector<uint8_t> prepared(Preparer& preparer, ClipSpec const& spec, Frame const& frame) {
  std::vector<uint8_t> picture(spec.pictureBytes() * static_cast<size_t>(spec.crops()));
  preparer.prepare(frame.rgb.data(), frame.width, frame.height, ptrdiff_t{3} * frame.width, picture.data());
  return picture;
}

std::vector<uint8_t> prepared(ClipSpec const& spec, Frame const& frame, Kernels const* kernels = nullptr) {
  Preparer preparer(spec, kernels);
  return prepared(preparer, spec, frame);
}

// One pass, pixel by pixel: to `outputs` rows (`down`) or columns.
Frame passed(Frame const& frame, int32_t outputs, bool down) {
  Taps const taps = bilinearTaps(down ? frame.height : frame.width, outputs, all(outputs));
  Frame result(down ? frame.width : outputs, down ? outputs : frame.height, 0);
  for (int32_t row = 0; row < result.height; ++row) {
    for (int32_t byte = 0; byte < 3 * result.width; ++byte) {
      int32_t const output = down ? row : byte / 3;
      uint32_t sum = 1U << 21;
      for (int32_t tap = 0; tap < taps.count[static_cast<size_t>(output)]; ++tap) {
        int32_t const input = taps.first[static_cast<size_t>(output)] + tap;
        int32_t const at = down ? input * 3 * frame.width + byte : (row * frame.width + input) * 3 + byte % 3;
        sum += frame.rgb[static_cast<size_t>(at)] * taps.weights[static_cast<size_t>(output * taps.taps + tap)];
      }
      result.rgb[static_cast<size_t>(row * 3 * result.width + byte)] = static_cast<uint8_t>(sum >> 22);
    }
  }
  return result;
}

}  // namespace

TEST_CASE("taps of half the size are a triangle of twice the width") {
  // The centre of output 0 lies between inputs 0 and 1: weights 3 : 3 : 1 of 2^22, without the 1 left of the edge.
  Taps const taps = bilinearTaps(4, 2, all(2));
  CHECK(taps.first == std::vector<int32_t>{0, 1});
  CHECK(taps.count == std::vector<int32_t>{3, 3});
  CHECK(taps.taps == 4);
  CHECK(taps.weights == std::vector<uint32_t>{1797559, 1797559, 599186, 0, 599186, 1797559, 1797559, 0});
}

TEST_CASE("taps of twice the size weight two inputs 3 : 1, and one at the edges") {
  Taps const taps = bilinearTaps(2, 4, all(4));
  CHECK(taps.weights == std::vector<uint32_t>{1U << 22, 0, 3U << 20, 1U << 20, 1U << 20, 3U << 20, 1U << 22, 0});
}

TEST_CASE("taps of some outputs are those of all") {
  Taps const every = bilinearTaps(1080, 256, all(256));
  Taps const some = bilinearTaps(1080, 256, {0, 7, 255});
  REQUIRE(some.taps == every.taps);
  auto const taps = static_cast<size_t>(every.taps);
  for (size_t index : {0, 1, 2}) {
    size_t const output = index == 0 ? 0 : index == 1 ? 7 : 255;
    CHECK(some.first[index] == every.first[output]);
    for (size_t tap = 0; tap < taps; ++tap) {
      CHECK(some.weights[index * taps + tap] == every.weights[output * taps + tap]);
    }
  }
}

TEST_CASE("a frame of one colour stays so") {
  for (auto const& size : {std::pair<int, int>{1, 1}, {7, 5}, {1, 500}, {500, 1}, {256, 256}, {1283, 719}}) {
    Frame frame(size.first, size.second, 0);
    for (size_t at = 0; at < frame.rgb.size(); ++at) {
      frame.rgb[at] = at % 3 == 0 ? 255 : at % 3 == 1 ? 1 : 0;
    }
    for (size_t index = 0; Kernels const* kernels = kernelsAt(index); ++index) {
      std::vector<uint8_t> const picture = prepared(specOf(224, 224, 256, true), frame, kernels);
      size_t wrong = 0;
      for (size_t at = 0; at < picture.size(); ++at) {
        wrong += picture[at] != frame.rgb[at % 3];
      }
      CAPTURE(kernels->name);
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("a column of four pixels at half the size") {
  Frame frame(4, 4, 0);
  uint8_t const rows[] = {0, 70, 140, 210};
  for (size_t at = 0; at < frame.rgb.size(); ++at) {
    frame.rgb[at] = rows[at / 12];
  }
  // 3/7 x 0 + 3/7 x 70 + 1/7 x 140 = 50, and 1/7 x 70 + 3/7 x 140 + 3/7 x 210 = 160
  CHECK(prepared(specOf(2, 2, 2), frame) == std::vector<uint8_t>{50, 50, 50, 50, 50, 50, 160, 160, 160, 160, 160, 160});
}

TEST_CASE("a frame whose short side fits is cropped") {
  Frame const frame(9, 4, 3);
  std::vector<uint8_t> const picture = prepared(specOf(2, 2, 4, true), frame);
  // (9 - 2) / 4 = 1 across, (4 - 2) / 4 = 0 down: crops at 0, 4 and 2.
  size_t at = 0;
  for (size_t left : {0, 4, 2}) {
    for (size_t row : {0, 1}) {
      for (size_t byte = 0; byte < 6; ++byte) {
        CHECK(picture[at++] == frame.rgb[row * 27 + left * 3 + byte]);
      }
    }
  }
}

TEST_CASE("a frame that loses more than twice as many rows as columns is resized down first") {
  ClipSpec const spec = specOf(10, 10, 10);
  for (Size const size : {Size{11, 23}, Size{12, 23}}) {  // to 10 x 20 and 10 x 19: 3 rows and 1 column, 4 and 2
    Frame const frame(size.width, size.height, 1);
    int32_t const height = resizedSize(size, 10).height;
    Frame const downFirst = passed(passed(frame, height, true), 10, false);
    Frame const acrossFirst = passed(passed(frame, 10, false), height, true);
    REQUIRE(downFirst.rgb != acrossFirst.rgb);
    Frame const& expected = size.width == 11 ? downFirst : acrossFirst;
    auto const top = static_cast<ptrdiff_t>(30) * cropCorners({10, height}, spec)[0].top;
    CHECK(prepared(spec, frame) == std::vector<uint8_t>(expected.rgb.begin() + top, expected.rgb.begin() + top + 300));
  }
}

TEST_CASE("all kernels make the same bytes") {
  std::vector<ClipSpec> const specs = {specOf(224, 224, 256), specOf(5, 3, 30, true), specOf(31, 31, 40, true, 37),
                                       specOf(1, 1, 1)};
  for (int32_t seed = 1; seed < 60; ++seed) {
    Frame const frame(1 + seed * 37 % 301, 1 + seed * 53 % 211, static_cast<uint32_t>(seed));
    for (ClipSpec const& spec : specs) {
      std::vector<uint8_t> const expected = prepared(spec, frame, &kPlainKernels);
      for (size_t index = 0; Kernels const* kernels = kernelsAt(index); ++index) {
        CAPTURE(kernels->name);
        CAPTURE(frame.width);
        CAPTURE(frame.height);
        CHECK(prepared(spec, frame, kernels) == expected);
      }
    }
  }
}

TEST_CASE("a stride may be longer than a row") {
  Frame const frame(37, 21, 5);
  ClipSpec const spec = specOf(16, 24, 28);
  constexpr size_t kStride = 128;
  std::vector<uint8_t> apart(kStride * 20 + 37 * 3, 99);
  for (size_t row = 0; row < 21; ++row) {
    std::copy_n(&frame.rgb[row * 37 * 3], 37 * 3, &apart[row * kStride]);
  }
  std::vector<uint8_t> picture(spec.pictureBytes());
  Preparer(spec).prepare(apart.data(), 37, 21, kStride, picture.data());
  CHECK(picture == prepared(spec, frame));
}

TEST_CASE("sizes may come in any order, more than are kept") {
  ClipSpec const spec = specOf(20, 20, 24, true, 22);
  Preparer preparer(spec);
  for (int32_t turn : {0, 1, 2, 3, 4, 5, 0, 5, 1, 1, 0}) {
    Frame const frame(30 + 17 * turn, 90 - 13 * turn, static_cast<uint32_t>(turn));
    CHECK(prepared(preparer, spec, frame) == prepared(spec, frame));
  }
}

TEST_CASE("a long thin frame takes no more memory than its crops need") {
  // Resized whole it would have 256 x 8388608 pixels.
  Frame const frame(1, 32768, 7);
  std::vector<uint8_t> const picture = prepared(specOf(224, 224, 256, true), frame);
  CHECK(picture[0] == frame.rgb[0]);
}

TEST_CASE("errors") {
  CHECK_THROWS_WITH_AS(Preparer(specOf(224, 300, 256)),
                       "ClipSpec: height 224, width 300, crop_side 0, short_side 256; the first two must be at least "
                       "1, and short_side at least the crop's larger side, 300.",
                       Error);
  CHECK_THROWS_AS(Preparer(specOf(0, 1, 1)), Error);
  CHECK_THROWS_AS(Preparer(specOf(9, 9, 10, true, 11)), Error);
  Preparer preparer(specOf(9, 9, 100000));
  Frame const frame(1, 32768, 0);
  std::vector<uint8_t> picture(9 * 9 * 3);
  CHECK_THROWS_WITH_AS(preparer.prepare(frame.rgb.data(), 1, 32768, 3, picture.data()),
                       "A frame of 1 x 32768 pixels cannot be resized to a short side of 100000: its long side would "
                       "have more than 2147483647 pixels. Crop the frame first.",
                       Error);
}
