// Which library opens an artefact. For CMake: define FLOWLESS_HAS_OPENVINO, FLOWLESS_HAS_ONNXRUNTIME,
// FLOWLESS_HAS_TENSORRT and FLOWLESS_HAS_TENSORRT_RTX for this file where the parts of these libraries are compiled in;
// each part's first lines say what it needs.
#include "backend.h"

#include "../status.h"
#include "compatibility.h"

namespace flowless::detail {
namespace {

using WhyNot = std::optional<std::string> (*)(Artefact const&);
using Open = std::unique_ptr<Backend> (*)(Manifest const&, Artefact const&, OpenSettings const&);

struct Library {
  char const* target;
  char const* name;
  char const* option;  // of CMake, that adds it
  bool cpu;            // where it can run
  bool gpu;
  WhyNot whyNot;  // null: this build does not have it
  Open open;
};

constexpr Library kLibraries[] = {
#ifdef FLOWLESS_HAS_TENSORRT
    {"tensorrt", "TensorRT", "TENSORRT_ROOT", false, true, tensorrt::whyNot, tensorrt::open},
#else
    {"tensorrt", "TensorRT", "TENSORRT_ROOT", false, true, nullptr, nullptr},
#endif
#ifdef FLOWLESS_HAS_TENSORRT_RTX
    {"tensorrt-rtx", "TensorRT-RTX", "TENSORRT_RTX_ROOT", false, true, tensorrt_rtx::whyNot, tensorrt_rtx::open},
#else
    {"tensorrt-rtx", "TensorRT-RTX", "TENSORRT_RTX_ROOT", false, true, nullptr, nullptr},
#endif
#ifdef FLOWLESS_HAS_OPENVINO
    {"openvino", "OpenVINO", "OpenVINO_DIR", true, false, openvino::whyNot, openvino::open},
#else
    {"openvino", "OpenVINO", "OpenVINO_DIR", true, false, nullptr, nullptr},
#endif
#ifdef FLOWLESS_HAS_ONNXRUNTIME
    {"onnxruntime", "ONNX Runtime", "ONNXRUNTIME_ROOT", true, true, onnxruntime::whyNot, onnxruntime::open},
#else
    {"onnxruntime", "ONNX Runtime", "ONNXRUNTIME_ROOT", true, true, nullptr, nullptr},
#endif
};

Library const* find(std::string const& target) {
  for (Library const& library : kLibraries) {
    if (library.target == target) {
      return &library;
    }
  }
  return nullptr;
}

void checkDevice(Library const& library, std::string const& device) {
  if (device.empty() || (device == "CPU" && library.cpu) || (device == "GPU" && library.gpu)) {
    return;
  }
  if (device != "CPU" && device != "GPU") {
    throw Error(FLOWLESS_INVALID,
                "device is " + quoted(device) + "; it must be CPU or GPU, or nothing for the target's own.");
  }
  throw Error(FLOWLESS_UNSUPPORTED, format("device is %s; %s runs on the %s alone. Name no device, or another target.",
                                           device.c_str(), library.target, library.cpu ? "CPU" : "GPU"));
}

}  // namespace

std::optional<std::string> whyNot(Artefact const& artefact) {
  Library const* const library = find(artefact.target);
  if (library == nullptr) {
    return "this build of libflowless has no target " + quoted(artefact.target);
  }
  if (library->whyNot == nullptr) {
    return format("this build of libflowless has no %s (configure with -D%s=FOLDER)", library->name, library->option);
  }
  return library->whyNot(artefact);
}

std::string computedPrecision([[maybe_unused]] Artefact const& artefact) {
#ifdef FLOWLESS_HAS_OPENVINO
  if (artefact.target == "openvino") {
    return openvino::computedPrecision(artefact);
  }
#endif
  return artefact.precision;
}

std::unique_ptr<Backend> openBackend(Manifest const& manifest, Artefact const& artefact, OpenSettings const& settings) {
  if (auto const reason = whyNot(artefact)) {
    throw Error(FLOWLESS_UNSUPPORTED, format("%s: the engine %s %s does not run here: %s.", manifest.folder.c_str(),
                                             artefact.target.c_str(), artefact.precision.c_str(), reason->c_str()));
  }
  Library const& library = *find(artefact.target);
  checkDevice(library, settings.device);
  try {
    return library.open(manifest, artefact, settings);
  } catch (Error const&) {
    throw;
  } catch (std::exception const& error) {  // the libraries' own types, with the reason in one line
    throw Error(FLOWLESS_RUNTIME,
                format("%s: %s cannot load it (%s); %s.", manifest.pathOf(artefact.files.front()).c_str(),
                       artefact.target.c_str(), error.what(), rebuild(artefact).c_str()));
  }
}

}  // namespace flowless::detail
