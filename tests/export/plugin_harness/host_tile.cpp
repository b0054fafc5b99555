// The kernel's tiles on a processor: pa_tile.h with loops where the GPU has threads and barriers. Called through ctypes.
#include <cmath>
#include <cstdint>

#include "pa_tile.h"

// FP16 without a CUDA toolkit: 1 bit of sign, 5 of exponent, 10 of fraction, rounded to the nearest, ties to even.
struct Half {
  uint16_t bits;
};

template <>
struct flowless::Number<Half> {
  static float read(Half value) {
    int const exponent = value.bits >> 10 & 31;
    int const fraction = value.bits & 1023;
    float const size = exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                       : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                       : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return (value.bits & 0x8000) != 0 ? -size : size;
  }
  static Half written(float value) {
    uint16_t const sign = std::signbit(value) ? 0x8000 : 0;
    float const size = std::fabs(value);
    if (std::isnan(size)) {
      return Half{0x7e00};
    }
    if (size >= 65520.0F) {
      return Half{static_cast<uint16_t>(sign | 0x7c00)};
    }
    int const exponent = size < 6.103515625e-5F ? -14 : std::ilogb(size);
    auto const units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return Half{static_cast<uint16_t>(sign | (units < 1024 ? units : ((exponent + 15) << 10) + units - 1024))};
  }
};

namespace {

template <typename T>
void run(flowless::Problem const& problem, T const* clip, T const* weight, T* motion) {
  static flowless::Shared shared;
  for (int64_t index = 0; index < flowless::tileCount(problem); ++index) {
    flowless::Tile const tile = flowless::tileAt(problem, index);
    for (int thread = 0; thread < flowless::kThreads; ++thread) {
      flowless::loadWeights(weight, shared, thread);
      flowless::loadDifferences(problem, tile, clip, shared, thread);
    }
    for (int thread = 0; thread < flowless::kThreads; ++thread) {
      flowless::writeTile(problem, tile, shared, motion, thread);
    }
  }
}

}  // namespace

extern "C" void flowless_pa_on_host(int half, void const* clip, void const* weight, void* motion, int64_t stacks, int64_t frames,
                                    int height, int width, float eps, int epsInside) {
  flowless::Problem const problem{stacks * (frames - 1), frames, height, width, eps, epsInside != 0};
  if (half != 0) {
    run(problem, static_cast<Half const*>(clip), static_cast<Half const*>(weight), static_cast<Half*>(motion));
  } else {
    run(problem, static_cast<float const*>(clip), static_cast<float const*>(weight), static_cast<float*>(motion));
  }
}

// Map, first value of the earlier frame, first row and first column of one tile.
extern "C" void flowless_pa_tile(int64_t maps, int64_t frames, int height, int width, int64_t index, int64_t* found) {
  flowless::Tile const tile = flowless::tileAt(flowless::Problem{maps, frames, height, width, 0.0F, false}, index);
  found[0] = tile.map;
  found[1] = tile.earlier;
  found[2] = tile.row;
  found[3] = tile.column;
}

extern "C" int64_t flowless_pa_tile_count(int64_t maps, int64_t frames, int height, int width) {
  return flowless::tileCount(flowless::Problem{maps, frames, height, width, 0.0F, false});
}
