// The inputs and outputs of a bundle's graph, and a backend over them (engines/streaming/memory.py and state.py).
#ifndef FLOWLESS_SRC_BACKENDS_GRAPH_H
#define FLOWLESS_SRC_BACKENDS_GRAPH_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../status.h"
#include "backend.h"

namespace flowless::detail {

struct Ports {
  std::vector<Port> inputs;
  std::vector<Port> outputs;
};

inline Ports portsOf(Manifest const& manifest) {
  ClipSpec const& spec = manifest.spec;
  auto const classes = static_cast<int64_t>(manifest.labels.size());
  std::vector<Port> const carried = manifest.carried();
  if (carried.empty()) {
    return {{{"", true, {spec.segments, spec.framesPerSegment, spec.height, spec.width, 3}}}, {{"", false, {classes}}}};
  }
  Ports ports = {{{"frame", true, {spec.height, spec.width, 3}}}, {{"scores", false, {classes}}}};
  for (Port const& port : carried) {
    ports.inputs.push_back(port);
    ports.outputs.push_back({"next_" + port.name, port.pixels, port.row});
  }
  return ports;
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

// Runs a graph whose inputs and outputs are those of portsOf, in the same order, as many of the one as of the other.
class GraphBackend : public Backend {
 public:
  explicit GraphBackend(Manifest const& manifest)
      : mPorts(portsOf(manifest)), mFrom(mPorts.inputs.size()), mTo(mPorts.outputs.size()) {}

  void run(uint8_t const* clips, int32_t batch, float* scores) override {
    if (mPorts.inputs.size() > 1) {
      throw Error(FLOWLESS_INVALID,
                  "This engine takes a frame and what it keeps of the frames before, not whole clips.");
    }
    mFrom[0] = clips;
    mTo[0] = scores;
    infer(mFrom, mTo, batch);
  }

  void step(uint8_t const* frames, void* const* carried, int32_t batch, float* scores) override {
    if (mPorts.inputs.size() == 1) {
      throw Error(FLOWLESS_INVALID,
                  "This engine takes whole clips, not a frame and what it keeps of the frames before.");
    }
    mFrom[0] = frames;
    mTo[0] = scores;
    for (size_t index = 1; index < mPorts.inputs.size(); ++index) {
      mFrom[index] = static_cast<uint8_t const*>(carried[index - 1]);
      mTo[index] = carried[index - 1];
    }
    infer(mFrom, mTo, batch);
  }

 protected:
  using Inputs = std::vector<uint8_t const*>;
  using Outputs = std::vector<void*>;

  // Fill the outputs of `batch` rows. An output may be the buffer of an input: row i of an output is written only after
  // rows 0 to i of the inputs were read.
  virtual void infer(Inputs const& inputs, Outputs const& outputs, int32_t batch) = 0;

  Ports const mPorts;

 private:
  Inputs mFrom;  // of the call that runs
  Outputs mTo;
};

}  // namespace flowless::detail

#endif
