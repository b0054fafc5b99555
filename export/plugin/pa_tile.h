// The PA op on one tile of one map, for the GPU and, the same lines, for a processor.
//
//     motion[s, i, y, x] = sqrt(sum_f (conv_f(clip[s, i+1] - clip[s, i])[y, x])^2 + eps)          (paper, Eq. 4 and 5)
//
// A block of threads makes one tile of 32 x 32 pixels. It reads the tile's difference of two frames, with a rim of three
// pixels, into shared memory, convolves it there with the eight filters and writes the map alone: no feature map ever
// reaches memory. Outside the image the difference is zero, which is what the convolution's padding says.
//
// Arithmetic: FP32 and FP16 tensors are both subtracted, multiplied, summed and rooted in 32-bit floating point; FP16 is
// rounded once when it is read, by whoever made it, and once when the map is written. A length above 65504 becomes infinity
// there. Each thread makes four pixels of one column, so that ten differences and 56 weights serve 224 multiplications;
// the lanes of a warp lie side by side in x, which reads shared memory without conflicts and the weights by broadcast.
// The two-phase form of the ONNX function is left out here: it feeds matrix units and costs other cores 64/49 of the work.
//
// Everything but the two loops over threads is here, so a build for the processor runs the kernel's own indices.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FLOWLESS_BOTH __host__ __device__ __forceinline__
#define FLOWLESS_UNROLL _Pragma("unroll")
#else
#define FLOWLESS_BOTH inline
#define FLOWLESS_UNROLL
#endif

namespace flowless {

constexpr int kFilters = 8;
constexpr int kColours = 3;
constexpr int kSize = 7;
constexpr int kRim = kSize / 2;
constexpr int kTaps = kColours * kSize * kSize;

constexpr int kThreads = 256;
constexpr int kTileWidth = 32;
constexpr int kRowsPerThread = 4;
constexpr int kTileHeight = kThreads / kTileWidth * kRowsPerThread;
constexpr int kReadWidth = kTileWidth + 2 * kRim;
constexpr int kReadHeight = kTileHeight + 2 * kRim;

// What to compute: `maps` maps of `height` x `width` pixels from stacks of `frames` frames.
struct Problem {
  int64_t maps;
  int64_t frames;
  int height;
  int width;
  float eps;
  // The official code's rule: eps goes to every filter's difference, earlier less later frame, not under the root.
  bool epsInside;
};

// One tile: its map, the first value of the map's earlier frame, and its first pixel.
struct Tile {
  int64_t map;
  int64_t earlier;
  int row;
  int column;
};

// What a block shares. The weights of one tap lie together: eight filters, two loads of four.
struct alignas(16) Shared {
  float weight[kTaps][kFilters];
  float difference[kColours][kReadHeight][kReadWidth];
};

// How a tensor's type is read and written. The kernel says it of __half; a build for the processor, of a type of its own.
template <typename T>
struct Number;

template <>
struct Number<float> {
  static FLOWLESS_BOTH float read(float value) { return value; }
  static FLOWLESS_BOTH float written(float value) { return value; }
};

FLOWLESS_BOTH int64_t tilesAcross(Problem const& problem) { return (problem.width + int64_t{kTileWidth} - 1) / kTileWidth; }
FLOWLESS_BOTH int64_t tilesDown(Problem const& problem) { return (problem.height + int64_t{kTileHeight} - 1) / kTileHeight; }
FLOWLESS_BOTH int64_t tileCount(Problem const& problem) { return problem.maps * tilesAcross(problem) * tilesDown(problem); }

FLOWLESS_BOTH Tile tileAt(Problem const& problem, int64_t index) {
  int64_t const across = tilesAcross(problem);
  int64_t const perMap = across * tilesDown(problem);
  int64_t const map = index / perMap;
  int64_t const place = index % perMap;
  // A stack of m frames has m - 1 maps, so the frames of the stacks before this one are ahead by one each.
  int64_t const frame = map + map / (problem.frames - 1);
  return Tile{map, frame * kColours * problem.height * problem.width, static_cast<int>(place / across) * kTileHeight,
              static_cast<int>(place % across) * kTileWidth};
}

// `weight` is [filters, colours, 7, 7].
template <typename T>
FLOWLESS_BOTH void loadWeights(T const* weight, Shared& shared, int thread) {
  for (int index = thread; index < kFilters * kTaps; index += kThreads) {
    shared.weight[index % kTaps][index / kTaps] = Number<T>::read(weight[index]);
  }
}

// `clip` is [stacks, frames, colours, height, width].
template <typename T>
FLOWLESS_BOTH void loadDifferences(Problem const& problem, Tile const& tile, T const* clip, Shared& shared, int thread) {
  int64_t const plane = int64_t{problem.height} * problem.width;
  T const* const earlier = clip + tile.earlier;
  T const* const later = earlier + kColours * plane;
  for (int index = thread; index < kColours * kReadHeight * kReadWidth; index += kThreads) {
    int const colour = index / (kReadHeight * kReadWidth);
    int const y = index / kReadWidth % kReadHeight;
    int const x = index % kReadWidth;
    int const row = tile.row - kRim + y;
    int const column = tile.column - kRim + x;
    float difference = 0.0F;
    if (row >= 0 && row < problem.height && column >= 0 && column < problem.width) {
      int64_t const place = colour * plane + int64_t{row} * problem.width + column;
      difference = Number<T>::read(later[place]) - Number<T>::read(earlier[place]);
    }
    shared.difference[colour][y][x] = difference;
  }
}

FLOWLESS_BOTH float lengthOf(Problem const& problem, float const (&change)[kFilters]) {
  float sum = 0.0F;
  FLOWLESS_UNROLL
  for (int filter = 0; filter < kFilters; ++filter) {
    // The official difference is the earlier frame less the later one; ours is its negative, hence the minus.
    float const value = problem.epsInside ? change[filter] - problem.eps : change[filter];
    sum += value * value;
  }
  return sqrtf(problem.epsInside ? sum : sum + problem.eps);
}

// `motion` is [maps, height, width].
template <typename T>
FLOWLESS_BOTH void writeTile(Problem const& problem, Tile const& tile, Shared const& shared, T* motion, int thread) {
  int const x = thread % kTileWidth;
  int const y = thread / kTileWidth * kRowsPerThread;
  int const column = tile.column + x;
  if (column >= problem.width || tile.row + y >= problem.height) {
    return;
  }
  float change[kRowsPerThread][kFilters] = {};
  for (int colour = 0; colour < kColours; ++colour) {
    for (int across = 0; across < kSize; ++across) {
      float seen[kRowsPerThread + kSize - 1];
      FLOWLESS_UNROLL
      for (int down = 0; down < kRowsPerThread + kSize - 1; ++down) {
        seen[down] = shared.difference[colour][y + down][x + across];
      }
      FLOWLESS_UNROLL
      for (int down = 0; down < kSize; ++down) {
        float const(&weight)[kFilters] = shared.weight[(colour * kSize + down) * kSize + across];
        FLOWLESS_UNROLL
        for (int filter = 0; filter < kFilters; ++filter) {
          float const factor = weight[filter];
          FLOWLESS_UNROLL
          for (int row = 0; row < kRowsPerThread; ++row) {
            change[row][filter] += factor * seen[row + down];
          }
        }
      }
    }
  }
  T* const map = motion + tile.map * problem.height * problem.width;
  FLOWLESS_UNROLL
  for (int row = 0; row < kRowsPerThread; ++row) {
    if (tile.row + y + row < problem.height) {
      map[int64_t{tile.row + y + row} * problem.width + column] = Number<T>::written(lengthOf(problem, change[row]));
    }
  }
}

}  // namespace flowless
