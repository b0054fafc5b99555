// Which of a bundle's engines to open here, as engines/loading.py chooses.
#ifndef FLOWLESS_SRC_CHOOSE_H
#define FLOWLESS_SRC_CHOOSE_H

#include <functional>
#include <optional>
#include <string>

#include "backends/backend.h"
#include "manifest.h"

namespace flowless::detail {

struct Choice {
  Artefact const* artefact = nullptr;
  std::string why;  // one sentence: what, why, and why not the others
};

// One line that identifies a machine's speed, exactly
// flowless.machine.machine_name of the same machine (Linux). `root`: the folder
// that holds proc/, for tests.
std::string machineName(std::string const& root = "");

// What a choice depends on besides the bundle; a test sets its own.
struct Here {
  std::string machine = machineName();
  std::function<std::optional<std::string>(Artefact const&)> whyNot = detail::whyNot;
  std::function<std::string(Artefact const&)> computedPrecision = detail::computedPrecision;
};

// `target`, `precision`: empty for any. Throws Error: invalid (unknown names),
// missing (no such engine), unsupported (none runs here).
Choice chooseEngine(Manifest const& manifest, std::string const& target, std::string const& precision,
                    Here const& here);

inline Choice chooseEngine(Manifest const& manifest, std::string const& target, std::string const& precision) {
  return chooseEngine(manifest, target, precision, Here());
}

}  // namespace flowless::detail

#endif
