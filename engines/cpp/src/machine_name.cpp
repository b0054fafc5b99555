// One line that identifies a machine's speed, as flowless/machine.py has it.
#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "choose.h"

namespace flowless::detail {
namespace {

namespace fs = std::filesystem;

using Pairs = std::vector<std::pair<std::string, std::string>>;

std::string stripped(std::string const& text) {
  char const* const kSpace = " \t\r\n\v\f";
  size_t const start = text.find_first_not_of(kSpace);
  return start == std::string::npos ? "" : text.substr(start, text.find_last_not_of(kSpace) - start + 1);
}

// The lines "key: value" of a file of /proc; nothing where it is missing.
Pairs pairsOf(std::string const& path) {
  Pairs pairs;
  std::ifstream stream(path);
  for (std::string line; std::getline(stream, line);) {
    size_t const colon = line.find(':');
    pairs.emplace_back(stripped(line.substr(0, colon)),
                       colon == std::string::npos ? "" : stripped(line.substr(colon + 1)));
  }
  return pairs;
}

std::string processor(Pairs const& about) {
  auto const found = std::find_if(about.begin(), about.end(),
                                  [](auto const& pair) { return pair.first == "model name" || pair.first == "Model"; });
  utsname system{};
  return found != about.end() ? found->second : uname(&system) == 0 ? system.machine : "";
}

bool startsWith(std::string const& text, std::string const& start) { return text.compare(0, start.size(), start) == 0; }

bool endsWith(std::string const& text, std::string const& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Whether an instruction set decides how fast a network runs on a CPU.
bool isRelevant(std::string const& name) {
  static char const* const kWhole[] = {"avx2", "avx512f", "asimd", "asimdhp", "asimddp", "i8mm", "sve", "sve2"};
  return std::find(std::begin(kWhole), std::end(kWhole), name) != std::end(kWhole) || startsWith(name, "avx10") ||
         startsWith(name, "amx") || name.find("vnni") != std::string::npos || endsWith(name, "bf16") ||
         endsWith(name, "fp16");
}

std::string instructionSets(Pairs const& about) {
  auto const found = std::find_if(about.begin(), about.end(),
                                  [](auto const& pair) { return pair.first == "flags" || pair.first == "Features"; });
  std::string const flags = found == about.end() ? "" : found->second;
  std::string sets;
  for (size_t at = 0; at < flags.size();) {
    size_t const end = std::min(flags.find_first_of(" \t", at), flags.size());
    std::string const name = flags.substr(at, end - at);
    if (isRelevant(name)) {
      sets += (sets.empty() ? "" : " ") + name;
    }
    at = end + 1;
  }
  return sets;
}

std::vector<std::string> gpuNames(std::string const& folder) {
  std::vector<fs::path> cards;
  std::error_code error;
  for (fs::directory_iterator card(folder, error), end; !error && card != end; card.increment(error)) {
    cards.push_back(card->path());
  }
  std::sort(cards.begin(), cards.end());
  std::vector<std::string> names;
  for (fs::path const& card : cards) {
    for (auto const& [key, value] : pairsOf((card / "information").string())) {
      if (key == "Model") {
        names.push_back(value);
      }
    }
  }
  return names;
}

// Cores that this process may run on.
size_t usableCores() {
  constexpr int kMostCores = 1 << 20;
  for (int cores = 1024; cores <= kMostCores; cores *= 2) {
    size_t const bytes = CPU_ALLOC_SIZE(cores);
    std::vector<unsigned long> mask(bytes / sizeof(unsigned long));
    auto* const set = reinterpret_cast<cpu_set_t*>(mask.data());
    if (sched_getaffinity(0, bytes, set) == 0) {
      return static_cast<size_t>(CPU_COUNT_S(bytes, set));
    }
  }
  return std::max(1U, std::thread::hardware_concurrency());
}

}  // namespace

std::string machineName(std::string const& root) {
  Pairs const about = pairsOf(root + "/proc/cpuinfo");
  std::string name = processor(about) + ", " + std::to_string(usableCores()) + " cores; " + instructionSets(about);
  for (std::string const& gpu : gpuNames(root + "/proc/driver/nvidia/gpus")) {
    name += "; " + gpu;
  }
  return name;
}

}  // namespace flowless::detail
