// Preparation of a frame: Pillow's BILINEAR resize in integers, then the crops, byte for byte
// pipeline/clip/preprocess.py.
#ifndef FLOWLESS_SRC_RESIZE_H
#define FLOWLESS_SRC_RESIZE_H

#include <cstddef>
#include <cstdint>
#include <memory>

#include "clip_spec.h"

namespace flowless::detail {

struct Kernels;

// Prepares frames for one ClipSpec. Keeps its buffers and the tables of the last four sizes: frames of these allocate
// nothing. For one thread.
class Preparer {
 public:
  // `kernels`: null for the fastest on this processor; all compute the same bytes. Throws Error (invalid) for a crop
  // that is larger than the short side.
  explicit Preparer(ClipSpec const& spec, Kernels const* kernels = nullptr);
  ~Preparer();
  Preparer(Preparer&&) noexcept;
  Preparer& operator=(Preparer&&) noexcept;

  // rgb: `height` rows of 3 x `width` bytes, `stride` bytes apart. picture: uint8 [crops, spec.height, spec.width, 3].
  // Sizes are at least 1 and were checked by the caller (at most 32768), as was the stride (at least 3 x `width`).
  // Throws Error (invalid) where the resized frame would be too long.
  void prepare(uint8_t const* rgb, int32_t width, int32_t height, ptrdiff_t stride, uint8_t* picture);

 private:
  struct State;
  std::unique_ptr<State> mState;
};

}  // namespace flowless::detail

#endif
