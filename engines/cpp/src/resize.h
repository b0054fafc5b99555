// Preparation of a frame: Pillow's BILINEAR resize in integers, then the crops, byte for byte
// pipeline/clip/preprocess.py.
#ifndef FLOWLESS_SRC_RESIZE_H
#define FLOWLESS_SRC_RESIZE_H

#include <cstddef>
#include <cstdint>
#include <memory>

#include "clip_spec.h"

namespace flowless::detail {

// Prepares frames for one ClipSpec. Keeps its tables and buffers, so that frames of a size seen before allocate
// nothing. For one thread.
class Preparer {
 public:
  explicit Preparer(ClipSpec const& spec);
  ~Preparer();
  Preparer(Preparer&&) noexcept;
  Preparer& operator=(Preparer&&) noexcept;

  // rgb: `height` rows of 3 x `width` bytes, `stride` bytes apart. picture: uint8 [crops, spec.height, spec.width, 3].
  // Sizes are at least 1 and were checked by the caller (at most 32768).
  void prepare(uint8_t const* rgb, int32_t width, int32_t height, ptrdiff_t stride, uint8_t* picture);

 private:
  struct State;
  std::unique_ptr<State> mState;
};

}  // namespace flowless::detail

#endif
