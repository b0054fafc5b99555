// Random starts of the rule ten-draw: the numbers of NumPy's generator, as pipeline/clip/sampling.py seeds and uses it.
#ifndef FLOWLESS_SRC_RANDOM_DRAWS_H
#define FLOWLESS_SRC_RANDOM_DRAWS_H

#include <cstdint>

#include "clip_spec.h"

namespace flowless::detail {

// Write the first frames of the N stacks of draw `draw`, 0 to 9.
void randomStarts(ClipSpec const& spec, int64_t numFrames, int32_t draw, int64_t* starts);

}  // namespace flowless::detail

#endif
