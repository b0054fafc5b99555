// C functions over the parts of engines/cpp that prepare clips, for test_prepare.py.
#include <cstring>
#include <string>

#include "clip_spec.h"
#include "resample.h"
#include "resize.h"
#include "status.h"

using namespace flowless::detail;

namespace {

thread_local std::string sError;

template <typename Call>
int32_t caught(Call const& call) {
  try {
    call();
    return FLOWLESS_OK;
  } catch (Error const& error) {
    sError = error.what();
    return error.status();
  }
}

}  // namespace

extern "C" {

char const* error_text() { return sError.c_str(); }

char const* kernels_name(int32_t index) {
  Kernels const* kernels = kernelsAt(static_cast<size_t>(index));
  return kernels == nullptr ? nullptr : kernels->name;
}

// numbers: segments, frames, height, width, short side, three crops, crop side, softmax.
ClipSpec* spec_new(int32_t const* numbers, char const* sampling) {
  auto* spec = new ClipSpec;
  spec->segments = numbers[0];
  spec->framesPerSegment = numbers[1];
  spec->height = numbers[2];
  spec->width = numbers[3];
  spec->shortSide = numbers[4];
  spec->threeCrops = numbers[5] != 0;
  spec->cropSide = numbers[6];
  spec->averageSoftmax = numbers[7] != 0;
  spec->sampling = sampling;
  return spec;
}

void spec_free(ClipSpec* spec) { delete spec; }

int32_t spec_clips(ClipSpec const* spec, int32_t* clips) {
  return caught([&] { *clips = spec->clips(); });
}

int32_t preparer_new(ClipSpec const* spec, int32_t kernels, Preparer** preparer) {
  return caught([&] { *preparer = new Preparer(*spec, kernelsAt(static_cast<size_t>(kernels))); });
}

void preparer_free(Preparer* preparer) { delete preparer; }

int32_t preparer_prepare(Preparer* preparer, uint8_t const* rgb, int32_t width, int32_t height, ptrdiff_t stride,
                         uint8_t* picture) {
  return caught([&] { preparer->prepare(rgb, width, height, stride, picture); });
}

int32_t clip_indices(ClipSpec const* spec, int64_t num_frames, int64_t* indices) {
  return caught([&] { clipIndices(*spec, num_frames, indices); });
}

int32_t average_views(ClipSpec const* spec, float const* views, int32_t count, int32_t classes, float* scores) {
  return caught([&] { averageViews(*spec, views, count, classes, scores); });
}

}  // extern "C"
