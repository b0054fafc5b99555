// Engines that TensorRT or TensorRT-RTX runs on the first GPU (engines/backends/tensorrt_backend.py).
// For CMake: this file is compiled once for each of the two, as an object library: with -DTENSORRT_ROOT=FOLDER, whose
// include/ has NvInferRuntime.h, NvOnnxParser.h and what they include, and define FLOWLESS_HAS_TENSORRT; with
// -DTENSORRT_RTX_ROOT=FOLDER the same for FLOWLESS_HAS_TENSORRT_RTX. Both need the folder of cuda_runtime_api.h
// (CUDAToolkit_INCLUDE_DIRS). All of these folders as SYSTEM, and only one of the two libraries' on the include path at
// a time: NvInferVersion.h decides what is compiled. Link CMAKE_DL_LIBS; nothing of NVIDIA is linked.
#include <fstream>
#include <iterator>
#include <memory>

#include "backend.h"
#include "compatibility.h"
#include "cuda_driver.h"
#include "graph.h"
#include "tensorrt_library.h"

namespace flowless::detail::FLOWLESS_TENSORRT {
namespace {

// Name, version and namespace of the PA op's plugin, as the graph's nodes name it.
constexpr char const* kPlugin[] = {"PersistenceOfAppearance", "1", "flowless"};
// Environment variable that names the plugin's library, for an engine that was built with it.
constexpr char const* kPluginVariable = "FLOWLESS_PA_PLUGIN";

// Compute capabilities that TensorRT-RTX lists up to version 1.7 (its ComputeCapability); of a later one it is not
// known here.
std::vector<int32_t> knownCapabilities() {
  std::string const& version = library().version;
  bool const listed = kRtx && version.compare(0, 2, "1.") == 0 && std::atoi(version.c_str() + 2) <= 7;
  return listed ? std::vector<int32_t>{75, 80, 86, 89, 120, 121} : std::vector<int32_t>{};
}

bool isPluginThere() { return library().pluginRegistry()->getCreator(kPlugin[0], kPlugin[1], kPlugin[2]) != nullptr; }

bool endsWith(std::string const& text, std::string const& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Register the PA op's plugin from the library that FLOWLESS_PA_PLUGIN names, or from the one among the engine's files.
// Throws Error.
void loadPlugin(Manifest const& manifest, Artefact const& artefact) {
  static std::mutex mutex;
  std::lock_guard<std::mutex> const lock(mutex);
  if (isPluginThere()) {
    return;
  }
  char const* const named = std::getenv(kPluginVariable);
  std::string path = named == nullptr ? "" : named;
  for (std::string const& file : artefact.files) {
    if (path.empty() && (endsWith(file, ".so") || endsWith(file, ".dll"))) {
      path = manifest.pathOf(file);
    }
  }
  if (!path.empty() && std::ifstream(path)) {
    library().pluginRegistry()->loadLibrary(path.c_str());
    if (isPluginThere()) {
      return;
    }
  }
  std::string const state = path.empty() ? "is not set" : "is " + quoted(path) + ", which TensorRT does not load";
  throw Error(FLOWLESS_UNSUPPORTED,
              format("This engine computes PA with the plugin %s::%s, whose library is not loaded: %s %s. Set it to "
                     "the library's path, or, "
                     "without --pa plugin, %s.",
                     kPlugin[2], kPlugin[0], kPluginVariable, state.c_str(), rebuild(artefact).c_str()));
}

std::vector<char> readFile(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad() || bytes.empty()) {
    throw Error(FLOWLESS_DAMAGED, path + ": the file cannot be read, or is empty. Copy the bundle again, whole.");
  }
  return bytes;
}

// Put the weights of a stripped engine back from the graph in the bundle that has them. Throws Error.
void refit(nvinfer1::ICudaEngine& engine, std::string const& path, Manifest const& manifest, Artefact const& artefact,
           Errors const& errors) {
  // The record names the graph beside the engine, one folder below the bundle's.
  std::string const& file = artefact.files.front();
  std::string const graph = manifest.pathOf(file.substr(0, file.rfind('/') + 1) + artefact.refitFrom);
  if (artefact.refitFrom.empty() || !std::ifstream(graph)) {
    throw Error(
        FLOWLESS_MISSING,
        format("%s: this engine has no weights of its own, and the graph %s that has them is not in the bundle. "
               "Copy the bundle again, whole, or %s.",
               path.c_str(), quoted(artefact.refitFrom).c_str(), rebuild(artefact).c_str()));
  }
  std::string reason;
  void* const handle = loadLibrary(kParserFile, reason);
  auto const create = handle == nullptr ? nullptr
                                        : reinterpret_cast<decltype(&createNvOnnxParserRefitter_INTERNAL)>(
                                              dlsym(handle, "createNvOnnxParserRefitter_INTERNAL"));
  if (create == nullptr) {
    throw Error(
        FLOWLESS_UNSUPPORTED,
        format("%s: this engine has no weights of its own, and the parser that takes them from the graph cannot "
               "be loaded (%s); set %s to its folder, or %s without --strip-weights.",
               path.c_str(), reason.c_str(), kFolderVariable, rebuild(artefact).c_str()));
  }
  std::unique_ptr<nvinfer1::IRefitter> const refitter(
      static_cast<nvinfer1::IRefitter*>(library().createRefitter(&engine, &Errors::logger(), NV_TENSORRT_VERSION)));
  std::unique_ptr<nvonnxparser::IParserRefitter> const parser(
      refitter == nullptr ? nullptr
                          : static_cast<nvonnxparser::IParserRefitter*>(
                                create(refitter.get(), &Errors::logger(), NV_ONNX_PARSER_VERSION)));
  if (parser != nullptr && parser->refitFromFile(graph.c_str()) && refitter->refitCudaEngine()) {
    return;
  }
  std::vector<std::string> first;
  for (int32_t index = 0; parser != nullptr && index < parser->getNbErrors(); ++index) {
    first.emplace_back(parser->getError(index)->desc());
  }
  throw Error(FLOWLESS_RUNTIME, format("%s: its weights could not be taken from %s (%s); %s.", path.c_str(),
                                       graph.c_str(), errors.text(first).c_str(), rebuild(artefact).c_str()));
}

// The engine of a file, with its weights put back where it was built without. Throws Error.
std::unique_ptr<nvinfer1::ICudaEngine> openEngine(nvinfer1::IRuntime& runtime, Manifest const& manifest,
                                                  Artefact const& artefact) {
  if (!kRtx && artefact.portable) {
    // A portable engine contains the runtime of the version that built it, which is code. The bundle's hashes have
    // shown that it is the file that was built; TensorRT reads it only with this permission.
    runtime.setEngineHostCodeAllowed(true);
  }
  std::string const path = manifest.pathOf(artefact.files.front());
  std::vector<char> const plan = readFile(path);
  Errors const errors;
  std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime.deserializeCudaEngine(plan.data(), plan.size()));
  if (engine == nullptr) {
    throw Error(FLOWLESS_RUNTIME,
                format("%s: %s cannot read this engine here (%s); %s.", path.c_str(), library().named().c_str(),
                       errors.text(whyInvalid(runtime, plan)).c_str(), rebuild(artefact).c_str()));
  }
  if (artefact.stripped) {
    refit(*engine, path, manifest, artefact, errors);
  }
  return engine;
}

nvinfer1::Dims dimsOf(Port const& port, int32_t batch) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<int32_t>(port.row.size()) + 1;
  dims.d[0] = batch;
  std::copy(port.row.begin(), port.row.end(), dims.d + 1);
  return dims;
}

bool same(nvinfer1::Dims const& one, nvinfer1::Dims const& other) {
  return one.nbDims == other.nbDims && std::equal(one.d, one.d + one.nbDims, other.d);
}

std::string textOf(nvinfer1::Dims const& dims) {
  std::string text;
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
    text += (axis == 0 ? "[" : ", ") + std::to_string(dims.d[axis]);
  }
  return text + "]";
}

// An engine on the first GPU, with a runtime, an execution context and a CUDA stream of its own.
class TensorRt final : public GraphBackend {
 public:
  TensorRt(Manifest const& manifest, Artefact const& artefact) : GraphBackend(manifest) {
    cuda::Gpu::Entered const entered(mGpu);
    try {
      open(manifest, artefact);
    } catch (...) {
      close();  // while the GPU's context is current
      throw;
    }
  }

  ~TensorRt() override {
    try {
      cuda::Gpu::Entered const entered(mGpu);
      close();
    } catch (Error const&) {  // the driver has ended: what remains is freed with the process
      (void)mContext.release();
      (void)mEngine.release();
      (void)mRuntime.release();
    }
  }

  char const* device() const override { return "GPU"; }

 private:
  void open(Manifest const& manifest, Artefact const& artefact) {
    Errors const errors;
    std::string const path = manifest.pathOf(artefact.files.front());
    mRuntime.reset(makeRuntime());
    if (mRuntime == nullptr) {
      throw Error(FLOWLESS_RUNTIME, format("%s: %s does not start (%s).", path.c_str(), library().named().c_str(),
                                           errors.text().c_str()));
    }
    mEngine = openEngine(*mRuntime, manifest, artefact);
    mContext.reset(mEngine->createExecutionContext());
    if (mContext == nullptr) {
      throw Error(FLOWLESS_RUNTIME, format("%s: the GPU cannot take this engine (%s). Free memory on it, or %s.",
                                           path.c_str(), errors.text().c_str(), rebuild(artefact).c_str()));
    }
    try {
      takeNames();
    } catch (Error const& error) {
      throw aboutFile(path, error);
    }
    mLargestBatch = static_cast<int32_t>(
        mEngine->getProfileShape(mInputs.front().c_str(), 0, nvinfer1::OptProfileSelector::kMAX).d[0]);
    if (mLargestBatch < 1) {
      throw Error(FLOWLESS_DAMAGED, path + ": its profile allows no batch; " + rebuild(artefact) + ".");
    }
  }

  void close() noexcept {  // in this order: TensorRT counts no references
    mContext.reset();
    mEngine.reset();
    mRuntime.reset();
  }

  // The names of the engine's tensors, in the order of the ports; refuses an engine that has others.
  void takeNames() {
    std::vector<std::string> inputs;
    std::vector<std::string> outputs;
    for (int32_t index = 0; index < mEngine->getNbIOTensors(); ++index) {
      char const* const name = mEngine->getIOTensorName(index);
      (mEngine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT ? inputs : outputs).emplace_back(name);
    }
    mInputs = ordered(inputs, mPorts.inputs, "inputs");
    mOutputs = ordered(outputs, mPorts.outputs, "outputs");
  }

  std::vector<std::string> ordered(std::vector<std::string> const& found, std::vector<Port> const& ports,
                                   char const* what) const {
    if (found.size() != ports.size()) {
      throw Error(FLOWLESS_DAMAGED,
                  format("its graph has %zu %s, and the manifest's has %zu", found.size(), what, ports.size()));
    }
    std::vector<std::string> names;
    for (Port const& port : ports) {
      names.push_back(port.name.empty() ? found.front() : port.name);
      auto const type = mEngine->getTensorDataType(names.back().c_str());
      if (std::find(found.begin(), found.end(), names.back()) == found.end() ||
          port.row.size() >= static_cast<size_t>(nvinfer1::Dims::MAX_DIMS) ||
          type != (port.pixels ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT)) {
        refusePort(names.back(), format("of type %d", static_cast<int>(type)), port);
      }
    }
    return names;
  }

  void infer(Inputs const& inputs, Outputs const& outputs, int32_t batch) override {
    cuda::Gpu::Entered const entered(mGpu);
    for (int32_t start = 0; start < batch; start += mLargestBatch) {
      inferSome(inputs, outputs, static_cast<size_t>(start), std::min(mLargestBatch, batch - start));
    }
  }

  void setShapes(int32_t rows) {
    for (size_t index = 0; index < mInputs.size(); ++index) {
      nvinfer1::Dims const dims = dimsOf(mPorts.inputs[index], rows);
      if (!mContext->setInputShape(mInputs[index].c_str(), dims)) {
        throw Error(
            FLOWLESS_INVALID,
            format("The engine refuses a %s of shape %s. Build it with a profile that allows it: --batch MIN OPT "
                   "MAX.",
                   mInputs[index].c_str(), textOf(dims).c_str()));
      }
    }
    for (size_t index = 0; index < mOutputs.size(); ++index) {
      nvinfer1::Dims const dims = mContext->getTensorShape(mOutputs[index].c_str());
      if (!same(dims, dimsOf(mPorts.outputs[index], rows))) {
        refusePort(mOutputs[index], textOf(dims), mPorts.outputs[index]);
      }
    }
    mRows = rows;
  }

  // The rows from `start` on.
  void inferSome(Inputs const& inputs, Outputs const& outputs, size_t start, int32_t rows) {
    if (rows != mRows) {
      mRows = 0;  // until all shapes are set
      setShapes(rows);
    }
    size_t const count = mInputs.size();
    for (size_t index = 0; index < count; ++index) {
      size_t const bytes = mPorts.inputs[index].rowBytes() * static_cast<size_t>(rows);
      cuda::Address const source = mGpu.buffer(index, bytes);
      mContext->setTensorAddress(mInputs[index].c_str(), reinterpret_cast<void*>(source));
      mGpu.upload(source, inputs[index] + mPorts.inputs[index].rowBytes() * start, bytes);
    }
    for (size_t index = 0; index < count; ++index) {
      cuda::Address const target =
          mGpu.buffer(count + index, mPorts.outputs[index].rowBytes() * static_cast<size_t>(rows));
      mContext->setTensorAddress(mOutputs[index].c_str(), reinterpret_cast<void*>(target));
    }
    Errors const errors;
    if (!mContext->enqueueV3(mGpu.stream())) {
      throw Error(FLOWLESS_RUNTIME, "TensorRT could not run the engine: " + errors.text() + ".");
    }
    for (size_t index = 0; index < count; ++index) {
      size_t const bytes = mPorts.outputs[index].rowBytes() * static_cast<size_t>(rows);
      auto* const target = static_cast<uint8_t*>(outputs[index]) + mPorts.outputs[index].rowBytes() * start;
      mGpu.download(target, mGpu.buffer(count + index, bytes), bytes);
    }
    mGpu.synchronise();
  }

  cuda::Gpu mGpu;
  std::unique_ptr<nvinfer1::IRuntime> mRuntime;
  std::unique_ptr<nvinfer1::ICudaEngine> mEngine;
  std::unique_ptr<nvinfer1::IExecutionContext> mContext;
  std::vector<std::string> mInputs;
  std::vector<std::string> mOutputs;
  int32_t mLargestBatch = 0;
  int32_t mRows = 0;  // of the shapes that are set
};

}  // namespace

std::optional<std::string> whyNot(Artefact const& artefact) {
  auto const capability = cuda::computeCapability();
  if (!capability) {
    return "there is no NVIDIA GPU here";
  }
  if (!library().problem.empty()) {
    return library().problem;
  }
  return mismatch(artefact, {library().version, *capability, cuda::gpuName(), thisPlatform(), knownCapabilities()});
}

std::unique_ptr<Backend> open(Manifest const& manifest, Artefact const& artefact, OpenSettings const& /* settings */) {
  if (artefact.pluginPa) {
    loadPlugin(manifest, artefact);
  }
  return std::make_unique<TensorRt>(manifest, artefact);
}

}  // namespace flowless::detail::FLOWLESS_TENSORRT
