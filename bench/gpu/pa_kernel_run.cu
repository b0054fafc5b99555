// Runs the TensorRT plugin's PA kernel on small and odd sizes in both types, for compute-sanitizer.

#include "pa_kernel.h"
#include <cuda_fp16.h>
#include <cstdio>
#include <vector>

#define OK(call)                                             \
  do {                                                       \
    int code = (int)(call);                                  \
    if (code) {                                              \
      std::printf("error %d in line %d\n", code, __LINE__); \
      return 1;                                              \
    }                                                        \
  } while (0)

template <typename T>
int run(int half, long stacks, long frames, int height, int width) {
  std::vector<T> x(stacks * frames * 3 * height * width), kernel(8 * 147), y(stacks * (frames - 1) * height * width);
  for (size_t i = 0; i < x.size(); ++i) x[i] = T(float((i * 2654435761u >> 13) & 255));
  for (size_t i = 0; i < kernel.size(); ++i) kernel[i] = T(0.002f * (float((i * 40503u) & 255) - 127));
  void *a, *b, *c;
  OK(cudaMalloc(&a, x.size() * sizeof(T)));
  OK(cudaMalloc(&b, kernel.size() * sizeof(T)));
  OK(cudaMalloc(&c, y.size() * sizeof(T)));
  OK(cudaMemcpy(a, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  OK(cudaMemcpy(b, kernel.data(), kernel.size() * sizeof(T), cudaMemcpyHostToDevice));
  OK(flowless_pa_launch(half, a, b, c, stacks, frames, height, width, 1e-6f, 0, nullptr));
  OK(cudaDeviceSynchronize());
  OK(cudaMemcpy(y.data(), c, y.size() * sizeof(T), cudaMemcpyDeviceToHost));
  OK(cudaFree(a));
  OK(cudaFree(b));
  OK(cudaFree(c));
  return 0;
}

int main() {
  for (int height : {1, 23, 64})
    for (int width : {1, 41, 96})
      if (run<float>(0, 2, 3, height, width) || run<__half>(1, 2, 3, height, width)) return 1;
  return 0;
}
