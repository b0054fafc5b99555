// Compiles only where the signatures of cuda_driver.h are those of CUDA's own header. The result is an enumeration
// there.
#include <cuda.h>

#include <type_traits>

#include "backends/cuda_driver.h"

namespace {

using flowless::detail::cuda::Driver;

template <typename Ours, typename Theirs>
struct Same : std::false_type {};
template <typename... Arguments>
struct Same<int (*)(Arguments...), CUresult (*)(Arguments...)> : std::true_type {};
static_assert(sizeof(CUresult) == sizeof(int) && sizeof(CUdevice_attribute) == sizeof(int),
              "enumerations are passed as int");

#define FLOWLESS_SAME(name) static_assert(Same<decltype(Driver::name), decltype(&::name)>::value, #name)
FLOWLESS_SAME(cuInit);
FLOWLESS_SAME(cuDeviceGetCount);
FLOWLESS_SAME(cuDeviceGet);
FLOWLESS_SAME(cuDeviceGetName);
FLOWLESS_SAME(cuDevicePrimaryCtxRetain);
FLOWLESS_SAME(cuDevicePrimaryCtxRelease_v2);
FLOWLESS_SAME(cuCtxPushCurrent_v2);
FLOWLESS_SAME(cuCtxPopCurrent_v2);
FLOWLESS_SAME(cuStreamCreate);
FLOWLESS_SAME(cuStreamDestroy_v2);
FLOWLESS_SAME(cuStreamSynchronize);
FLOWLESS_SAME(cuMemAlloc_v2);
FLOWLESS_SAME(cuMemFree_v2);
FLOWLESS_SAME(cuMemcpyHtoDAsync_v2);
FLOWLESS_SAME(cuMemcpyDtoHAsync_v2);

static_assert(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75 && CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == 76);
static_assert(CU_STREAM_NON_BLOCKING == 1 && CUDA_SUCCESS == 0 && CUDA_ERROR_OUT_OF_MEMORY == 2);

}  // namespace
