#include "pa_plugin.h"

#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>

#include "pa_kernel.h"

namespace flowless {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr int64_t kWeightShape[] = {8, 3, 7, 7};
constexpr int32_t kStackRank = 4;  // of one stack of frames: [m, 3, H, W]
constexpr int32_t kUnknown = -1;

std::atomic<nvinfer1::ILoggerFinder*> gLoggerFinder{nullptr};

using Severity = nvinfer1::ILogger::Severity;

void say(Severity severity, char const* format, va_list arguments) noexcept {
  char text[512];
  int const start = std::snprintf(text, sizeof(text), "flowless::%s: ", kPluginName);
  std::vsnprintf(text + start, sizeof(text) - static_cast<size_t>(start), format, arguments);
  nvinfer1::ILoggerFinder* const finder = gLoggerFinder.load();
  nvinfer1::ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger != nullptr) {
    logger->log(severity, text);
  } else if (severity <= Severity::kERROR) {
    std::fprintf(stderr, "%s\n", text);
  }
}

// Always false, so that a check can end with it.
bool fail(char const* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  say(Severity::kERROR, format, arguments);
  va_end(arguments);
  return false;
}

void logInfo(char const* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  say(Severity::kVERBOSE, format, arguments);
  va_end(arguments);
}

bool isType(DataType type) noexcept { return type == DataType::kFLOAT || type == DataType::kHALF; }

// Dynamic sizes, at build time, are -1 and pass.
bool isClip(nvinfer1::Dims const& dims) noexcept {
  if (dims.nbDims < kStackRank) {
    return fail("the clip has %d axes; it must be [..., frames, 3, height, width].", dims.nbDims);
  }
  int64_t const* const stack = dims.d + dims.nbDims - kStackRank;
  if ((stack[0] != kUnknown && stack[0] < 2) || (stack[1] != kUnknown && stack[1] != kWeightShape[1])) {
    return fail("a stack has %lld frames of %lld colours; it must have 2 frames or more, of 3 colours.",
                static_cast<long long>(stack[0]), static_cast<long long>(stack[1]));
  }
  for (int32_t axis = 2; axis < kStackRank; ++axis) {
    if (stack[axis] != kUnknown && (stack[axis] < 1 || stack[axis] > FLOWLESS_PA_LARGEST)) {
      return fail("frames are %lld x %lld; both must be from 1 to %d.", static_cast<long long>(stack[2]),
                  static_cast<long long>(stack[3]), FLOWLESS_PA_LARGEST);
    }
  }
  return true;
}

bool isWeight(nvinfer1::Dims const& dims) noexcept {
  bool same = dims.nbDims == kStackRank;
  for (int32_t axis = 0; same && axis < kStackRank; ++axis) {
    same = dims.d[axis] == kWeightShape[axis];
  }
  return same || fail("the weight must be [8, 3, 7, 7], a constant of the graph.");
}

bool isCount(int32_t inputs, int32_t outputs) noexcept {
  return (inputs == 2 && outputs == 1) || fail("it has 2 inputs and 1 output, not %d and %d.", inputs, outputs);
}

bool readNumber(PluginField const& field, double& value) noexcept {
  if (field.data == nullptr || field.length != 1) {
    return fail("field %s must hold one number.", field.name);
  }
  switch (field.type) {
    case PluginFieldType::kFLOAT32: value = *static_cast<float const*>(field.data); return true;
    case PluginFieldType::kFLOAT64: value = *static_cast<double const*>(field.data); return true;
    case PluginFieldType::kINT32: value = *static_cast<int32_t const*>(field.data); return true;
    case PluginFieldType::kINT64: value = static_cast<double>(*static_cast<int64_t const*>(field.data)); return true;
    default: return fail("field %s has type %d; it must be FP32, FP64, INT32 or INT64.", field.name, static_cast<int>(field.type));
  }
}

}  // namespace

Persistence::Persistence(float eps, bool epsInside) noexcept : mEps{eps}, mEpsInside{epsInside ? 1 : 0} {}

nvinfer1::IPluginCapability* Persistence::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  fail("TensorRT asked for capability %d, which this plugin does not know.", static_cast<int>(type));
  return nullptr;
}

nvinfer1::IPluginV3* Persistence::clone() noexcept {
  auto* const copy = new (std::nothrow) Persistence(mEps, mEpsInside != 0);
  if (copy == nullptr) {
    fail("no memory for a copy of the plugin.");
  }
  return copy;
}

nvinfer1::AsciiChar const* Persistence::getPluginName() const noexcept { return kPluginName; }
nvinfer1::AsciiChar const* Persistence::getPluginVersion() const noexcept { return kPluginVersion; }
nvinfer1::AsciiChar const* Persistence::getPluginNamespace() const noexcept { return kPluginNamespace; }

int32_t Persistence::getNbOutputs() const noexcept { return 1; }

int32_t Persistence::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes,
                                        int32_t nbInputs) const noexcept {
  if (!isCount(nbInputs, nbOutputs)) {
    return 1;
  }
  if (!isType(inputTypes[0]) || inputTypes[1] != inputTypes[0]) {
    fail("the clip has type %d and the weight type %d; both must be FP32 (0) or both FP16 (1).", static_cast<int>(inputTypes[0]),
         static_cast<int>(inputTypes[1]));
    return 1;
  }
  outputTypes[0] = inputTypes[0];
  return 0;
}

int32_t Persistence::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* /*shapeInputs*/,
                                     int32_t /*nbShapeInputs*/, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                                     nvinfer1::IExprBuilder& exprBuilder) noexcept {
  if (!isCount(nbInputs, nbOutputs)) {
    return 1;
  }
  nvinfer1::DimsExprs const& clip = inputs[0];
  if (clip.nbDims < kStackRank) {
    fail("the clip has %d axes; it must be [..., frames, 3, height, width].", clip.nbDims);
    return 1;
  }
  int32_t const frames = clip.nbDims - kStackRank;
  nvinfer1::DimsExprs& motion = outputs[0];
  motion.nbDims = clip.nbDims - 1;
  for (int32_t axis = 0; axis < frames; ++axis) {
    motion.d[axis] = clip.d[axis];
  }
  motion.d[frames] = exprBuilder.operation(nvinfer1::DimensionOperation::kSUB, *clip.d[frames], *exprBuilder.constant(1));
  motion.d[frames + 1] = clip.d[frames + 2];
  motion.d[frames + 2] = clip.d[frames + 3];
  return 0;
}

bool Persistence::supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                            int32_t nbOutputs) noexcept {
  if (!isCount(nbInputs, nbOutputs) || pos < 0 || pos >= nbInputs + nbOutputs) {
    return false;
  }
  nvinfer1::PluginTensorDesc const& tensor = inOut[pos].desc;
  return tensor.format == nvinfer1::TensorFormat::kLINEAR && isType(tensor.type) && tensor.type == inOut[0].desc.type;
}

int32_t Persistence::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                                     nvinfer1::DynamicPluginTensorDesc const* /*out*/, int32_t nbOutputs) noexcept {
  return isCount(nbInputs, nbOutputs) && isClip(in[0].desc.dims) && isClip(in[0].min) && isClip(in[0].max) &&
                 isWeight(in[1].desc.dims)
             ? 0
             : 1;
}

// Whether eps is inside or outside changes no time, so one ID serves both.
char const* Persistence::getTimingCacheID() noexcept { return ""; }

int32_t Persistence::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* /*out*/,
                                   int32_t nbOutputs) noexcept {
  return isCount(nbInputs, nbOutputs) && isClip(in[0].dims) && isWeight(in[1].dims) ? 0 : 1;
}

int32_t Persistence::enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* /*outputDesc*/,
                             void const* const* inputs, void* const* outputs, void* /*workspace*/, cudaStream_t stream) noexcept {
  nvinfer1::Dims const& dims = inputDesc[0].dims;
  if (!isType(inputDesc[0].type) || !isClip(dims)) {
    return 1;
  }
  int32_t const lead = dims.nbDims - kStackRank;
  int64_t stacks = 1;
  for (int32_t axis = 0; axis < lead; ++axis) {
    stacks *= dims.d[axis];
  }
  int64_t const* const stack = dims.d + lead;
  int const error = flowless_pa_launch(inputDesc[0].type == DataType::kHALF ? 1 : 0, inputs[0], inputs[1], outputs[0], stacks,
                                       stack[0], static_cast<int>(stack[2]), static_cast<int>(stack[3]), mEps, mEpsInside, stream);
  if (error != cudaSuccess) {
    fail("the kernel could not be started: %s.", cudaGetErrorString(static_cast<cudaError_t>(error)));
    return 1;
  }
  return 0;
}

nvinfer1::IPluginV3* Persistence::attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const* Persistence::getFieldsToSerialize() noexcept {
  mFields[0] = PluginField{"eps", &mEps, PluginFieldType::kFLOAT32, 1};
  mFields[1] = PluginField{"eps_inside", &mEpsInside, PluginFieldType::kINT32, 1};
  mCollection = nvinfer1::PluginFieldCollection{2, mFields};
  return &mCollection;
}

PersistenceCreator::PersistenceCreator() noexcept
    : mFields{PluginField{"eps", nullptr, PluginFieldType::kFLOAT32, 1}, PluginField{"eps_inside", nullptr, PluginFieldType::kINT32, 1}},
      mCollection{2, mFields} {}

nvinfer1::IPluginV3* PersistenceCreator::createPlugin(nvinfer1::AsciiChar const* /*name*/, nvinfer1::PluginFieldCollection const* fc,
                                                      nvinfer1::TensorRTPhase /*phase*/) noexcept {
  double eps = -1.0;
  double epsInside = 0.0;
  for (int32_t index = 0; fc != nullptr && index < fc->nbFields; ++index) {
    PluginField const& field = fc->fields[index];
    double* const place = std::strcmp(field.name, "eps") == 0          ? &eps
                          : std::strcmp(field.name, "eps_inside") == 0 ? &epsInside
                                                                       : nullptr;
    if (place != nullptr && !readNumber(field, *place)) {
      return nullptr;
    }
  }
  if (!(eps >= 0.0) || !std::isfinite(static_cast<float>(eps))) {
    fail("eps is %g or was not given; it must be a number of 0 or more.", eps);
    return nullptr;
  }
  if (epsInside != 0.0 && epsInside != 1.0) {
    fail("eps_inside is %g; it must be 0 or 1.", epsInside);
    return nullptr;
  }
  auto* const plugin = new (std::nothrow) Persistence(static_cast<float>(eps), epsInside != 0.0);
  if (plugin == nullptr) {
    fail("no memory for the plugin.");
  } else {
    logInfo("made with eps %g, eps_inside %d.", eps, static_cast<int>(epsInside));
  }
  return plugin;
}

nvinfer1::PluginFieldCollection const* PersistenceCreator::getFieldNames() noexcept { return &mCollection; }
nvinfer1::AsciiChar const* PersistenceCreator::getPluginName() const noexcept { return kPluginName; }
nvinfer1::AsciiChar const* PersistenceCreator::getPluginVersion() const noexcept { return kPluginVersion; }
nvinfer1::AsciiChar const* PersistenceCreator::getPluginNamespace() const noexcept { return kPluginNamespace; }

}  // namespace flowless

// What IPluginRegistry::loadLibrary looks for in a plugin library.
FLOWLESS_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) {
  static flowless::PersistenceCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  nbCreators = 1;
  return creators;
}

FLOWLESS_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { flowless::gLoggerFinder.store(finder); }

// The TensorRT whose headers this was compiled with. Its loggers changed their binary interface from 10 to 11, so a library
// belongs to one of them; `load_plugin` of flowless refuses the other.
FLOWLESS_EXPORT int flowless_pa_tensorrt_major() { return NV_TENSORRT_MAJOR; }
