// Objects that threads take, use and give back, so that no call allocates one once as many exist as threads use at a
// time.
#ifndef FLOWLESS_SRC_POOL_H
#define FLOWLESS_SRC_POOL_H

#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace flowless::detail {

template <class Object>
class Pool {
 public:
  // One that no thread uses, or what make() returns.
  template <class Make>
  std::unique_ptr<Object> take(Make make) {
    {
      std::lock_guard<std::mutex> const lock(mLock);
      if (!mFree.empty()) {
        std::unique_ptr<Object> object = std::move(mFree.back());
        mFree.pop_back();
        return object;
      }
    }
    return make();
  }

  void giveBack(std::unique_ptr<Object> object) noexcept {
    std::lock_guard<std::mutex> const lock(mLock);
    try {
      mFree.push_back(std::move(object));
    } catch (std::bad_alloc const&) {  // the object is freed
    }
  }

 private:
  std::mutex mLock;
  std::vector<std::unique_ptr<Object>> mFree;
};

}  // namespace flowless::detail

#endif
