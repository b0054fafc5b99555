#include "stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "status.h"

namespace flowless::detail {
namespace {

constexpr int32_t kDefaultWindow = 64;
constexpr int32_t kLargestWindow = 4096;

size_t framesOf(ClipSpec const& spec) {
  return static_cast<size_t>(spec.segments) * static_cast<size_t>(spec.framesPerSegment);
}

// How much later `one` is than `other`, which is not after it: any two time stamps, also libav's for none.
uint64_t laterBy(int64_t one, int64_t other) { return static_cast<uint64_t>(one) - static_cast<uint64_t>(other); }

}  // namespace

Stream::Stream(std::shared_ptr<Engine> engine, StreamOptions const& options)
    : mEngine(std::move(engine)), mPreparedBytes(mEngine->preparedBytes()), mOptions(options) {
  ClipSpec const& spec = mEngine->spec();
  mOnline = options.mode == FLOWLESS_MODE_ONLINE || (options.mode == FLOWLESS_MODE_DEFAULT && mEngine->online());
  if (mOnline && spec.framesPerSegment != 1) {
    throw Error(FLOWLESS_UNSUPPORTED,
                format("%s: its segments have %d frames; an online stream takes one new frame at a time, so it needs a "
                       "model whose "
                       "segments have 1, such as stm, tsm, tsn or pan-rgb. Use FLOWLESS_MODE_ROLLING.",
                       mEngine->manifest().model.c_str(), spec.framesPerSegment));
  }
  if (options.windowFrames < 0 || options.windowFrames > kLargestWindow || options.windowNs < 0 ||
      options.maxGapNs < 0) {
    throw Error(FLOWLESS_INVALID, format("window_frames is %d, window_ns %lld and max_gap_ns %lld; the first must be "
                                         "from 0 to %d, the others at least 0.",
                                         options.windowFrames, static_cast<long long>(options.windowNs),
                                         static_cast<long long>(options.maxGapNs), kLargestWindow));
  }
  if (mOnline && (options.windowFrames != 0 || options.windowNs != 0)) {
    throw Error(FLOWLESS_INVALID,
                "window_frames and window_ns are for rolling streams, and this one is online. Set both to 0.");
  }
  int32_t const window = options.windowFrames == 0 ? kDefaultWindow : options.windowFrames;
  mCapacity = mOnline ? static_cast<size_t>(spec.segments) : static_cast<size_t>(window);
  mSlots = mOnline ? mCapacity : mCapacity + 1;
  mPending = mSlots;
  mStaging = mSlots + 1;
  mPictures.resize((mOnline ? mSlots + 2 : mSlots) * mPreparedBytes);
  if (!mOnline) {
    mTimes.resize(mSlots);
    mIndices.resize(static_cast<size_t>(spec.clips()) * framesOf(spec));
    clipIndices(spec, window,
                mIndices.data());  // throws here, and not in a step, where the sampling rule is not supported
  }
}

size_t Stream::views() const {
  ClipSpec const& spec = mEngine->spec();
  return static_cast<size_t>(spec.crops()) * static_cast<size_t>(mOnline ? 1 : spec.clips());
}

void Stream::push(flowless_frame const& frame) {
  std::lock_guard<std::mutex> const pushing(mPushLock);
  // Neither a reset nor a step changes which slot is free, see clear().
  size_t free = 0;
  {
    std::lock_guard<std::mutex> const lock(mLock);
    free = mOnline ? mStaging : ringSlot(mCount);
  }
  mEngine->prepare(frame, slot(free));
  std::lock_guard<std::mutex> const lock(mLock);
  bool const gap = frame.pts_ns < mNewest || laterBy(frame.pts_ns, mNewest) > static_cast<uint64_t>(mOptions.maxGapNs);
  if (mOptions.maxGapNs > 0 && mHasNewest && gap) {
    clear();
    ++mState.resets;
  }
  ++mState.pushed;
  mState.replaced += mReady ? 1 : 0;
  mReady = true;
  mNewest = frame.pts_ns;
  mHasNewest = true;
  if (mOnline) {
    std::swap(mStaging, mPending);
    return;
  }
  mTimes[free] = frame.pts_ns;
  ++mCount;
  leaveWindow();
}

void Stream::reset() {
  std::lock_guard<std::mutex> const lock(mLock);
  clear();
  ++mState.resets;
}

void Stream::state(flowless_stream_state& state) {
  std::lock_guard<std::mutex> const lock(mLock);
  state = mState;
  state.ready = mReady ? 1 : 0;
  state.frames = static_cast<int32_t>(mCount);
}

// The ring's first free slot stays the same one, since a push may be writing into it.
void Stream::clear() {
  mFirst = mOnline ? 0 : ringSlot(mCount);
  mCount = 0;
  mReady = false;
  mHasNewest = false;
}

void Stream::leaveWindow() {
  auto const tooOld = [&](size_t index) {
    return mOptions.windowNs > 0 && mTimes[index] < mNewest &&
           laterBy(mNewest, mTimes[index]) > static_cast<uint64_t>(mOptions.windowNs);
  };
  while (mCount > mCapacity || (mCount > 1 && tooOld(mFirst))) {
    mFirst = ringSlot(1);
    --mCount;
  }
}

bool Stream::gather(Views& views, size_t first) {
  std::lock_guard<std::mutex> const lock(mLock);
  if (!mReady) {
    return false;
  }
  if (mOnline) {
    writeOnline(views, first);
  } else {
    writeRolling(views, first);
  }
  mReady = false;
  mGathered = mNewest;
  return true;
}

void Stream::confirm() {
  std::lock_guard<std::mutex> const lock(mLock);
  ++mState.scored;
  mState.pts_ns = mGathered;
}

void Stream::writeRolling(Views& views, size_t first) {
  ClipSpec const& spec = mEngine->spec();
  if (mIndexed != mCount) {
    clipIndices(spec, static_cast<int64_t>(mCount), mIndices.data());
    mIndexed = mCount;
  }
  // All clips of the first crop, then of the second: the order of ClipSpec's views.
  size_t const frames = framesOf(spec);
  auto const clips = static_cast<size_t>(spec.clips());
  for (size_t view = 0; view < this->views(); ++view) {
    size_t const crop = view / clips;
    int64_t const* const indices = mIndices.data() + (view % clips) * frames;
    for (size_t frame = 0; frame < frames; ++frame) {
      uint8_t const* const picture = slot(ringSlot(static_cast<size_t>(indices[frame]))) + crop * spec.pictureBytes();
      std::memcpy(views.at(first + view, frame), picture, spec.pictureBytes());
    }
  }
}

void Stream::writeOnline(Views& views, size_t first) {
  ClipSpec const& spec = mEngine->spec();
  if (mCount == mCapacity) {
    mFirst = ringSlot(1);
    --mCount;
  }
  std::memcpy(slot(ringSlot(mCount)), slot(mPending), mPreparedBytes);
  ++mCount;
  for (size_t crop = 0; crop < static_cast<size_t>(spec.crops()); ++crop) {
    for (size_t frame = 0; frame < mCapacity; ++frame) {
      // Before N frames were scored, the missing ones are copies of the first.
      size_t const missing = mCapacity - mCount;
      uint8_t const* const picture = slot(ringSlot(frame > missing ? frame - missing : 0)) + crop * spec.pictureBytes();
      std::memcpy(views.at(first + crop, frame), picture, spec.pictureBytes());
    }
  }
}

}  // namespace flowless::detail
