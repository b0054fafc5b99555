// Engines that OpenVINO runs on the CPU (engines/backends/openvino_backend.py, openvino_core.py).
// For CMake: find_package(OpenVINO COMPONENTS Runtime), of the pip package with -DOpenVINO_DIR=FOLDER/openvino/cmake;
// link openvino::runtime; define FLOWLESS_HAS_OPENVINO.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <openvino/op/constant.hpp>
#include <openvino/op/convolution.hpp>
#include <openvino/op/parameter.hpp>
#include <openvino/openvino.hpp>
#include <sstream>

#include "../status.h"
#include "backend.h"
#include "graph.h"
#include "threads.h"

namespace flowless::detail::openvino {
namespace {

constexpr char const* kDefaultHint = "f32";

// The process's one core, never destroyed: openvino_core.py has the reason (its plugins and the stack that signals
// arrive on).
ov::Core& core() {
  static ov::Core* const made = new ov::Core();
  return *made;
}

// The precision that a hint stands for; a hint that is not known stays as it is, and OpenVINO refuses it.
std::string precisionOf(std::string const& hint) {
  static std::map<std::string, std::string> const known = {{"f32", "fp32"}, {"bf16", "bf16"}, {"f16", "fp16"}};
  auto const found = known.find(hint);
  return found == known.end() ? hint : found->second;
}

std::string hintOf(Artefact const& artefact) { return artefact.hint.empty() ? kDefaultHint : artefact.hint; }

// Compile one convolution with a hint and return the hint that the compiled model reports; empty where OpenVINO
// refuses.
std::string compiledHint(std::string const& hint) {
  auto const pixels = std::make_shared<ov::op::v0::Parameter>(ov::element::f32, ov::Shape{1, 8, 8, 8});
  auto const weights =
      ov::op::v0::Constant::create(ov::element::f32, ov::Shape{8, 8, 3, 3}, std::vector<float>(8 * 8 * 9, 1.0F));
  auto const convolution = std::make_shared<ov::op::v1::Convolution>(
      pixels, weights, ov::Strides{1, 1}, ov::CoordinateDiff{1, 1}, ov::CoordinateDiff{1, 1}, ov::Strides{1, 1});
  try {
    auto const model = std::make_shared<ov::Model>(ov::OutputVector{convolution}, ov::ParameterVector{pixels});
    auto const compiled = core().compile_model(model, "CPU", ov::AnyMap{{"INFERENCE_PRECISION_HINT", hint}});
    return compiled.get_property("INFERENCE_PRECISION_HINT").as<ov::element::Type>().get_type_name();
  } catch (std::exception const&) {
    return "";
  }
}

// What OpenVINO computes in on this processor when `hint` is set. Each hint is tried once per process.
std::string computesIn(std::string const& hint) {
  static std::mutex mutex;
  static std::map<std::string, std::string> computed;
  std::lock_guard<std::mutex> const lock(mutex);
  auto found = computed.find(hint);
  if (found == computed.end()) {
    found = computed.emplace(hint, compiledHint(hint)).first;
  }
  return found->second;
}

// The line of a message without the white space around it.
std::string stripped(std::string const& line) {
  constexpr char const* kSpaces = " \t\r\v\f";
  size_t const start = line.find_first_not_of(kSpaces);
  return start == std::string::npos ? "" : line.substr(start, line.find_last_not_of(kSpaces) + 1 - start);
}

bool startsWith(std::string const& text, std::string const& start) { return text.compare(0, start.size(), start) == 0; }

// Whether a line names a place in OpenVINO's source code, or announces the lines that follow.
bool isPlace(std::string const& line) {
  constexpr char const* kPlaces[] = {
      "Exception from ", "Check '",          "FrontEnd API failed", "Model wasn't fully converted",
      "Summary:",        "While validating "};
  return std::any_of(std::begin(kPlaces), std::end(kPlaces),
                     [&](char const* start) { return startsWith(line, start); });
}

std::string operatorOf(std::string line) {
  constexpr char const* kEnd = " with a message:";
  line.erase(0, 3);
  size_t const end = line.rfind(kEnd);
  if (end != std::string::npos && end + std::strlen(kEnd) == line.size()) {
    line.erase(end);
  }
  return line;
}

// In one line why OpenVINO refused a model: the operator, where the message names one, and what is wrong with it.
std::string reasonOf(std::string const& message) {
  std::string first;
  std::string named;
  std::string rest;
  std::istringstream lines(message);
  for (std::string line; std::getline(lines, line);) {
    line = stripped(line);
    if (line.empty()) {
      continue;
    }
    first = first.empty() ? line : first;
    if (isPlace(line)) {
      continue;
    }
    if (startsWith(line, "-- ")) {
      named = named.empty() ? operatorOf(line) : named;
    } else {
      rest = rest.empty() ? line : rest;
    }
  }
  if (rest.empty()) {
    return !named.empty() ? named : first.empty() ? "it gives no reason" : first;
  }
  return named.empty() ? rest : named + ": " + rest;
}

void setBatchOne(ov::Model& model) {
  std::map<std::string, ov::PartialShape> shapes;
  for (auto const& input : model.inputs()) {
    ov::PartialShape shape = input.get_partial_shape();
    if (shape.rank().is_static() && shape.size() > 0) {
      shape[0] = 1;
    }
    shapes.emplace(input.get_any_name(), shape);
  }
  model.reshape(shapes);
}

// Refuse a file that does not begin as OpenVINO's own format: OpenVINO would try the readers of all formats, which
// print.
void checkBeginning(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  std::string beginning(512, '\0');
  file.read(beginning.data(), static_cast<std::streamsize>(beginning.size()));
  if (beginning.find("<net") == std::string::npos) {
    throw std::runtime_error(file.is_open() ? "it is not a model in OpenVINO's format" : "the file cannot be opened");
  }
}

ov::CompiledModel compile(std::string const& path, Artefact const& artefact, OpenSettings const& settings) {
  checkBeginning(path);
  auto const model = core().read_model(path);
  setBatchOne(*model);
  // OpenVINO's default is bf16 where the processor has it; here a lower precision is used only where it is set.
  ov::AnyMap map = {{"PERFORMANCE_HINT", "LATENCY"}, {"INFERENCE_PRECISION_HINT", hintOf(artefact)}};
  if (settings.threads > 0) {
    map["INFERENCE_NUM_THREADS"] = settings.threads;
  }
  if (!threadsStayAwake()) {
    map["ENABLE_CPU_PINNING"] = false;
  }
  return core().compile_model(model, "CPU", map);
}

// A graph compiled for the CPU and batch 1, which is faster per clip than a larger batch on every CPU measured.
class OpenVino final : public GraphBackend {
 public:
  OpenVino(Manifest const& manifest, ov::CompiledModel const& compiled) : GraphBackend(manifest), mCompiled(compiled) {
    mRequest = mCompiled.create_infer_request();
    if (mCompiled.inputs().size() != mPorts.inputs.size() || mCompiled.outputs().size() < mPorts.outputs.size()) {
      throw Error(
          FLOWLESS_DAMAGED,
          format("its graph has %zu inputs and %zu outputs, and the manifest's has %zu and %zu",
                 mCompiled.inputs().size(), mCompiled.outputs().size(), mPorts.inputs.size(), mPorts.outputs.size()));
    }
    for (Port const& port : mPorts.inputs) {
      mInputs.push_back(take(port.name.empty() ? mCompiled.input(0) : mCompiled.input(port.name), port));
    }
    for (Port const& port : mPorts.outputs) {
      mOutputs.push_back(take(port.name.empty() ? mCompiled.output(0) : mCompiled.output(port.name), port));
    }
  }

  char const* device() const override { return "CPU"; }

 private:
  // A tensor of the request, in whose memory OpenVINO reads or writes at every call.
  struct Place {
    ov::Tensor tensor;
    void* data;
    size_t bytes;
  };

  Place take(ov::Output<ov::Node const> const& output, Port const& port) {
    ov::Shape expected = {1};
    for (int64_t const size : port.row) {
      expected.push_back(static_cast<size_t>(size));
    }
    ov::element::Type const type = port.pixels ? ov::element::u8 : ov::element::f32;
    if (output.get_element_type() != type || output.get_partial_shape() != ov::PartialShape(expected)) {
      std::ostringstream found;
      found << output.get_element_type() << " " << output.get_partial_shape();
      refusePort(port.name.empty() ? output.get_any_name() : port.name, found.str(), port);
    }
    ov::Tensor tensor(type, expected);
    mRequest.set_tensor(output, tensor);
    return {tensor, tensor.data(), tensor.get_byte_size()};
  }

  void infer(Inputs const& inputs, Outputs const& outputs, int32_t batch) override {
    try {
      for (size_t row = 0; row < static_cast<size_t>(batch); ++row) {
        for (size_t index = 0; index < mInputs.size(); ++index) {
          std::memcpy(mInputs[index].data, inputs[index] + row * mInputs[index].bytes, mInputs[index].bytes);
        }
        mRequest.infer();
        for (size_t index = 0; index < mOutputs.size(); ++index) {
          std::memcpy(static_cast<uint8_t*>(outputs[index]) + row * mOutputs[index].bytes, mOutputs[index].data,
                      mOutputs[index].bytes);
        }
      }
    } catch (std::exception const& error) {
      throw Error(FLOWLESS_RUNTIME, "OpenVINO could not run the engine: " + reasonOf(error.what()));
    }
  }

  ov::CompiledModel mCompiled;
  ov::InferRequest mRequest;
  std::vector<Place> mInputs;
  std::vector<Place> mOutputs;
};

}  // namespace

std::optional<std::string> whyNot(Artefact const& /* artefact */) { return std::nullopt; }

std::string computedPrecision(Artefact const& artefact) {
  std::string const hint = hintOf(artefact);
  if (artefact.precision == "int8") {
    return artefact.precision;
  }
  std::string const found = hint == kDefaultHint ? hint : computesIn(hint);
  return precisionOf(found.empty() ? hint : found);
}

std::unique_ptr<Backend> open(Manifest const& manifest, Artefact const& artefact, OpenSettings const& settings) {
  std::string const path = manifest.pathOf(artefact.files.front());
  try {
    auto backend = std::make_unique<OpenVino>(manifest, compile(path, artefact, settings));
    std::string const computed = openvino::computedPrecision(artefact);
    if (computed != artefact.precision) {
      backend->computes = computed;
    }
    std::string const meant = precisionOf(hintOf(artefact));
    if (artefact.precision != "int8" && computed != meant) {
      backend->note = ", computing in " + computed + ": OpenVINO does not compute in " + meant + " on this processor";
    }
    return backend;
  } catch (Error const& error) {
    throw aboutFile(path, error);
  } catch (std::exception const& error) {
    throw std::runtime_error(reasonOf(error.what()));
  }
}

}  // namespace flowless::detail::openvino
