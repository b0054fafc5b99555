// A backend: one library that runs one artefact. Pictures are uint8, scores float32; the batch is the first axis. A
// backend runs one call after another.
#ifndef FLOWLESS_SRC_BACKENDS_BACKEND_H
#define FLOWLESS_SRC_BACKENDS_BACKEND_H

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "../manifest.h"

namespace flowless::detail {

class Backend {
 public:
  virtual ~Backend() = default;

  // Score clips [batch, N, m, H, W, 3]; scores [batch, classes]. Throws Error (invalid) for a graph that takes a frame,
  // see step.
  virtual void run(uint8_t const* clips, int32_t batch, float* scores) = 0;

  // Graph with a memory or a state: frames [batch, H, W, 3] and a buffer for each of Manifest::carried(), [batch, ...],
  // in which the next one is then; scores [batch, classes].
  virtual void step(uint8_t const* frames, void* const* carried, int32_t batch, float* scores) = 0;

  // CPU or GPU.
  virtual char const* device() const = 0;

  // The precision that it computes in where that is not the artefact's; empty otherwise.
  std::string computes;
  // What the engine's `why` ends with, its comma or semicolon included: the reason for that precision, or for the CPU.
  std::string note;
};

struct OpenSettings {
  int32_t threads = 0;  // 0: the library chooses
  std::string device;   // CPU, GPU or empty
};

// The targets in the order in which they are tried: tensorrt, tensorrt-rtx, openvino, onnxruntime.
inline constexpr char const* kTargets[] = {"tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"};

// Why this build on this machine cannot run an artefact, in one line; nothing where it can. Loads no engine.
std::optional<std::string> whyNot(Artefact const& artefact);

// The precision that an artefact would compute in here; the artefact's own in most cases (OpenVINO without the
// instructions: fp32).
std::string computedPrecision(Artefact const& artefact);

// Open an artefact, whose files were checked. Throws Error (unsupported, runtime).
std::unique_ptr<Backend> openBackend(Manifest const& manifest, Artefact const& artefact, OpenSettings const& settings);

// Each library's part, in its own file; a build without the library has whyNot and nothing else of it.
namespace openvino {
std::optional<std::string> whyNot(Artefact const& artefact);
std::string computedPrecision(Artefact const& artefact);
std::unique_ptr<Backend> open(Manifest const& manifest, Artefact const& artefact, OpenSettings const& settings);
}  // namespace openvino
namespace onnxruntime {
std::optional<std::string> whyNot(Artefact const& artefact);
std::unique_ptr<Backend> open(Manifest const& manifest, Artefact const& artefact, OpenSettings const& settings);
}  // namespace onnxruntime
namespace tensorrt {
std::optional<std::string> whyNot(Artefact const& artefact);
std::unique_ptr<Backend> open(Manifest const& manifest, Artefact const& artefact, OpenSettings const& settings);
}  // namespace tensorrt
namespace tensorrt_rtx {  // the same source, tensorrt.cpp, compiled with the other library's headers
std::optional<std::string> whyNot(Artefact const& artefact);
std::unique_ptr<Backend> open(Manifest const& manifest, Artefact const& artefact, OpenSettings const& settings);
}  // namespace tensorrt_rtx

}  // namespace flowless::detail

#endif
