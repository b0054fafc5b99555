// Linux: reads the affinity and /sys. For CMake: nothing.
#include "threads.h"

#include <sched.h>

#include <cctype>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace flowless::detail {
namespace {

constexpr int kMostCores = 1 << 16;

struct FreeCpuSet {
  void operator()(cpu_set_t* set) const { CPU_FREE(set); }
};

// The cores that this process may run on; one where the system does not say.
std::vector<int> usableCores() {
  for (int count = 1024; count <= kMostCores;
       count *= 2) {  // the call fails where the set is smaller than the kernel's
    std::unique_ptr<cpu_set_t, FreeCpuSet> const set(CPU_ALLOC(static_cast<size_t>(count)));
    size_t const bytes = CPU_ALLOC_SIZE(static_cast<size_t>(count));
    if (set == nullptr || sched_getaffinity(0, bytes, set.get()) != 0) {
      continue;
    }
    std::vector<int> cores;
    for (int core = 0; core < count; ++core) {
      if (CPU_ISSET_S(static_cast<size_t>(core), bytes, set.get())) {
        cores.push_back(core);
      }
    }
    return cores;
  }
  return {0};
}

}  // namespace

bool threadsStayAwake() {
  char const* const value = std::getenv("OMP_WAIT_POLICY");
  std::string policy = value == nullptr ? "" : value;
  constexpr char const* kSpaces = " \t\n\v\f\r";
  policy.erase(0, policy.find_first_not_of(kSpaces));
  policy.erase(policy.find_last_not_of(kSpaces) + 1);
  for (char& letter : policy) {
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  return policy == "active";
}

int32_t usablePhysicalCores() {
  std::vector<int> const cores = usableCores();
  std::set<std::string> places;
  for (int const core : cores) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(core) + "/topology/thread_siblings_list");
    if (!file) {
      return static_cast<int32_t>(cores.size());
    }
    places.emplace(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return static_cast<int32_t>(places.size());
}

}  // namespace flowless::detail
