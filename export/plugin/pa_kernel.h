// The PA op on a GPU, without TensorRT: what the plugin launches, and what a test calls through ctypes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#if defined(_WIN32)
#define FLOWLESS_EXPORT extern "C" __declspec(dllexport)
#else
#define FLOWLESS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// The most pixels a side: a tile beyond the image's edge still has a 32-bit place.
#define FLOWLESS_PA_LARGEST 1073741824

// Puts the op on `stream` and returns at once, with cudaSuccess (0) or the error of the launch.
//
// half: 0 for FP32 tensors, 1 for FP16. clip: [stacks, frames, 3, height, width]; weight: [8, 3, 7, 7];
// motion, written: [stacks, frames - 1, height, width]; all dense, on the current device. frames is 2 or more, height and
// width are 1 to FLOWLESS_PA_LARGEST; no stacks are no work. epsInside: 0 adds eps under the root, 1 to every filter's difference.
FLOWLESS_EXPORT int flowless_pa_launch(int half, void const* clip, void const* weight, void* motion, int64_t stacks,
                                       int64_t frames, int height, int width, float eps, int epsInside,
                                       cudaStream_t stream) noexcept;
