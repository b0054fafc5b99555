// Handles of the C interface: numbers that are never used twice, so that a closed one is refused and never a later
// object.
#ifndef FLOWLESS_SRC_HANDLES_H
#define FLOWLESS_SRC_HANDLES_H

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

#include "status.h"

namespace flowless::detail {

// The next number, from one count for all kinds, so that a stream is not taken for an engine.
uintptr_t nextHandle();

// Open objects of one kind. Handle is the incomplete type of the C interface, whose pointers hold the numbers.
template <class Handle, class Object>
class Handles {
 public:
  explicit Handles(char const* kind) : mKind(kind) {}

  Handle* add(std::shared_ptr<Object> object) {
    uintptr_t const number = nextHandle();
    std::unique_lock<std::shared_mutex> const lock(mLock);
    mOpen.emplace(number, std::move(object));
    return reinterpret_cast<Handle*>(number);
  }

  // Throws Error (invalid): null, closed, or no handle of this kind.
  std::shared_ptr<Object> find(Handle const* handle) const {
    if (handle == nullptr) {
      throw Error(FLOWLESS_INVALID, format("the %s is NULL; it must be an open %s.", mKind, mKind));
    }
    std::shared_lock<std::shared_mutex> const lock(mLock);
    auto const found = mOpen.find(reinterpret_cast<uintptr_t>(handle));
    if (found == mOpen.end()) {
      throw Error(FLOWLESS_INVALID, format("the %s is closed, or was never opened; open it again.", mKind));
    }
    return found->second;
  }

  // Remove an object and return it.
  std::shared_ptr<Object> take(Handle const* handle) {
    std::shared_ptr<Object> object = find(handle);
    std::unique_lock<std::shared_mutex> const lock(mLock);
    mOpen.erase(reinterpret_cast<uintptr_t>(handle));
    return object;
  }

  template <class Condition>
  void removeWhere(Condition condition) {
    std::unique_lock<std::shared_mutex> const lock(mLock);
    for (auto at = mOpen.begin(); at != mOpen.end();) {
      at = condition(*at->second) ? mOpen.erase(at) : std::next(at);
    }
  }

 private:
  char const* const mKind;
  mutable std::shared_mutex mLock;
  std::unordered_map<uintptr_t, std::shared_ptr<Object>> mOpen;
};

}  // namespace flowless::detail

#endif
