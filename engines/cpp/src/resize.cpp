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

// Which pass comes first, as in Pillow since 13.0; the order changes bytes, because the result of the first is rounded.
bool downComesFirst(Size from, Size resized) {
  int64_t const fewerRows = from.height - resized.height;
  int64_t const fewerColumns = from.width - resized.width;
  return fewerRows > 0 && fewerRows > 2 * fewerColumns;
}

// Crops of a resized picture, of which only the pixels that they need are computed.
class CropResizer {
 public:
  CropResizer(Size from, Size resized, std::vector<Corner> const& corners, Size crop)
      : mFrom(from), mCrop(crop), mCorners(corners) {
    if (from.width == resized.width && from.height == resized.height) {
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
    mStride = aligned(columns.size() * kChannels + kRowSlack);
    if (downComesFirst(from, resized)) {
      mOrder = Order::kDownFirst;
      keepColumns();
    } else {
      mOrder = Order::kAcrossFirst;
      keepRows();
    }
  }

  // Bytes of the buffer that `run` needs.
  size_t bufferBytes() const {
    switch (mOrder) {
      case Order::kCopy:
        return 0;
      case Order::kAcrossFirst:
        return (mRows.size() + static_cast<size_t>(mDown.taps)) * mStride;
      case Order::kDownFirst:
        return kRows * (mKeptStride + mStride);
    }
    return 0;
  }

  // Write the crops, one after another.
  void run(Kernels const& kernels, uint8_t const* rgb, ptrdiff_t stride, uint8_t* buffer, uint8_t* crops) const {
    switch (mOrder) {
      case Order::kCopy:
        return copy(rgb, stride, crops);
      case Order::kAcrossFirst:
        return acrossFirst(kernels, rgb, stride, buffer, crops);
      case Order::kDownFirst:
        return downFirst(kernels, rgb, stride, buffer, crops);
    }
  }

 private:
  enum class Order { kCopy, kAcrossFirst, kDownFirst };

  static size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  size_t rowBytes() const { return kChannels * static_cast<size_t>(mCrop.width); }

  // Call `use` with the place of each crop's part of row `row` of the computed ones, and the part's first column there.
  template <typename Use>
  void forCropsOf(size_t row, uint8_t* crops, Use const& use) const {
    for (Corner const& corner : mCorners) {
      ptrdiff_t const at = static_cast<ptrdiff_t>(row) - corner.top;
      if (at >= 0 && at < mCrop.height) {
        use(crops + static_cast<size_t>(at) * rowBytes(), static_cast<size_t>(corner.left) * kChannels);
      }
      crops += bytesOf(mCrop);
    }
  }

  // The frame's rows that the taps read become mRows; the taps then count in these.
  void keepRows() {
    for (size_t index = 0; index < mDown.outputs(); ++index) {
      appendNew(mRows, mDown.first[index], mDown.first[index] + mDown.count[index]);
    }
    for (int32_t& first : mDown.first) {
      first = placeOf(first, mRows);
    }
  }

  void acrossFirst(Kernels const& kernels, uint8_t const* rgb, ptrdiff_t stride, uint8_t* buffer,
                   uint8_t* crops) const {
    size_t done = 0;
    for (size_t row = 0; row < mDown.outputs(); ++row) {
      // The rows of the buffer that this one needs, just before it, while they are in the cache.
      for (; done < static_cast<size_t>(mDown.first[row] + mDown.count[row]); done += kRows) {
        fillRows(kernels, rgb, stride, buffer, done);
      }
      uint8_t const* const from = buffer + static_cast<size_t>(mDown.first[row]) * mStride;
      forCropsOf(row, crops, [&](uint8_t* to, size_t column) {
        kernels.vertical(mDown, row, from + column, mStride, to, rowBytes());
      });
    }
  }

  // Resize rows `begin` to `begin` + kRows of mRows across. Past the last row the last is computed again.
  void fillRows(Kernels const& kernels, uint8_t const* rgb, ptrdiff_t stride, uint8_t* buffer, size_t begin) const {
    uint8_t const* from[kRows];
    uint8_t* to[kRows];
    for (size_t index = 0; index < kRows; ++index) {
      size_t const row = std::min(begin + index, mRows.size() - 1);
      from[index] = rgb + mRows[row] * stride;
      to[index] = buffer + row * mStride;
    }
    kernels.horizontal(mAcross, from, to);
  }

  // The frame's columns from mColumn on are kept in rows of mKeptStride bytes; the taps then count in these, and there
  // is memory for all that they read.
  void keepColumns() {
    mColumn = mAcross.first.front();
    for (int32_t& first : mAcross.first) {
      first -= mColumn;
    }
    mAcross.inside = static_cast<int32_t>(mAcross.outputs());
    mKept = static_cast<size_t>(mAcross.first.back() + mAcross.count.back()) * kChannels;
    mKeptStride = aligned(static_cast<size_t>(mAcross.first.back() + mAcross.taps + kTapSlack) * kChannels);
  }

  void downFirst(Kernels const& kernels, uint8_t const* rgb, ptrdiff_t stride, uint8_t* buffer, uint8_t* crops) const {
    uint8_t const* const column = rgb + mColumn * static_cast<ptrdiff_t>(kChannels);
    uint8_t const* kept[kRows];
    uint8_t* resized[kRows];
    for (size_t begin = 0; begin < mDown.outputs(); begin += kRows) {
      size_t const rows = std::min(kRows, mDown.outputs() - begin);
      for (size_t index = 0; index < kRows; ++index) {
        uint8_t* const to = buffer + index * mKeptStride;
        kept[index] = to;
        resized[index] = buffer + kRows * mKeptStride + index * mStride;
        if (index < rows) {
          int32_t const first = mDown.first[begin + index];
          // Only the plain kernel reads no row after an output's own.
          Kernels const& chosen = first + mDown.taps <= mFrom.height ? kernels : kPlainKernels;
          chosen.vertical(mDown, begin + index, column + first * stride, static_cast<size_t>(stride), to, mKept);
        }
      }
      kernels.horizontal(mAcross, kept, resized);
      for (size_t index = 0; index < rows; ++index) {
        forCropsOf(begin + index, crops,
                   [&](uint8_t* to, size_t at) { std::memcpy(to, resized[index] + at, rowBytes()); });
      }
    }
  }

  void copy(uint8_t const* rgb, ptrdiff_t stride, uint8_t* crops) const {
    for (Corner const& corner : mCorners) {
      uint8_t const* from = rgb + corner.top * stride + corner.left * static_cast<ptrdiff_t>(kChannels);
      for (int32_t row = 0; row < mCrop.height; ++row, from += stride, crops += rowBytes()) {
        std::memcpy(crops, from, rowBytes());
      }
    }
  }

  Size mFrom;
  Size mCrop;
  std::vector<Corner> mCorners;  // among the computed columns and rows; in the picture where it is copied
  Order mOrder = Order::kCopy;   // the sizes are equal, or which pass comes first
  Taps mAcross;
  Taps mDown;
  size_t mStride = 0;          // bytes of a row that was resized across
  std::vector<int32_t> mRows;  // across first: the rows that are read
  int32_t mColumn = 0;         // down first: the first column that is read
  size_t mKept = 0;            // and the bytes of a row that are
  size_t mKeptStride = 0;
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
