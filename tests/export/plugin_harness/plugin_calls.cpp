// Calls the plugin library as TensorRT would, without TensorRT and without a GPU, and prints what comes back: one `name: value` a line.
#include <NvInfer.h>
#include <dlfcn.h>

#include <cstdio>
#include <deque>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

std::string gErrors;

class Logger final : public ILogger {
 public:
  void log(Severity severity, char const* text) noexcept override {
    if (severity <= Severity::kERROR) {
      gErrors += (gErrors.empty() ? "" : " | ") + std::string{text};
    }
  }
};

class Finder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &mLogger; }

 private:
  Logger mLogger;
};

// A size of a tensor as text: "B" for one that is not known yet, "(m - 1)" for what is made of it.
class Size final : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  explicit Size(std::string text) : text{std::move(text)} { mImpl = this; }
  bool isConstant() const override { return text.find_first_not_of("0123456789") == std::string::npos; }
  int64_t getConstantValue() const override { return std::stoll(text); }
  bool isSizeTensor() const override { return false; }
  std::string const text;
};

class Sizes final : public IExprBuilder, public apiv::VExprBuilder {
 public:
  Sizes() { mImpl = this; }
  Size const* named(std::string text) { return &mKept.emplace_back(std::move(text)); }
  IDimensionExpr const* constant(int64_t value) override { return named(std::to_string(value)); }
  IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& first, IDimensionExpr const& second) override {
    char const* const sign = op == DimensionOperation::kSUB ? " - " : " ? ";
    return named("(" + static_cast<Size const&>(first).text + sign + static_cast<Size const&>(second).text + ")");
  }
  IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override { return nullptr; }

 private:
  std::deque<Size> mKept;
};

void print(std::string const& name, std::string const& value) { std::printf("%s: %s\n", name.c_str(), value.c_str()); }

void printErrors(std::string const& name) {
  print(name, gErrors);
  gErrors.clear();
}

IPluginV3OneBuild& build(IPluginV3& plugin) {
  return *static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime& runtime(IPluginV3& plugin) {
  return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

std::string fieldsOf(IPluginV3* plugin) {
  if (plugin == nullptr) {
    return "none";
  }
  std::string text;
  PluginFieldCollection const* const fields = runtime(*plugin).getFieldsToSerialize();
  for (int32_t index = 0; index < fields->nbFields; ++index) {
    PluginField const& field = fields->fields[index];
    char value[64];
    std::snprintf(value, sizeof(value), "%.9g", field.type == PluginFieldType::kFLOAT32 ? *static_cast<float const*>(field.data)
                                                                                        : *static_cast<int32_t const*>(field.data));
    text += (index == 0 ? "" : " ") + std::string{field.name} + "=" + value;
  }
  return text;
}

std::string shapeOf(IPluginV3& plugin, std::vector<std::string> const& clip) {
  Sizes sizes;
  DimsExprs inputs[2]{};
  DimsExprs output{};
  inputs[0].nbDims = static_cast<int32_t>(clip.size());
  for (size_t axis = 0; axis < clip.size(); ++axis) {
    inputs[0].d[axis] = sizes.named(clip[axis]);
  }
  inputs[1].nbDims = 4;
  if (build(plugin).getOutputShapes(inputs, 2, nullptr, 0, &output, 1, sizes) != 0) {
    return "none";
  }
  std::string text;
  for (int32_t axis = 0; axis < output.nbDims; ++axis) {
    text += (axis == 0 ? "" : " ") + static_cast<Size const*>(output.d[axis])->text;
  }
  return text;
}

Dims dims(std::vector<int64_t> const& sizes) {
  Dims found{};
  found.nbDims = static_cast<int32_t>(sizes.size());
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    found.d[axis] = sizes[axis];
  }
  return found;
}

std::string configure(IPluginV3& plugin, std::vector<int64_t> const& clip, std::vector<int64_t> const& most,
                      std::vector<int64_t> const& weight) {
  DynamicPluginTensorDesc in[2]{};
  DynamicPluginTensorDesc out{};
  in[0].desc.dims = dims(clip);
  in[0].min = dims(most);
  in[0].max = dims(most);
  in[1].desc.dims = in[1].min = in[1].max = dims(weight);
  return std::to_string(build(plugin).configurePlugin(in, 2, &out, 1));
}

std::string change(IPluginV3& plugin, std::vector<int64_t> const& clip) {
  PluginTensorDesc in[2]{};
  PluginTensorDesc out{};
  in[0].dims = dims(clip);
  in[1].dims = dims({8, 3, 7, 7});
  return std::to_string(runtime(plugin).onShapeChange(in, 2, &out, 1));
}

// The types of clip, weight and motion that the plugin takes in one format, as TensorRT requests them: one tensor after the other.
std::string combinations(IPluginV3& plugin, TensorFormat format) {
  std::string text;
  std::vector<DataType> const types{DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kBF16};
  for (DataType clip : types) {
    for (DataType weight : types) {
      for (DataType motion : types) {
        DynamicPluginTensorDesc tensors[3]{};
        DataType const wanted[] = {clip, weight, motion};
        bool all = true;
        for (int32_t index = 0; index < 3; ++index) {
          tensors[index].desc.type = wanted[index];
          tensors[index].desc.format = format;
          all = all && build(plugin).supportsFormatCombination(index, tensors, 2, 1);
        }
        if (all) {
          text += (text.empty() ? "" : " ") + std::to_string(static_cast<int>(clip)) + std::to_string(static_cast<int>(weight)) +
                  std::to_string(static_cast<int>(motion));
        }
      }
    }
  }
  return text;
}

std::string outputType(IPluginV3& plugin, DataType clip, DataType weight) {
  DataType const inputs[] = {clip, weight};
  DataType output = DataType::kBOOL;
  return build(plugin).getOutputDataTypes(&output, 1, inputs, 2) == 0 ? std::to_string(static_cast<int>(output)) : "none";
}

void makeAndSerialise(IPluginCreatorV3One& creator) {
  auto const make = [&creator](std::vector<PluginField> const& fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    PluginFieldCollection const given{static_cast<int32_t>(fields.size()), fields.data()};
    return creator.createPlugin("pa", &given, phase);
  };
  float const eps = 1e-12F;
  float const negative = -1.0F;
  double const wide = 0.25;
  int32_t const one = 1;
  int32_t const two = 2;
  int64_t const yes = 1;
  PluginField const epsField{"eps", &eps, PluginFieldType::kFLOAT32, 1};
  IPluginV3* const first = make({epsField, {"eps_inside", &one, PluginFieldType::kINT32, 1}});
  print("made", fieldsOf(first));
  PluginFieldCollection const* const kept = runtime(*first).getFieldsToSerialize();
  IPluginV3* const again = creator.createPlugin("pa", kept, TensorRTPhase::kRUNTIME);
  delete first;
  print("made again", fieldsOf(again));
  IPluginV3* const copy = again->clone();
  delete again;
  print("cloned", fieldsOf(copy));
  IPluginV3* const attached = runtime(*copy).attachToContext(nullptr);
  delete copy;
  print("attached", fieldsOf(attached));
  delete attached;
  IPluginV3* const plain = make({epsField});
  print("without eps_inside", fieldsOf(plain));
  delete plain;
  IPluginV3* const other = make({{"eps", &wide, PluginFieldType::kFLOAT64, 1}, {"eps_inside", &yes, PluginFieldType::kINT64, 1}});
  print("wide fields", fieldsOf(other));
  delete other;
  printErrors("errors while right");
  print("without eps", fieldsOf(make({})));
  printErrors("error without eps");
  print("negative eps", fieldsOf(make({{"eps", &negative, PluginFieldType::kFLOAT32, 1}})));
  printErrors("error of a negative eps");
  print("eps as text", fieldsOf(make({{"eps", "1e-12", PluginFieldType::kCHAR, 1}})));
  printErrors("error of eps as text");
  print("eps_inside of 2", fieldsOf(make({epsField, {"eps_inside", &two, PluginFieldType::kINT32, 1}})));
  printErrors("error of eps_inside of 2");
}

void askForShapes(IPluginV3& plugin) {
  print("known shape", shapeOf(plugin, {"2", "8", "4", "3", "15", "16"}));
  print("dynamic shape", shapeOf(plugin, {"B", "8", "m", "3", "H", "W"}));
  print("shape of one stack", shapeOf(plugin, {"m", "3", "H", "W"}));
  print("shape of an image", shapeOf(plugin, {"3", "H", "W"}));
  printErrors("error of an image");
  std::vector<int64_t> const weight{8, 3, 7, 7};
  print("configured", configure(plugin, {-1, 8, 4, 3, -1, -1}, {8, 8, 4, 3, 1, 225}, weight));
  print("changed", change(plugin, {5, 8, 4, 3, 1, 225}));
  printErrors("errors of right shapes");
  print("one frame", configure(plugin, {-1, 8, 1, 3, 9, 9}, {8, 8, 1, 3, 9, 9}, weight));
  printErrors("error of one frame");
  print("too wide at most", configure(plugin, {-1, 8, 4, 3, 9, -1}, {8, 8, 4, 3, 9, int64_t{1} << 31}, weight));
  printErrors("error of too wide");
  print("four colours", change(plugin, {5, 8, 4, 4, 9, 9}));
  printErrors("error of four colours");
  print("other filters", configure(plugin, {-1, 8, 4, 3, 9, 9}, {8, 8, 4, 3, 9, 9}, {8, 3, 5, 5}));
  printErrors("error of other filters");
}

}  // namespace

int main(int count, char** arguments) {
  void* const library = count == 2 ? dlopen(arguments[1], RTLD_NOW) : nullptr;
  if (library == nullptr) {
    std::printf("library: %s\n", count == 2 ? dlerror() : "give its path");
    return 1;
  }
  auto const getCreators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  auto const setLoggerFinder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  Finder finder;
  setLoggerFinder(&finder);
  int32_t creators = 0;
  auto& creator = *static_cast<IPluginCreatorV3One*>(getCreators(creators)[0]);
  print("creators", std::to_string(creators));
  print("creator", std::string{creator.getPluginNamespace()} + "::" + creator.getPluginName() + " " + creator.getPluginVersion());
  makeAndSerialise(creator);
  float const eps = 1e-6F;
  PluginField const field{"eps", &eps, PluginFieldType::kFLOAT32, 1};
  PluginFieldCollection const fields{1, &field};
  IPluginV3& plugin = *creator.createPlugin("pa", &fields, TensorRTPhase::kBUILD);
  askForShapes(plugin);
  print("linear", combinations(plugin, TensorFormat::kLINEAR));
  print("channels last", combinations(plugin, TensorFormat::kHWC8));
  print("FP32 to", outputType(plugin, DataType::kFLOAT, DataType::kFLOAT));
  print("FP16 to", outputType(plugin, DataType::kHALF, DataType::kHALF));
  printErrors("errors of right types");
  print("mixed to", outputType(plugin, DataType::kHALF, DataType::kFLOAT));
  printErrors("error of mixed types");
  print("workspace", std::to_string(build(plugin).getWorkspaceSize(nullptr, 2, nullptr, 1)));
  PluginTensorDesc descriptions[2]{};
  descriptions[0].dims = dims({0, 8, 4, 3, 9, 9});
  descriptions[1].dims = dims({8, 3, 7, 7});
  void const* const inputs[2]{};
  void* const outputs[1]{};
  print("an empty batch", std::to_string(runtime(plugin).enqueue(descriptions, descriptions, inputs, outputs, nullptr, nullptr)));
  printErrors("errors of an empty batch");
  delete &plugin;
  setLoggerFinder(nullptr);
  return 0;
}
