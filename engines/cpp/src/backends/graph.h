// The inputs and outputs of a bundle's graph, and a backend over them (engines/streaming/memory.py).
#ifndef FLOWLESS_SRC_BACKENDS_GRAPH_H
#define FLOWLESS_SRC_BACKENDS_GRAPH_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../status.h"
#include "backend.h"

namespace flowless::detail {

// An input, uint8, or an output, float32 or uint8, of a graph. The batch comes before the sizes of its row.
struct Port {
  std::string name;  // empty: the only one
  bool pixels = false;
  std::vector<int64_t> row;

  size_t rowBytes() const {
    size_t bytes = pixels ? 1 : sizeof(float);
    for (int64_t const size : row) {
      bytes *= static_cast<size_t>(size);
    }
    return bytes;
  }
};

struct Ports {
  std::vector<Port> inputs;
  std::vector<Port> outputs;
};

inline Ports portsOf(Manifest const& manifest) {
  ClipSpec const& spec = manifest.spec;
  auto const classes = static_cast<int64_t>(manifest.labels.size());
  if (manifest.memory == 0) {
    return {{{"", true, {spec.segments, spec.framesPerSegment, spec.height, spec.width, 3}}}, {{"", false, {classes}}}};
  }
  std::vector<int64_t> const memory = {manifest.memory, spec.height, spec.width, 3};
  return {{{"frame", true, {spec.height, spec.width, 3}}, {"memory", true, memory}},
          {{"scores", false, {classes}}, {"next_memory", true, memory}}};
}

// What a graph has instead of what the manifest says: an engine that is not this bundle's.
[[noreturn]] inline void refusePort(std::string const& name, std::string const& found, Port const& expected) {
  std::string sizes = "B";
  for (int64_t const size : expected.row) {
    sizes += ", " + std::to_string(size);
  }
  throw Error(FLOWLESS_DAMAGED,
              format("its graph has %s %s, and the manifest's clip and labels mean %s [%s]", quoted(name).c_str(),
                     found.c_str(), expected.pixels ? "uint8" : "float32", sizes.c_str()));
}

// The error about an engine's graph, with its file and what to do.
inline Error aboutFile(std::string const& path, Error const& error) {
  bool const damaged = error.status() == FLOWLESS_DAMAGED;
  return Error(error.status(), path + ": " + error.what() + (damaged ? ". Copy the bundle again, whole." : "."));
}

// Runs a graph whose inputs and outputs are those of portsOf, in the same order.
class GraphBackend : public Backend {
 public:
  explicit GraphBackend(Manifest const& manifest) : mPorts(portsOf(manifest)) {}

  void run(uint8_t const* clips, int32_t batch, float* scores) override {
    inferOn({clips, nullptr}, {scores, nullptr}, batch, 1);
  }

  void step(uint8_t const* frames, uint8_t const* memory, int32_t batch, float* scores, uint8_t* nextMemory) override {
    inferOn({frames, memory}, {scores, nextMemory}, batch, 2);
  }

 protected:
  using Inputs = std::array<uint8_t const*, 2>;
  using Outputs = std::array<void*, 2>;

  // Fill the outputs of `batch` rows. An output may be the buffer of an input: row i of an output is written only after
  // rows 0 to i of the inputs were read.
  virtual void infer(Inputs const& inputs, Outputs const& outputs, int32_t batch) = 0;

  Ports const mPorts;

 private:
  void inferOn(Inputs const& inputs, Outputs const& outputs, int32_t batch, size_t count) {
    if (count != mPorts.inputs.size()) {
      throw Error(FLOWLESS_INVALID, count == 1 ? "This engine takes a frame and a memory, not whole clips."
                                               : "This engine takes whole clips, not a frame and a memory.");
    }
    infer(inputs, outputs, batch);
  }
};

}  // namespace flowless::detail

#endif
