// For CMake: CMAKE_DL_LIBS.
#include "cuda_driver.h"

#include <dlfcn.h>

#include "../status.h"

namespace flowless::detail::cuda {
namespace {

constexpr int kSuccess = 0;
constexpr int kOutOfMemory = 2;
constexpr int kMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
constexpr int kMinor = 76;
constexpr unsigned int kNonBlocking = 1;  // CU_STREAM_NON_BLOCKING: does not wait for the default stream

template <typename Function>
bool find(void* library, char const* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

std::optional<Driver> loadDriver() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return std::nullopt;
  }
  Driver driver;
#define FLOWLESS_FIND(name) find(library, #name, driver.name)
  bool const whole = FLOWLESS_FIND(cuInit) && FLOWLESS_FIND(cuDeviceGetCount) && FLOWLESS_FIND(cuDeviceGet) &&
                     FLOWLESS_FIND(cuDeviceGetName) && FLOWLESS_FIND(cuDevicePrimaryCtxRetain) &&
                     FLOWLESS_FIND(cuDevicePrimaryCtxRelease_v2) && FLOWLESS_FIND(cuCtxPushCurrent_v2) &&
                     FLOWLESS_FIND(cuCtxPopCurrent_v2) && FLOWLESS_FIND(cuStreamCreate) &&
                     FLOWLESS_FIND(cuStreamDestroy_v2) && FLOWLESS_FIND(cuStreamSynchronize) &&
                     FLOWLESS_FIND(cuMemAlloc_v2) && FLOWLESS_FIND(cuMemFree_v2) &&
                     FLOWLESS_FIND(cuMemcpyHtoDAsync_v2) && FLOWLESS_FIND(cuMemcpyDtoHAsync_v2) &&
                     FLOWLESS_FIND(cuDeviceGetAttribute) && FLOWLESS_FIND(cuGetErrorString);
#undef FLOWLESS_FIND
  return whole ? std::optional<Driver>(driver) : std::nullopt;
}

// The library stays loaded until the process ends: the driver has threads.
std::optional<Driver> const& driver() {
  static std::optional<Driver> const loaded = loadDriver();
  return loaded;
}

std::optional<int32_t> findCapability() {
  auto const& cuda = driver();
  int count = 0;
  if (!cuda || cuda->cuInit(0) != kSuccess || cuda->cuDeviceGetCount(&count) != kSuccess || count == 0) {
    return std::nullopt;
  }
  Device device = 0;
  int major = 0;
  int minor = 0;
  if (cuda->cuDeviceGet(&device, 0) != kSuccess || cuda->cuDeviceGetAttribute(&major, kMajor, device) != kSuccess ||
      cuda->cuDeviceGetAttribute(&minor, kMinor, device) != kSuccess) {
    return std::nullopt;
  }
  return major * 10 + minor;
}

// Throws unless a call succeeded. Only after computeCapability() found a GPU, so that the driver is there.
void check(int status, char const* name) {
  if (status == kSuccess) {
    return;
  }
  char const* text = nullptr;
  driver()->cuGetErrorString(status, &text);
  throw Error(FLOWLESS_RUNTIME,
              format("The GPU refused %s: %s (CUDA error %d).%s", name, text == nullptr ? "unknown error" : text,
                     status, status == kOutOfMemory ? " Use a smaller batch, or free memory on the GPU." : ""));
}

#define FLOWLESS_CALL(name, ...) check(driver()->name(__VA_ARGS__), #name)

}  // namespace

std::optional<int32_t> computeCapability() {
  static std::optional<int32_t> const found = findCapability();
  return found;
}

std::string gpuName() {
  Device device = 0;
  char text[256] = "";
  if (!computeCapability() || driver()->cuDeviceGet(&device, 0) != kSuccess ||
      driver()->cuDeviceGetName(text, static_cast<int>(sizeof(text)), device) != kSuccess) {
    return "";
  }
  std::string name = text;
  name.erase(0, name.find_first_not_of(' '));
  name.erase(name.find_last_not_of(' ') + 1);
  return name;
}

Gpu::Entered::Entered(Gpu const& gpu) { FLOWLESS_CALL(cuCtxPushCurrent_v2, gpu.mContext); }

Gpu::Entered::~Entered() {
  Context previous = nullptr;
  driver()->cuCtxPopCurrent_v2(&previous);
}

Gpu::Gpu() {
  if (!computeCapability()) {
    throw Error(FLOWLESS_UNSUPPORTED,
                "No NVIDIA GPU can be used here (no driver, or no device). Load another target: openvino.");
  }
  FLOWLESS_CALL(cuDeviceGet, &mDevice, 0);
  FLOWLESS_CALL(cuDevicePrimaryCtxRetain, &mContext, mDevice);
  int status = driver()->cuCtxPushCurrent_v2(mContext);
  if (status == kSuccess) {
    status = driver()->cuStreamCreate(&mStream, kNonBlocking);
    Context previous = nullptr;
    driver()->cuCtxPopCurrent_v2(&previous);
  }
  if (status != kSuccess) {
    driver()->cuDevicePrimaryCtxRelease_v2(mDevice);
    check(status, "cuStreamCreate");
  }
}

Gpu::~Gpu() {
  // When the process ends the driver may have ended first: then these calls fail, and the memory is freed with the
  // process.
  if (driver()->cuCtxPushCurrent_v2(mContext) == kSuccess) {
    for (Buffer const& buffer : mBuffers) {
      driver()->cuMemFree_v2(buffer.address);
    }
    driver()->cuStreamDestroy_v2(mStream);
    Context previous = nullptr;
    driver()->cuCtxPopCurrent_v2(&previous);
  }
  driver()->cuDevicePrimaryCtxRelease_v2(mDevice);
}

Address Gpu::buffer(size_t index, size_t size) {
  if (index >= mBuffers.size()) {
    mBuffers.resize(index + 1);
  }
  Buffer& kept = mBuffers[index];
  if (kept.size < size) {
    if (kept.size > 0) {
      FLOWLESS_CALL(cuMemFree_v2, kept.address);
    }
    kept = {};
    Address address = 0;
    FLOWLESS_CALL(cuMemAlloc_v2, &address, size);
    kept = {address, size};
  }
  return kept.address;
}

void Gpu::upload(Address target, void const* source, size_t size) {
  FLOWLESS_CALL(cuMemcpyHtoDAsync_v2, target, source, size, mStream);
}

void Gpu::download(void* target, Address source, size_t size) {
  FLOWLESS_CALL(cuMemcpyDtoHAsync_v2, target, source, size, mStream);
}

void Gpu::synchronise() { FLOWLESS_CALL(cuStreamSynchronize, mStream); }

}  // namespace flowless::detail::cuda
