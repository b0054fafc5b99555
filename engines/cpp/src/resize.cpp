#include "resize.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "resample.h"
#include "status.h"

namespace flowless::detail {
namespace {

constexpr size_t kSizes = 4;
constexpr size_t kAlignment = 64;

size_t bytesOf(Size size) { return kChannels * static_cast<size_t>(size.width) * static_cast<size_t>(size.height); }

// Append the numbers from `start` to `end` - 1 that are greater than the last.
void appendNew(std::vector<int32_t>& numbers, int32_t start, int32_t end) {
  for (int32_t number = numbers.empty() ? start : std::max(start, numbers.back() + 1); number < end; ++number) {
    numbers.push_back(number);
  }
}

// The numbers of the ranges [start, start + length), each once, in ascending order.
std::vector<int32_t> numbersIn(std::vector<int32_t> starts, int32_t length) {
  std::sort(starts.begin(), starts.end());
  std::vector<int32_t> numbers;
  for (int32_t const start : starts) {
    appendNew(numbers, start, start + length);
  }
  return numbers;
}

int32_t placeOf(int32_t number, std::vector<int32_t> const& numbers) {
  return static_cast<int32_t>(std::lower_bound(numbers.begin(), numbers.end(), number) - numbers.begin());
}

// Crops of a resized picture, of which only the pixels that they need are computed.
class CropResizer {
 public:
  CropResizer(Size from, Size resized, std::vector<Corner> const& corners, Size crop) : mCrop(crop), mCorners(corners) {
    mCopies = from.width == resized.width && from.height == resized.height;
    if (mCopies) {
      return;
    }
    std::vector<int32_t> lefts;
    std::vector<int32_t> tops;
    for (Corner const& corner : corners) {
      lefts.push_back(corner.left);
      tops.push_back(corner.top);
    }
    std::vector<int32_t> const columns = numbersIn(lefts, crop.width);
    std::vector<int32_t> const rows = numbersIn(tops, crop.height);
    for (Corner& corner : mCorners) {
      corner = {placeOf(corner.left, columns), placeOf(corner.top, rows)};
    }
    mAcross = bilinearTaps(from.width, resized.width, columns);
    mDown = bilinearTaps(from.height, resized.height, rows);
    keepRows();
    mStride = (columns.size() * kChannels + kRowSlack + kAlignment - 1) / kAlignment * kAlignment;
  }

  // Bytes of the buffer that `run` needs.
  size_t bufferBytes() const { return mCopies ? 0 : (mRows.size() + static_cast<size_t>(mDown.taps)) * mStride; }

  // Write the crops, one after another.
  void run(Kernels const& kernels, uint8_t const* rgb, ptrdiff_t stride, uint8_t* buffer, uint8_t* crops) const {
    if (mCopies) {
      copy(rgb, stride, crops);
      return;
    }
    size_t done = 0;
    for (size_t row = 0; row < mDown.outputs(); ++row) {
      // The rows of the buffer that this one needs, just before it, while they are in the cache.
      while (done < static_cast<size_t>(mDown.first[row] + mDown.count[row])) {
        fill(kernels, rgb, stride, buffer, done);
        done += kRows;
      }
      uint8_t const* const from = buffer + static_cast<size_t>(mDown.first[row]) * mStride;
      uint8_t* crop = crops;
      for (Corner const& corner : mCorners) {
        auto const at = static_cast<ptrdiff_t>(row) - corner.top;
        if (at >= 0 && at < mCrop.height) {
          kernels.vertical(mDown, row, from + static_cast<size_t>(corner.left) * kChannels, mStride,
                           crop + static_cast<size_t>(at) * rowBytes(), rowBytes());
        }
        crop += bytesOf(mCrop);
      }
    }
  }

 private:
  size_t rowBytes() const { return kChannels * static_cast<size_t>(mCrop.width); }

  // The frame's rows that the vertical taps read become mRows; the taps then count in these.
  void keepRows() {
    for (size_t index = 0; index < mDown.outputs(); ++index) {
      appendNew(mRows, mDown.first[index], mDown.first[index] + mDown.count[index]);
    }
    for (int32_t& first : mDown.first) {
      first = placeOf(first, mRows);
    }
  }

  // Resize rows `begin` to `begin` + kRows of mRows across. Past the last row the last is computed again.
  void fill(Kernels const& kernels, uint8_t const* rgb, ptrdiff_t stride, uint8_t* buffer, size_t begin) const {
    uint8_t const* from[kRows];
    uint8_t* to[kRows];
    for (size_t index = 0; index < kRows; ++index) {
      size_t const row = std::min(begin + index, mRows.size() - 1);
      from[index] = rgb + mRows[row] * stride;
      to[index] = buffer + row * mStride;
    }
    kernels.horizontal(mAcross, from, to);
  }

  void copy(uint8_t const* rgb, ptrdiff_t stride, uint8_t* crops) const {
    for (Corner const& corner : mCorners) {
      uint8_t const* from = rgb + corner.top * stride + corner.left * static_cast<ptrdiff_t>(kChannels);
      for (int32_t row = 0; row < mCrop.height; ++row, from += stride, crops += rowBytes()) {
        std::memcpy(crops, from, rowBytes());
      }
    }
  }

  Size mCrop;
  std::vector<Corner> mCorners;  // among the computed columns and rows; of the picture where mCopies
  bool mCopies = false;          // the sizes are equal
  Taps mAcross;
  Taps mDown;                  // inputs are positions in mRows
  std::vector<int32_t> mRows;  // the rows that are read
  size_t mStride = 0;          // bytes of a row of the buffer
};

// What one size of frame needs.
struct Plan {
  Plan(ClipSpec const& spec, Size frame) : size(frame), first(firstResizer(spec, frame)) {}

  static CropResizer firstResizer(ClipSpec const& spec, Size frame) {
    Size const resized = resizedSize(frame, spec.shortSide);
    std::array<Corner, 3> const corners = cropCorners(resized, spec);
    Size const crop = spec.cropSide > 0 ? Size{spec.cropSide, spec.cropSide} : Size{spec.width, spec.height};
    return {frame, resized, {corners.begin(), corners.begin() + spec.crops()}, crop};
  }

  Size size;
  CropResizer first;
};

}  // namespace

struct Preparer::State {
  State(ClipSpec const& clipSpec, Kernels const& chosen) : spec(clipSpec), kernels(chosen) {
    if (spec.cropSide > 0) {
      Size const side = {spec.cropSide, spec.cropSide};
      Size const input = {spec.width, spec.height};
      second.emplace(side, input, std::vector<Corner>(1), input);
      buffer.resize(second->bufferBytes());
      crops.resize(static_cast<size_t>(spec.crops()) * bytesOf(side));
    }
  }

  // The plan of a size, which becomes the first of `plans`; the one that was used longest ago is forgotten.
  Plan const& planFor(Size size) {
    auto const same = [&](std::unique_ptr<Plan> const& plan) {
      return plan == nullptr || (plan->size.width == size.width && plan->size.height == size.height);
    };
    auto found = std::find_if(plans.begin(), plans.end(), same);
    if (found == plans.end()) {
      --found;
      found->reset();
    }
    if (*found == nullptr) {
      auto plan = std::make_unique<Plan>(spec, size);
      buffer.resize(std::max(buffer.size(), plan->first.bufferBytes()));
      *found = std::move(plan);
    }
    std::rotate(plans.begin(), found, found + 1);
    return *plans.front();
  }

  ClipSpec spec;
  Kernels const& kernels;
  std::optional<CropResizer> second;  // of a crop of spec.cropSide
  std::vector<uint8_t> buffer;
  std::vector<uint8_t> crops;  // before the second resize
  std::array<std::unique_ptr<Plan>, kSizes> plans;
};

Preparer::Preparer(ClipSpec const& spec, Kernels const* kernels) {
  int32_t const side = spec.cropSide > 0 ? spec.cropSide : std::max(spec.height, spec.width);
  if (std::min(spec.height, spec.width) < 1 || spec.cropSide < 0 || side > spec.shortSide) {
    throw Error(
        FLOWLESS_INVALID,
        format("ClipSpec: height %d, width %d, crop_side %d, short_side %d; the first two must be at least 1, and "
               "short_side at least the crop's larger side, %d.",
               spec.height, spec.width, spec.cropSide, spec.shortSide, side));
  }
  mState = std::make_unique<State>(spec, kernels != nullptr ? *kernels : *kernelsAt(0));
}

Preparer::~Preparer() = default;
Preparer::Preparer(Preparer&&) noexcept = default;
Preparer& Preparer::operator=(Preparer&&) noexcept = default;

void Preparer::prepare(uint8_t const* rgb, int32_t width, int32_t height, ptrdiff_t stride, uint8_t* picture) {
  State& state = *mState;
  Plan const& plan = state.planFor({width, height});
  uint8_t* const crops = state.second ? state.crops.data() : picture;
  plan.first.run(state.kernels, rgb, stride, state.buffer.data(), crops);
  if (state.second) {
    Size const side = {state.spec.cropSide, state.spec.cropSide};
    auto const sideStride = static_cast<ptrdiff_t>(kChannels) * side.width;
    for (int32_t crop = 0; crop < state.spec.crops(); ++crop) {
      state.second->run(state.kernels, crops + static_cast<size_t>(crop) * bytesOf(side), sideStride,
                        state.buffer.data(), picture + static_cast<size_t>(crop) * state.spec.pictureBytes());
    }
  }
}

}  // namespace flowless::detail
