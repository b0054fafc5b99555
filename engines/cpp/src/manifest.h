// A bundle's manifest.json: read, checked, and its files compared with their hashes (engines/bundle/manifest.py).
#ifndef FLOWLESS_SRC_MANIFEST_H
#define FLOWLESS_SRC_MANIFEST_H

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "clip_spec.h"

namespace flowless::detail {

// A named input or output of a graph. The batch comes before the sizes of its row.
struct Port {
  std::string name;     // empty: the only one
  bool pixels = false;  // uint8; otherwise float32
  std::vector<int64_t> row;

  size_t rowBytes() const {
    size_t bytes = pixels ? 1 : sizeof(float);
    for (int64_t const size : row) {
      bytes *= static_cast<size_t>(size);
    }
    return bytes;
  }
};

// Tensors of a streaming graph's state (engines/streaming/state.py), whose others are the network's own.
inline constexpr char const* kStarted = "started";    // float32 [2]: zeros at the start, then ones
inline constexpr char const* kFeatures = "features";  // float32 [N - 1, D]: of the steps before, the oldest first
inline constexpr char const* kFrames = "frames";      // uint8 [m - 1, H, W, 3]: earlier frames of the newest segment

struct FileRecord {
  std::string sha256;
  uint64_t bytes = 0;
};

// One engine of a bundle, with what choosing and opening it needs.
struct Artefact {
  std::string target;
  std::string precision;
  std::string status;
  std::vector<std::string> files;  // relative to the bundle, the one to load first
  std::map<std::string, std::string> versions;
  // options
  std::string hint;      // OpenVINO's precision hint; empty: f32
  std::string platform;  // TensorRT: linux-x86_64
  std::string gpu;       // TensorRT: the GPU's name
  int32_t gpuComputeCapability = 0;
  std::vector<int32_t> computeCapabilities;
  bool portable = false;
  bool stripped = false;
  std::string refitFrom;
  bool pluginPa = false;  // options.pa == "plugin"
  // figures
  std::optional<double> latencyMs;  // figures.latency_ms_p50
  std::string machine;              // figures.machine
};

// A row of `flowless build --precision auto` that is recommended on a machine.
struct Recommendation {
  std::string machine;
  std::string target;
  std::string precision;
};

struct Manifest {
  std::string folder;
  std::string model;
  ClipSpec spec;
  std::vector<std::string> labels;
  int32_t memory = 0;       // earlier frames that an online graph takes; 0: whole clips, or a state
  std::vector<Port> state;  // of a streaming graph, in the order of its inputs; empty: it has none
  std::string graph;
  std::string reference;  // a packed bundle has no such file
  std::map<std::string, FileRecord> files;
  std::vector<Artefact> artefacts;
  std::vector<Recommendation> recommendations;

  // The path of one of the bundle's files; throws Error (damaged) for a name that leads out of the bundle, also by a
  // link.
  std::string pathOf(std::string const& name) const;
  // Compare a file with its size and SHA-256; throws Error (missing, damaged).
  void check(std::string const& name) const;
  // What the graph takes beside a frame, and returns as `next_` and the name: an online graph's memory, a streaming
  // graph's state; nothing of a graph that takes whole clips.
  std::vector<Port> carried() const;
};

// Read FOLDER/manifest.json. Throws Error: missing, damaged, foreign, newer.
Manifest readManifest(std::string const& folder);

// Parse a manifest's text; `folder` is used in messages and to resolve paths. For readManifest and the fuzzer.
Manifest parseManifest(std::string const& folder, std::string_view text);

// SHA-256 of a file, 64 hexadecimal digits. Throws Error (missing, runtime).
std::string sha256OfFile(std::string const& path);

}  // namespace flowless::detail

#endif
