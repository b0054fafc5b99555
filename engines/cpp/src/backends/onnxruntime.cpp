// Engines that ONNX Runtime runs: on CUDA where there is a GPU and its provider starts, otherwise on the CPU
// (engines/backends/onnxruntime_backend.py, onnxruntime_cuda.py).
// For CMake: find_package(onnxruntime), or -DONNXRUNTIME_ROOT=FOLDER with include/onnxruntime_c_api.h and
// lib/libonnxruntime.so; the folder of the header on the include path; link the library; define
// FLOWLESS_HAS_ONNXRUNTIME. Headers and library from 1.16 on.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <map>

#include "../status.h"
#include "backend.h"
#include "cuda_driver.h"
#include "graph.h"
#include "threads.h"

namespace flowless::detail::onnxruntime {
namespace {

// The oldest version of the interface that has what is used here, so that a library older than the headers does as
// well.
constexpr uint32_t kApi = 16;
constexpr char const* kCuda = "CUDAExecutionProvider";

OrtApi const* api() {
  static OrtApi const* const found = OrtGetApiBase()->GetApi(kApi);
  return found;
}

std::string version() { return std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString(); }

// An object of the interface, released with `release`.
template <typename Type, void (*OrtApi::*kRelease)(Type*)>
struct Release {
  void operator()(Type* object) const { (api()->*kRelease)(object); }
};
#define FLOWLESS_OWNER(Type) std::unique_ptr<Ort##Type, Release<Ort##Type, &OrtApi::Release##Type>>
using Options = FLOWLESS_OWNER(SessionOptions);
using Session = FLOWLESS_OWNER(Session);
using Value = FLOWLESS_OWNER(Value);
using Info = FLOWLESS_OWNER(TypeInfo);
using MemoryInfo = FLOWLESS_OWNER(MemoryInfo);
using CudaOptions =
    std::unique_ptr<OrtCUDAProviderOptionsV2, Release<OrtCUDAProviderOptionsV2, &OrtApi::ReleaseCUDAProviderOptions>>;
#undef FLOWLESS_OWNER

// Throws what a call reports: the first line that is not blank.
void check(OrtStatus* status) {
  if (status == nullptr) {
    return;
  }
  std::string text = api()->GetErrorMessage(status);
  api()->ReleaseStatus(status);
  text.erase(0, std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  text.erase(std::min(text.find_first_of("\r\n"), text.size()));
  throw std::runtime_error(text.empty() ? "it gives no reason" : text);
}

// The part of a provider's message that says what failed, without the C++ signatures and source files around it.
std::string failureOf(std::string const& text) {
  for (char const* library : {"CUDA", "CUDNN", "CUBLAS"}) {
    std::string const start = std::string(library) + " failure ";
    size_t const at = text.find(start);
    if (at == std::string::npos) {
      continue;
    }
    size_t const after = at + start.size();
    bool const numbered =
        after < text.size() && (text[after] == '-' || std::isdigit(static_cast<unsigned char>(text[after])) != 0);
    if (numbered) {
      std::string const failure = text.substr(at, text.find(';', at) - at);
      return failure.substr(0, failure.find_last_not_of(' ') + 1);
    }
  }
  return text;
}

// The process's environment, never destroyed: sessions of a static object may outlive it. Only fatal errors are logged;
// every other one is reported by the call that failed.
OrtEnv* environment() {
  static OrtEnv* const made = [] {
    OrtEnv* created = nullptr;
    check(api()->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "flowless", &created));
    return created;
  }();
  return made;
}

Options sessionOptions(int32_t threads) {
  OrtSessionOptions* made = nullptr;
  check(api()->CreateSessionOptions(&made));
  Options options(made);
  check(api()->SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_FATAL));
  // Keeps int8 sums exact on processors without VNNI, where two products of an unsigned and a signed byte are added in
  // 16 bits.
  check(api()->AddSessionConfigEntry(made, "session.x64quantprecision", "1"));
  if (threadsStayAwake()) {
    check(api()->SetIntraOpNumThreads(made, threads));
    return options;
  }
  check(api()->SetIntraOpNumThreads(made, threads > 0 ? threads : usablePhysicalCores()));
  check(api()->AddSessionConfigEntry(made, "session.intra_op.allow_spinning", "0"));
  check(api()->AddSessionConfigEntry(made, "session.inter_op.allow_spinning", "0"));
  return options;
}

Session openSession(std::string const& path, OrtSessionOptions const* options) {
  OrtSession* session = nullptr;
  check(api()->CreateSession(environment(), path.c_str(), options, &session));
  return Session(session);
}

bool hasCudaProvider() {
  char** names = nullptr;
  int count = 0;
  check(api()->GetAvailableProviders(&names, &count));
  bool const found = std::any_of(names, names + count, [](char const* name) { return std::strcmp(name, kCuda) == 0; });
  check(api()->ReleaseAvailableProviders(names, count));
  return found;
}

// Add the CUDA provider to a session's options. Here fp32 means float32: TF32, with 10 bits of mantissa, is ONNX
// Runtime's default.
void addCuda(OrtSessionOptions* options) {
  OrtCUDAProviderOptionsV2* made = nullptr;
  check(api()->CreateCUDAProviderOptions(&made));
  CudaOptions const cuda(made);
  char const* const key = "use_tf32";
  char const* const value = "0";
  check(api()->UpdateCUDAProviderOptions(made, &key, &value, 1));
  check(api()->SessionOptionsAppendExecutionProvider_CUDA_V2(options, made));
}

struct Opened {
  Session session;
  std::string whyCpu;  // empty: it is on the GPU
};

Opened openOnBest(std::string const& path, int32_t threads, std::string const& device) {
  std::string reason;
  if (device == "CPU") {
    reason = "device is CPU";
  } else if (!cuda::computeCapability()) {
    reason = "there is no NVIDIA GPU here";
  } else if (!hasCudaProvider()) {
    reason = "this " + version() + " has no CUDA provider (link its GPU release)";
  } else {
    Options const options = sessionOptions(threads);
    bool started = false;
    try {
      addCuda(options.get());
      started = true;
      return {openSession(path, options.get()), ""};
    } catch (std::exception const& error) {  // a fault of the model itself is raised again on the CPU
      reason = started ? "the CUDA provider does not take this graph ("
                       : "the CUDA provider of " + version() + " does not start (";
      reason += failureOf(error.what()) + ")";
    }
  }
  if (device == "GPU") {
    throw Error(FLOWLESS_UNSUPPORTED, "device is GPU, and " + reason + ". Name no device, or the CPU");
  }
  return {openSession(path, sessionOptions(threads).get()), reason};
}

struct Names {
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
};

Names namesOf(OrtSession const* session) {
  Names names;
  OrtAllocator* allocator = nullptr;
  check(api()->GetAllocatorWithDefaultOptions(&allocator));
  auto const add = [&](std::vector<std::string>& to, size_t count, auto get) {
    for (size_t index = 0; index < count; ++index) {
      char* name = nullptr;
      check((api()->*get)(session, index, allocator, &name));
      to.emplace_back(name);
      check(api()->AllocatorFree(allocator, name));
    }
  };
  size_t inputs = 0;
  size_t outputs = 0;
  check(api()->SessionGetInputCount(session, &inputs));
  check(api()->SessionGetOutputCount(session, &outputs));
  add(names.inputs, inputs, &OrtApi::SessionGetInputName);
  add(names.outputs, outputs, &OrtApi::SessionGetOutputName);
  return names;
}

// Refuse an input or output of another type or other sizes than the port's; sizes that the graph leaves open fit.
void checkPort(std::string const& name, OrtTypeInfo const* info, Port const& port) {
  OrtTensorTypeAndShapeInfo const* tensor = nullptr;
  check(api()->CastTypeInfoToTensorInfo(info, &tensor));
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> sizes;
  if (tensor != nullptr) {
    size_t count = 0;
    check(api()->GetTensorElementType(tensor, &type));
    check(api()->GetDimensionsCount(tensor, &count));
    sizes.resize(count);
    check(api()->GetDimensions(tensor, sizes.data(), count));
  }
  auto const fits = [](int64_t expected, int64_t found) { return found < 0 || found == expected; };
  bool const same = type == (port.pixels ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) &&
                    sizes.size() == port.row.size() + 1 &&
                    std::equal(port.row.begin(), port.row.end(), sizes.begin() + 1, fits);
  if (!same) {
    std::string found = "type " + std::to_string(static_cast<int>(type)) + " [";
    for (size_t axis = 0; axis < sizes.size(); ++axis) {
      found += (axis == 0 ? "" : ", ") + (sizes[axis] < 0 ? "?" : std::to_string(sizes[axis]));
    }
    refusePort(name, found + "]", port);
  }
}

// A graph in a session of ONNX Runtime. Its tensors lie in buffers that grow to the largest batch so far, with one set
// of values per batch.
class OnnxRuntime final : public GraphBackend {
 public:
  OnnxRuntime(Manifest const& manifest, Opened opened) : GraphBackend(manifest), mOpened(std::move(opened)) {
    Names const found = namesOf(mOpened.session.get());
    if (found.inputs.size() != mPorts.inputs.size() || found.outputs.size() < mPorts.outputs.size()) {
      throw Error(FLOWLESS_DAMAGED,
                  format("its graph has %zu inputs and %zu outputs, and the manifest's has %zu and %zu",
                         found.inputs.size(), found.outputs.size(), mPorts.inputs.size(), mPorts.outputs.size()));
    }
    mNames.inputs = take(found.inputs, mPorts.inputs, &OrtApi::SessionGetInputTypeInfo);
    mNames.outputs = take(found.outputs, mPorts.outputs, &OrtApi::SessionGetOutputTypeInfo);
    for (size_t index = 0; index < mPorts.inputs.size(); ++index) {
      mInputNames.push_back(mNames.inputs[index].c_str());
      mOutputNames.push_back(mNames.outputs[index].c_str());
    }
    OrtMemoryInfo* memory = nullptr;
    check(api()->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    mMemory.reset(memory);
  }

  char const* device() const override { return mOpened.whyCpu.empty() ? "GPU" : "CPU"; }
  std::string const& whyCpu() const { return mOpened.whyCpu; }

 private:
  // The names of the ports, whose types and sizes are checked; `get` gives the type of the graph's n-th.
  template <typename Get>
  std::vector<std::string> take(std::vector<std::string> const& found, std::vector<Port> const& ports, Get get) const {
    std::vector<std::string> names;
    for (Port const& port : ports) {
      auto const place = port.name.empty() ? found.begin() : std::find(found.begin(), found.end(), port.name);
      if (place == found.end()) {
        refusePort(port.name, "not at all", port);
      }
      OrtTypeInfo* info = nullptr;
      check((api()->*get)(mOpened.session.get(), static_cast<size_t>(place - found.begin()), &info));
      Info const owned(info);
      checkPort(*place, info, port);
      names.push_back(*place);
    }
    return names;
  }

  // One batch's inputs and outputs.
  struct Batch {
    std::vector<Value> owned;
    std::vector<OrtValue const*> inputs;
    std::vector<OrtValue*> outputs;
  };

  std::vector<Port const*> ports() const {
    std::vector<Port const*> all;
    for (Port const& port : mPorts.inputs) {
      all.push_back(&port);
    }
    for (Port const& port : mPorts.outputs) {
      all.push_back(&port);
    }
    return all;
  }

  void grow(int32_t rows) {
    mRows = 0;         // until all buffers are there
    mBatches.clear();  // they refer to the buffers
    mBuffers.clear();
    for (Port const* const port : ports()) {
      mBuffers.emplace_back(port->rowBytes() * static_cast<size_t>(rows));
    }
    mRows = rows;
  }

  Batch makeBatch(int32_t rows) {
    Batch batch;
    for (Port const* const port : ports()) {
      std::vector<int64_t> shape = {rows};
      shape.insert(shape.end(), port->row.begin(), port->row.end());
      OrtValue* value = nullptr;
      auto const type = port->pixels ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
      check(api()->CreateTensorWithDataAsOrtValue(mMemory.get(), mBuffers[batch.owned.size()].data(),
                                                  port->rowBytes() * static_cast<size_t>(rows), shape.data(),
                                                  shape.size(), type, &value));
      batch.owned.emplace_back(value);
    }
    for (size_t index = 0; index < mPorts.inputs.size(); ++index) {
      batch.inputs.push_back(batch.owned[index].get());
      batch.outputs.push_back(batch.owned[mPorts.inputs.size() + index].get());
    }
    return batch;
  }

  Batch& batchOf(int32_t rows) {
    if (rows > mRows) {
      grow(rows);
    }
    auto found = mBatches.find(rows);
    return found != mBatches.end() ? found->second : mBatches.emplace(rows, makeBatch(rows)).first->second;
  }

  void infer(Inputs const& inputs, Outputs const& outputs, int32_t rows) override {
    Batch& batch = batchOf(rows);
    size_t const count = mPorts.inputs.size();
    for (size_t index = 0; index < count; ++index) {
      std::memcpy(mBuffers[index].data(), inputs[index], mPorts.inputs[index].rowBytes() * static_cast<size_t>(rows));
    }
    try {
      check(api()->Run(mOpened.session.get(), nullptr, mInputNames.data(), batch.inputs.data(), count,
                       mOutputNames.data(), count, batch.outputs.data()));
    } catch (std::exception const& error) {
      throw Error(FLOWLESS_RUNTIME, std::string("ONNX Runtime could not run the engine: ") + error.what());
    }
    for (size_t index = 0; index < count; ++index) {
      std::memcpy(outputs[index], mBuffers[count + index].data(),
                  mPorts.outputs[index].rowBytes() * static_cast<size_t>(rows));
    }
  }

  Opened mOpened;
  Names mNames;
  std::vector<char const*> mInputNames;  // of mNames, as Run takes them
  std::vector<char const*> mOutputNames;
  MemoryInfo mMemory;
  int32_t mRows = 0;
  std::vector<std::vector<uint8_t>> mBuffers;
  std::map<int32_t, Batch> mBatches;
};

}  // namespace

std::optional<std::string> whyNot(Artefact const& /* artefact */) {
  if (api() == nullptr) {
    return version() + " is here, and this build of libflowless needs 1." + std::to_string(kApi) + " or later";
  }
  return std::nullopt;
}

std::unique_ptr<Backend> open(Manifest const& manifest, Artefact const& artefact, OpenSettings const& settings) {
  std::string const path = manifest.pathOf(artefact.files.front());
  try {
    auto backend = std::make_unique<OnnxRuntime>(manifest, openOnBest(path, settings.threads, settings.device));
    if (!backend->whyCpu().empty() && settings.device.empty() && cuda::computeCapability()) {
      backend->note = "; on the CPU, because " + backend->whyCpu();
    }
    return backend;
  } catch (Error const& error) {
    throw aboutFile(path, error);
  }
}

}  // namespace flowless::detail::onnxruntime
