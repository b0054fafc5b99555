// Which of a bundle's engines to open here, as engines/loading.py chooses.
#ifndef FLOWLESS_SRC_CHOOSE_H
#define FLOWLESS_SRC_CHOOSE_H

#include <string>

#include "manifest.h"

namespace flowless::detail {

struct Choice {
  Artefact const* artefact = nullptr;
  std::string why;  // one sentence: what, why, and why not the others
};

// `target`, `precision`: empty for any. Throws Error: invalid (unknown names), missing (no such engine), unsupported
// (none runs here).
Choice chooseEngine(Manifest const& manifest, std::string const& target, std::string const& precision);

// One line that identifies a machine's speed, exactly flowless.machine.machine_name of the same machine (Linux).
std::string machineName();

}  // namespace flowless::detail

#endif
