// The calls of the CUDA driver API that an engine needs, from libcuda, which is part of NVIDIA's driver and loaded when
// first needed (flowless/cuda_driver.py). No toolkit is linked, and no header of it is included.
#ifndef FLOWLESS_SRC_BACKENDS_CUDA_DRIVER_H
#define FLOWLESS_SRC_BACKENDS_CUDA_DRIVER_H

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

struct CUctx_st;  // CUDA's own names, so that a handle of ours is one of theirs
struct CUstream_st;

namespace flowless::detail::cuda {

using Device = int;
using Context = CUctx_st*;
using Stream = CUstream_st*;
using Address = unsigned long long;

// The first GPU's compute capability, 86 for 8.6; nothing where no GPU can be used. Found once per process.
std::optional<int32_t> computeCapability();

// The first GPU's name, such as NVIDIA A10; empty where no GPU can be used or the driver does not report a name.
std::string gpuName();

// The first GPU's primary context, one stream, and device buffers that grow on demand. For one thread at a time.
class Gpu {
 public:
  // Throws Error (unsupported) where there is no GPU.
  Gpu();
  ~Gpu();
  Gpu(Gpu const&) = delete;
  Gpu& operator=(Gpu const&) = delete;

  Stream stream() const { return mStream; }

  // Makes the context current in this thread; the thread's own context, if any, is restored afterwards.
  class Entered {
   public:
    explicit Entered(Gpu const& gpu);
    ~Entered();
    Entered(Entered const&) = delete;
    Entered& operator=(Entered const&) = delete;
  };

  // Within Entered. The device address of buffer `index`, which has at least `size` bytes. Throws Error (runtime).
  Address buffer(size_t index, size_t size);
  // Within Entered. Copy to the device, on the stream.
  void upload(Address target, void const* source, size_t size);
  // Within Entered. Copy from the device, on the stream; `synchronise` waits for all copies.
  void download(void* target, Address source, size_t size);
  void synchronise();

 private:
  struct Buffer {
    Address address = 0;
    size_t size = 0;
  };
  Device mDevice = 0;
  Context mContext = nullptr;
  Stream mStream = nullptr;
  std::vector<Buffer> mBuffers;
};

// The driver's functions, with the signatures of cuda.h but for the result, which is its enumeration there.
struct Driver {
  int (*cuInit)(unsigned int) = nullptr;
  int (*cuDeviceGetCount)(int*) = nullptr;
  int (*cuDeviceGet)(Device*, int) = nullptr;
  int (*cuDeviceGetName)(char*, int, Device) = nullptr;
  int (*cuDevicePrimaryCtxRetain)(Context*, Device) = nullptr;
  int (*cuDevicePrimaryCtxRelease_v2)(Device) = nullptr;
  int (*cuCtxPushCurrent_v2)(Context) = nullptr;
  int (*cuCtxPopCurrent_v2)(Context*) = nullptr;
  int (*cuStreamCreate)(Stream*, unsigned int) = nullptr;
  int (*cuStreamDestroy_v2)(Stream) = nullptr;
  int (*cuStreamSynchronize)(Stream) = nullptr;
  int (*cuMemAlloc_v2)(Address*, size_t) = nullptr;
  int (*cuMemFree_v2)(Address) = nullptr;
  int (*cuMemcpyHtoDAsync_v2)(Address, void const*, size_t, Stream) = nullptr;
  int (*cuMemcpyDtoHAsync_v2)(void*, Address, size_t, Stream) = nullptr;
  int (*cuDeviceGetAttribute)(int*, int, Device) = nullptr;  // the second is an enumeration in cuda.h
  int (*cuGetErrorString)(int, char const**) = nullptr;      // the first is one
};

}  // namespace flowless::detail::cuda

#endif
