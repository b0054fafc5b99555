#include "resample.h"

#include <algorithm>
#include <cmath>

namespace flowless::detail {
namespace {

uint8_t toByte(uint32_t sum) { return static_cast<uint8_t>(std::min(sum >> kBits, 255U)); }

// Write the weights of one output, normalised; the order of operations decides the last bits.
void setWeights(double centre, double stretch, int32_t first, int32_t count, std::vector<double>& real,
                uint32_t* weights) {
  double const perInput = 1.0 / stretch;
  double total = 0.0;
  for (int32_t tap = 0; tap < count; ++tap) {
    double const distance = std::fabs((static_cast<double>(first + tap) - centre + 0.5) * perInput);
    real[static_cast<size_t>(tap)] = distance < 1.0 ? 1.0 - distance : 0.0;
    total += real[static_cast<size_t>(tap)];
  }
  for (int32_t tap = 0; tap < count; ++tap) {
    double const weight = total == 0.0 ? real[static_cast<size_t>(tap)] : real[static_cast<size_t>(tap)] / total;
    weights[tap] = static_cast<uint32_t>(0.5 + weight * (1 << kBits));  // the product is exact
  }
}

}  // namespace

Taps bilinearTaps(int32_t inputs, int32_t outputs, std::vector<int32_t> const& wanted) {
  double const scale = static_cast<double>(inputs) / outputs;
  double const stretch = std::max(scale, 1.0);
  Taps result;
  int32_t most = 0;
  for (int32_t const output : wanted) {
    double const centre = (output + 0.5) * scale;
    int32_t const first = std::max(static_cast<int32_t>(centre - stretch + 0.5), 0);
    int32_t const end = std::min(static_cast<int32_t>(centre + stretch + 0.5), inputs);
    result.first.push_back(first);
    result.count.push_back(end - first);
    most = std::max(most, end - first);
  }
  result.taps = (most + 1) / 2 * 2;
  auto const taps = static_cast<size_t>(result.taps);
  result.weights.assign(wanted.size() * taps, 0);
  std::vector<double> real(taps);
  for (size_t index = 0; index < wanted.size(); ++index) {
    setWeights((wanted[index] + 0.5) * scale, stretch, result.first[index], result.count[index], real,
               &result.weights[index * taps]);
    if (result.first[index] + result.taps + kTapSlack <= inputs) {
      result.inside = static_cast<int32_t>(index) + 1;
    }
  }
  constexpr uint32_t kLow = (1U << kLowBits) - 1;
  for (size_t at = 0; at < result.weights.size(); at += 2) {
    uint32_t const one = result.weights[at];
    uint32_t const two = result.weights[at + 1];
    result.halves.push_back((one & kLow) | (two & kLow) << 16);
    result.halves.push_back(one >> kLowBits | two >> kLowBits << 16);
  }
  return result;
}

void horizontalBytes(Taps const& taps, size_t begin, uint8_t const* const* from, uint8_t* const* to) {
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t index = begin; index < taps.outputs(); ++index) {
      uint32_t const* weights = &taps.weights[index * static_cast<size_t>(taps.taps)];
      uint8_t const* pixel = from[row] + static_cast<size_t>(taps.first[index]) * kChannels;
      uint32_t red = kHalf;
      uint32_t green = kHalf;
      uint32_t blue = kHalf;
      for (int32_t tap = 0; tap < taps.count[index]; ++tap, pixel += kChannels) {
        red += pixel[0] * weights[tap];
        green += pixel[1] * weights[tap];
        blue += pixel[2] * weights[tap];
      }
      uint8_t* const result = to[row] + index * kChannels;
      result[0] = toByte(red);
      result[1] = toByte(green);
      result[2] = toByte(blue);
    }
  }
}

namespace {

void horizontalPlain(Taps const& taps, uint8_t const* const* from, uint8_t* const* to) {
  horizontalBytes(taps, 0, from, to);
}

void verticalPlain(Taps const& taps, size_t index, uint8_t const* from, size_t stride, uint8_t* to, size_t bytes) {
  constexpr size_t kBlock = 64;
  uint32_t const* weights = &taps.weights[index * static_cast<size_t>(taps.taps)];
  auto const count = static_cast<size_t>(taps.count[index]);
  for (size_t begin = 0; begin < bytes; begin += kBlock) {
    size_t const length = std::min(kBlock, bytes - begin);
    uint32_t sums[kBlock];
    std::fill(sums, sums + length, kHalf);
    for (size_t tap = 0; tap < count; ++tap) {
      uint8_t const* const pixels = from + tap * stride + begin;
      for (size_t at = 0; at < length; ++at) {
        sums[at] += pixels[at] * weights[tap];
      }
    }
    std::transform(sums, sums + length, to + begin, toByte);
  }
}

}  // namespace

Kernels const kPlainKernels = {"plain", horizontalPlain, verticalPlain};

}  // namespace flowless::detail
