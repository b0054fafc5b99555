#include "choose.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include "status.h"

namespace flowless::detail {
namespace {

// Lower precisions were verified when they were built, so the exact one comes
// last.
constexpr char const* kPreferred[] = {"int8", "fp16", "bf16", "fp32"};

using Engines = std::vector<Artefact const*>;

bool needsGpu(std::string const& target) { return target == "tensorrt" || target == "tensorrt-rtx"; }

// A bundle's engines of a target, of any precision or of one.
Engines enginesOf(Manifest const& manifest, std::string const& target, std::string const& precision) {
  Engines found;
  for (Artefact const& artefact : manifest.artefacts) {
    if (artefact.target == target && (precision.empty() || artefact.precision == precision)) {
      found.push_back(&artefact);
    }
  }
  return found;
}

// The shortest latency of engines, in ms a clip; nothing where one was not
// timed on this machine.
std::optional<double> latencyOf(Engines const& engines, std::string const& machine) {
  std::optional<double> shortest;
  for (Artefact const* const artefact : engines) {
    if (!artefact->latencyMs || artefact->machine != machine) {
      return std::nullopt;
    }
    shortest = std::min(shortest.value_or(std::numeric_limits<double>::infinity()), *artefact->latencyMs);
  }
  return shortest;
}

// What `flowless build --precision auto` recommends for this machine.
Recommendation const* recommendationFor(Manifest const& manifest, std::string const& machine) {
  auto const found = std::find_if(manifest.recommendations.begin(), manifest.recommendations.end(),
                                  [&](Recommendation const& item) { return item.machine == machine; });
  return found == manifest.recommendations.end() ? nullptr : &*found;
}

// The targets in the order to try: those of GPUs first, then those of CPUs, the
// one measured fastest here first.
std::vector<std::string> orderOf(Manifest const& manifest, std::string const& precision, Here const& here) {
  Recommendation const* const best = recommendationFor(manifest, here.machine);
  std::map<std::string, double> times;
  bool all = true;  // times decide only where every candidate has one
  for (std::string const target : kTargets) {
    Engines const engines = enginesOf(manifest, target, precision);
    if (engines.empty() || needsGpu(target) || here.whyNot(*engines.front())) {
      continue;
    }
    auto const latency = latencyOf(engines, here.machine);
    all = all && latency.has_value();
    times[target] = latency.value_or(0.0);
  }
  if (!all) {
    times.clear();
  }
  auto const rank = [&](std::string const& target) {
    auto const time = times.find(target);
    return std::make_tuple(!needsGpu(target), best == nullptr || target != best->target,
                           time == times.end() ? 0.0 : time->second);
  };
  std::vector<std::string> order(std::begin(kTargets), std::end(kTargets));
  std::stable_sort(order.begin(), order.end(),
                   [&](auto const& one, auto const& other) { return rank(one) < rank(other); });
  return order;
}

struct Candidate {
  Artefact const* artefact = nullptr;
  std::string reason;  // why none of the target's engines can be loaded
};

// The engine of a target to load.
Candidate candidateOf(Manifest const& manifest, std::string const& target, std::string const& precision,
                      Here const& here) {
  Engines const engines = enginesOf(manifest, target, precision);
  if (engines.empty()) {
    return {nullptr, "the bundle has no such engine"};
  }
  Recommendation const* const best = recommendationFor(manifest, here.machine);
  bool const timed = latencyOf(engines, here.machine).has_value();
  struct Ranked {
    Artefact const* artefact;
    std::optional<std::string> reason;
    std::tuple<bool, bool, double, ptrdiff_t> rank;
  };
  std::vector<Ranked> ranked;
  for (Artefact const* const artefact : engines) {
    bool const recommended = best != nullptr && best->target == target && best->precision == artefact->precision;
    auto reason = here.whyNot(*artefact);
    // Where this processor computes in another precision, the engine is no
    // faster here than the fp32 one.
    bool const otherwise = !reason && here.computedPrecision(*artefact) != artefact->precision;
    auto const preference =
        std::find(std::begin(kPreferred), std::end(kPreferred), artefact->precision) - std::begin(kPreferred);
    ranked.push_back({artefact, reason, {!recommended, otherwise, timed ? *artefact->latencyMs : 0.0, preference}});
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](auto const& one, auto const& other) { return one.rank < other.rank; });
  auto const fits = std::find_if(ranked.begin(), ranked.end(), [](Ranked const& item) { return !item.reason; });
  return fits != ranked.end() ? Candidate{fits->artefact, ""} : Candidate{nullptr, *ranked.front().reason};
}

template <size_t count>
bool isOneOf(std::string const& name, char const* const (&names)[count]) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

Error noEngine(Manifest const& manifest, std::string const& target, std::string const& precision,
               std::vector<std::string> const& reasons) {
  std::vector<std::string> have;
  bool found = false;
  for (Artefact const& artefact : manifest.artefacts) {
    have.push_back(artefact.target + " " + artefact.precision);
    found = found ||
            ((target.empty() || artefact.target == target) && (precision.empty() || artefact.precision == precision));
  }
  std::string const wanted = target + (target.empty() || precision.empty() ? "" : " ") + precision;
  bool const packed = manifest.files.count(manifest.reference) == 0 && manifest.artefacts.size() == 1;
  std::string const build = "Build one with: flowless build " + manifest.folder + " --target " +
                            (target.empty() ? "openvino" : target) +
                            (precision.empty() ? "" : " --precision " + precision);
  std::string const there = "The bundle has that engine, and what it needs is not here; name another target, or none.";
  std::string const pack =
      "It is a packed bundle: pack another engine of the "
      "full bundle, with: flowless pack BUNDLE --target T "
      "--precision P";
  return Error(found ? FLOWLESS_UNSUPPORTED : FLOWLESS_MISSING,
               manifest.folder + ": no engine " + (wanted.empty() ? "" : wanted + " ") + "that runs here (" +
                   joined(reasons, "; ") + "). The bundle's engines: " + (have.empty() ? "none" : joined(have, ", ")) +
                   ". " +
                   (packed                     ? pack
                    : found && !target.empty() ? there
                                               : build));
}

}  // namespace

Choice chooseEngine(Manifest const& manifest, std::string const& target, std::string const& precision,
                    Here const& here) {
  if (!target.empty() && !isOneOf(target, kTargets)) {
    throw Error(FLOWLESS_INVALID, "target is " + quoted(target) +
                                      "; it must be one of tensorrt, "
                                      "tensorrt-rtx, openvino, onnxruntime.");
  }
  if (!precision.empty() && !isOneOf(precision, kPreferred)) {
    throw Error(FLOWLESS_INVALID, "precision is " + quoted(precision) + "; it must be one of fp32, bf16, fp16, int8.");
  }
  std::vector<std::string> passedOver;
  for (std::string const& name :
       target.empty() ? orderOf(manifest, precision, here) : std::vector<std::string>{target}) {
    Candidate const candidate = candidateOf(manifest, name, precision, here);
    if (candidate.artefact == nullptr) {
      passedOver.push_back("not " + name + ": " + candidate.reason);
      continue;
    }
    Artefact const& artefact = *candidate.artefact;
    Recommendation const* const best = recommendationFor(manifest, here.machine);
    bool const recommended = best != nullptr && best->target == name && best->precision == artefact.precision;
    std::string const because = !target.empty() ? "asked for"
                                : recommended   ? "what flowless build --precision auto found the fastest"
                                                : "the fastest engine of this bundle that runs here";
    passedOver.insert(passedOver.begin(),
                      name + " " + artefact.precision + ": " + because + " (" + artefact.status + ")");
    return {&artefact, joined(passedOver, "; ")};
  }
  throw noEngine(manifest, target, precision, passedOver);
}

}  // namespace flowless::detail
