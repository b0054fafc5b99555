// The PA op as a TensorRT plugin: PersistenceOfAppearance, version 1, namespace flowless (IPluginV3, TensorRT 10 and later).
#pragma once

#include <NvInfer.h>

#if NV_TENSORRT_MAJOR < 10
#error "IPluginV3 needs TensorRT 10 or later: name its folder with -DTENSORRT_ROOT=FOLDER"
#endif

#include <cstdint>

namespace flowless {

constexpr char kPluginName[] = "PersistenceOfAppearance";
constexpr char kPluginVersion[] = "1";
constexpr char kPluginNamespace[] = "flowless";

// Inputs: clip [..., m, 3, H, W] and weight [8, 3, 7, 7]; output: motion [..., m - 1, H, W]. All FP32 or all FP16, linear;
// m is 2 or more; every size of the clip but the 3 may be dynamic. No workspace. Nothing throws: what is wrong is logged, and the
// call returns null, false or a number that is not zero.
class Persistence final : public nvinfer1::IPluginV3,
                          public nvinfer1::IPluginV3OneCore,
                          public nvinfer1::IPluginV3OneBuild,
                          public nvinfer1::IPluginV3OneRuntime {
 public:
  Persistence(float eps, bool epsInside) noexcept;

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

  int32_t getNbOutputs() const noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
                             int32_t nbInputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
                          int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                          nvinfer1::IExprBuilder& exprBuilder) noexcept override;
  bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                 int32_t nbOutputs) noexcept override;
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                          nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
  char const* getTimingCacheID() noexcept override;

  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
                        int32_t nbOutputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
                  void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  float mEps;
  int32_t mEpsInside;
  nvinfer1::PluginField mFields[2];
  nvinfer1::PluginFieldCollection mCollection;
};

// Fields: eps (a number of 0 or more; it must be given) and eps_inside (0 or 1; 0 if it is not given).
class PersistenceCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  PersistenceCreator() noexcept;

  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

 private:
  nvinfer1::PluginField mFields[2];
  nvinfer1::PluginFieldCollection mCollection;
};

}  // namespace flowless
