// Pillow's BILINEAR in integers: the taps of an axis, and the two passes over pixels, in forms for different
// processors. All forms compute the same bytes: sums are exact modulo 2^32, in which they fit.
#ifndef FLOWLESS_SRC_RESAMPLE_H
#define FLOWLESS_SRC_RESAMPLE_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flowless::detail {

// How some outputs of an axis are weighted means of its inputs. Weights are in units of 2^-22 and not negative.
struct Taps {
  int32_t taps = 0;               // weights per output, even; those after an output's own are 0
  int32_t inside = 0;             // leading outputs for which all `taps` inputs and kTapSlack more exist
  std::vector<int32_t> first;     // of each output, its first input
  std::vector<int32_t> count;     // of each output, its number of inputs
  std::vector<uint32_t> weights;  // [outputs, taps]
  // [outputs, taps / 2, 2]: the low 11 bits of two weights, then the bits above them; 16 bits for each weight.
  std::vector<uint32_t> halves;

  size_t outputs() const { return first.size(); }
};

// Taps of the outputs `wanted`, in ascending order, of an axis of `inputs` that is resized to `outputs`.
Taps bilinearTaps(int32_t inputs, int32_t outputs, std::vector<int32_t> const& wanted);

constexpr size_t kChannels = 3;
constexpr int kBits = 22;     // of a weight, behind the point
constexpr int kLowBits = 11;  // of the lower half of a weight
// Where a sum starts, so that it is rounded when the bits behind the point are dropped.
constexpr uint32_t kHalf = 1U << (kBits - 1);

// Pixels after its taps that a vector may read.
constexpr int32_t kTapSlack = 2;
// Rows that a horizontal pass takes together.
constexpr size_t kRows = 4;
// Bytes that a horizontal pass may write after a row.
constexpr size_t kRowSlack = 1;

struct Kernels {
  char const* name;
  // Four rows of pixels, RGB, each to taps.outputs() pixels and kRowSlack bytes. Reads nothing outside the rows.
  void (*horizontal)(Taps const& taps, uint8_t const* const* from, uint8_t* const* to);
  // Output `index` of the taps, of rows that are `stride` bytes apart, the first at `from`: `bytes` bytes. May read
  // `taps.taps` rows, of which those after the output's own do not matter; the plain kernel reads the output's own.
  void (*vertical)(Taps const& taps, size_t index, uint8_t const* from, size_t stride, uint8_t* to, size_t bytes);
};

// The kernels that this processor runs, the fastest first; null after the last. Index 0 exists.
Kernels const* kernelsAt(size_t index);

// Kernels without a processor's own instructions; the horizontal pass from an output on, for what vectors leave.
extern Kernels const kPlainKernels;
void horizontalBytes(Taps const& taps, size_t begin, uint8_t const* const* from, uint8_t* const* to);

}  // namespace flowless::detail

#endif
