// Whether an engine of TensorRT or TensorRT-RTX can run on this machine, decided from its record
// (engines/bundle/compatibility.py).
#ifndef FLOWLESS_SRC_BACKENDS_COMPATIBILITY_H
#define FLOWLESS_SRC_BACKENDS_COMPATIBILITY_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../manifest.h"

namespace flowless::detail {

// The library, GPU and system of this machine.
struct GpuHere {
  std::string version;         // of the library: 10.13.3.9
  int32_t capability = 0;      // the GPU's compute capability, 86 for 8.6
  std::string gpu;             // the GPU's name; empty where the driver does not report one
  std::string platform;        // system and processor: linux-x86_64
  std::vector<int32_t> known;  // compute capabilities that the library lists; empty for TensorRT, which lists none
};

// System and processor of this machine, such as linux-x86_64.
std::string thisPlatform();

// How to build an engine again on this machine, for the end of a message.
std::string rebuild(Artefact const& artefact);

// In one line: what an engine was built for, what this machine has, and how to build it again; nothing where it fits.
// Facts that the manifest does not record are not compared.
std::optional<std::string> mismatch(Artefact const& artefact, GpuHere const& here);

}  // namespace flowless::detail

#endif
