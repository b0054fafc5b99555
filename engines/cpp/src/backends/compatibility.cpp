// The rules are those of compatibility.py, whose docstrings name their sources. For CMake: nothing.
#include "compatibility.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <iterator>

#include "../status.h"

namespace flowless::detail {
namespace {

constexpr int32_t kAmpere = 80;

// 10.13.3.9 as numbers; a part that is not a number counts as 0.
std::vector<unsigned long long> numbersOf(std::string const& version) {
  std::vector<unsigned long long> numbers;
  for (size_t start = 0; start <= version.size();) {
    size_t const end = std::min(version.find('.', start), version.size());
    std::string const part = version.substr(start, end - start);
    bool const digits =
        std::all_of(part.begin(), part.end(), [](unsigned char letter) { return std::isdigit(letter) != 0; });
    numbers.push_back(digits ? std::strtoull(part.c_str(), nullptr, 10) : 0);
    start = end + 1;
  }
  return numbers;
}

// Whether a major version of TensorRT also runs portable engines of another one (TensorRT 11's support matrix, "Engine
// Portability").
bool alsoRuns(unsigned long long now, unsigned long long was) {
  return (now == 11 && was == 10) || (now == 10 && was == 8);
}

std::optional<std::string> ofVersion(Artefact const& artefact, GpuHere const& here) {
  char const* const module = artefact.target == "tensorrt" ? "tensorrt" : "tensorrt_rtx";
  auto const found = artefact.versions.find(module);
  if (found == artefact.versions.end() || found->second == here.version) {
    return std::nullopt;
  }
  std::string const built = std::string("it was built by ") + module + " " + found->second + " for that version ";
  if (artefact.target == "tensorrt" && artefact.portable) {
    auto const was = numbersOf(found->second);
    auto const now = numbersOf(here.version);
    if ((was[0] == now[0] && now >= was) || alsoRuns(now[0], was[0])) {
      return std::nullopt;
    }
    return built + "and later ones of " + std::to_string(was[0]) + ".x, and " + here.version + " is here";
  }
  return built + "alone, and " + here.version + " is here";
}

std::optional<std::string> ofGpu(Artefact const& artefact, GpuHere const& here, bool rtx) {
  std::string const hasOther = " and the GPU here has " + std::to_string(here.capability);
  auto const& named = artefact.computeCapabilities;
  if (!named.empty()) {
    if (std::find(named.begin(), named.end(), here.capability) != named.end()) {
      return std::nullopt;
    }
    std::vector<std::string> texts;
    std::transform(named.begin(), named.end(), std::back_inserter(texts),
                   [](int32_t item) { return std::to_string(item); });
    return "it was built for compute capability " + joined(texts, ", ") + hasOther;
  }
  if (rtx || artefact.portable) {
    if (here.capability >= kAmpere) {
      return std::nullopt;
    }
    return "it was built for compute capability " + std::to_string(kAmpere) + " and later" + hasOther;
  }
  if (artefact.gpuComputeCapability != 0 && artefact.gpuComputeCapability != here.capability) {
    std::string const whose = artefact.gpu.empty() ? "" : " (" + artefact.gpu + ")";
    std::string const mine = here.gpu.empty() ? "" : " (" + here.gpu + ")";
    return "it was built for compute capability " + std::to_string(artefact.gpuComputeCapability) + whose + hasOther +
           mine;
  }
  if (!artefact.gpu.empty() && !here.gpu.empty() && artefact.gpu != here.gpu) {
    return "it was built for " + artefact.gpu + " and the GPU here is " + here.gpu;
  }
  return std::nullopt;
}

// TensorRT-RTX lists the GPUs that it supports; nothing where this machine's is one of them.
std::optional<std::string> unknownGpu(GpuHere const& here) {
  if (here.known.empty() || std::find(here.known.begin(), here.known.end(), here.capability) != here.known.end()) {
    return std::nullopt;
  }
  auto const dotted = [](int32_t item) { return std::to_string(item / 10) + "." + std::to_string(item % 10); };
  std::vector<std::string> names;
  std::transform(here.known.begin(), here.known.end(), std::back_inserter(names), dotted);
  return "tensorrt_rtx " + here.version + " runs on compute capability " + joined(names, ", ") + " alone, and " +
         (here.gpu.empty() ? "the GPU here" : here.gpu) + " has compute capability " + dotted(here.capability) +
         "; build another target";
}

}  // namespace

std::string thisPlatform() {
  utsname names{};
  if (uname(&names) != 0) {
    return "";
  }
  std::string platform = std::string(names.sysname) + "-" + names.machine;
  std::transform(platform.begin(), platform.end(), platform.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
  return platform;
}

std::string rebuild(Artefact const& artefact) {
  return "build it again with: flowless build BUNDLE --target " + artefact.target + " --precision " +
         artefact.precision + " --force";
}

std::optional<std::string> mismatch(Artefact const& artefact, GpuHere const& here) {
  bool const rtx = artefact.target == "tensorrt-rtx";
  if (rtx) {
    if (auto never = unknownGpu(here)) {
      return never;
    }
  }
  std::vector<std::string> reasons;
  for (auto const& reason : {ofVersion(artefact, here), ofGpu(artefact, here, rtx)}) {
    if (reason) {
      reasons.push_back(*reason);
    }
  }
  if (!rtx && !artefact.platform.empty() && artefact.platform != here.platform) {
    reasons.push_back("it was built for " + artefact.platform + " and this is " + here.platform);
  }
  if (reasons.empty()) {
    return std::nullopt;
  }
  bool const turing = rtx && here.capability < kAmpere;
  return joined(reasons, "; ") + "; " + rebuild(artefact) +
         (turing ? " --compute-capability " + std::to_string(here.capability) : "");
}

}  // namespace flowless::detail
