// The fused kernel: threads and barriers around pa_tile.h.
#include "pa_kernel.h"

#include <cuda_fp16.h>

#include "pa_tile.h"

namespace flowless {

template <>
struct Number<__half> {
  static FLOWLESS_BOTH float read(__half value) { return __half2float(value); }
  static FLOWLESS_BOTH __half written(float value) { return __float2half_rn(value); }
};

namespace {

constexpr int64_t kMostBlocks = 2147483647;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    persistenceOfAppearance(Problem const problem, T const* __restrict__ clip, T const* __restrict__ weight, T* __restrict__ motion) {
  __shared__ Shared shared;
  int const thread = static_cast<int>(threadIdx.x);
  loadWeights(weight, shared, thread);
  int64_t const tiles = tileCount(problem);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    Tile const tile = tileAt(problem, index);
    loadDifferences(problem, tile, clip, shared, thread);
    __syncthreads();
    writeTile(problem, tile, shared, motion, thread);
    __syncthreads();
  }
}

template <typename T>
void launch(Problem const& problem, void const* clip, void const* weight, void* motion, cudaStream_t stream) {
  int64_t const tiles = tileCount(problem);
  auto const blocks = static_cast<unsigned int>(tiles < kMostBlocks ? tiles : kMostBlocks);
  persistenceOfAppearance<T><<<blocks, kThreads, 0, stream>>>(problem, static_cast<T const*>(clip), static_cast<T const*>(weight),
                                                              static_cast<T*>(motion));
}

}  // namespace
}  // namespace flowless

int flowless_pa_launch(int half, void const* clip, void const* weight, void* motion, int64_t stacks, int64_t frames, int height,
                       int width, float eps, int epsInside, cudaStream_t stream) noexcept {
  if (stacks < 0 || frames < 2 || height < 1 || height > FLOWLESS_PA_LARGEST || width < 1 || width > FLOWLESS_PA_LARGEST) {
    return cudaErrorInvalidValue;
  }
  if (stacks == 0) {
    return cudaSuccess;
  }
  flowless::Problem const problem{stacks * (frames - 1), frames, height, width, eps, epsInside != 0};
  if (half != 0) {
    flowless::launch<__half>(problem, clip, weight, motion, stream);
  } else {
    flowless::launch<float>(problem, clip, weight, motion, stream);
  }
  return cudaGetLastError();
}
