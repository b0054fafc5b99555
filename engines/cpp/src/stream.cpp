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
    : mEngine(std::move(engine)),
      mKind(options.mode == FLOWLESS_MODE_ROLLING || (options.mode == FLOWLESS_MODE_DEFAULT && !mEngine->online())
                ? Kind::kRolling
            : mEngine->streaming() ? Kind::kStateful
                                   : Kind::kOnline),
      mPreparedBytes(mEngine->preparedBytes()),
      mOptions(options),
      mTensors(mEngine->manifest().state),
      mPlaces(mTensors) {
  checkOptions();
  ClipSpec const& spec = mEngine->spec();
  int32_t const window = options.windowFrames == 0 ? kDefaultWindow : options.windowFrames;
  mCapacity = static_cast<size_t>(mKind == Kind::kRolling  ? window
                                  : mKind == Kind::kOnline ? spec.segments
                                                           : spec.framesPerSegment);
  bool const online = mKind == Kind::kOnline;
  mSlots = online ? mCapacity : mCapacity + 1;
  mPending = mSlots;
  mStaging = mSlots + 1;
  mPictures.resize((online ? mSlots + 2 : mSlots) * mPreparedBytes);
  mTimes.resize(online ? 0 : mSlots);
  if (mKind == Kind::kRolling) {
    mIndices.resize(static_cast<size_t>(spec.clips()) * framesOf(spec));
    clipIndices(spec, window,
                mIndices.data());  // throws here, and not in a step, where the sampling rule is not supported
  }
  for (size_t tensor = 0; stateful() && tensor < mTensors.size(); ++tensor) {
    mKept.resize(mKept.size() + keptBytes(tensor) * static_cast<size_t>(spec.crops()));
  }
  mNext.resize(mKept.size());
}

void Stream::checkOptions() const {
  ClipSpec const& spec = mEngine->spec();
  if (mKind == Kind::kOnline && spec.framesPerSegment != 1) {
    throw Error(FLOWLESS_UNSUPPORTED,
                format("%s: its segments have %d frames; an online stream takes one new frame at a time, so it needs a "
                       "model whose "
                       "segments have 1, such as stm, tsm, tsn or pan-rgb. Use FLOWLESS_MODE_ROLLING.",
                       mEngine->manifest().model.c_str(), spec.framesPerSegment));
  }
  if (mOptions.windowFrames < 0 || mOptions.windowFrames > kLargestWindow || mOptions.windowNs < 0 ||
      mOptions.maxGapNs < 0) {
    throw Error(FLOWLESS_INVALID, format("window_frames is %d, window_ns %lld and max_gap_ns %lld; the first must be "
                                         "from 0 to %d, the others at least 0.",
                                         mOptions.windowFrames, static_cast<long long>(mOptions.windowNs),
                                         static_cast<long long>(mOptions.maxGapNs), kLargestWindow));
  }
  if (mKind != Kind::kRolling && (mOptions.windowFrames != 0 || mOptions.windowNs != 0)) {
    throw Error(FLOWLESS_INVALID,
                "window_frames and window_ns are for rolling streams, and this one is online. Set both to 0.");
  }
}

size_t Stream::views() const {
  ClipSpec const& spec = mEngine->spec();
  return static_cast<size_t>(spec.crops()) * static_cast<size_t>(mKind == Kind::kRolling ? spec.clips() : 1);
}

void Stream::push(flowless_frame const& frame) {
  std::lock_guard<std::mutex> const pushing(mPushLock);
  // Neither a reset nor a step changes which slot is free, see clear().
  size_t free = 0;
  {
    std::lock_guard<std::mutex> const lock(mLock);
    free = mKind == Kind::kOnline ? mStaging : ringSlot(mCount);
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
  if (mKind == Kind::kOnline) {
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
  mFirst = mKind == Kind::kOnline ? 0 : ringSlot(mCount);
  mCount = 0;
  mReady = false;
  mHasNewest = false;
  mHasKept = false;
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

bool Stream::gather(ClipBatch& batch, size_t first) {
  std::lock_guard<std::mutex> const lock(mLock);
  if (!mReady) {
    return false;
  }
  note();
  if (mKind == Kind::kOnline) {
    enterRing();
    writeOnline(batch, first);
  } else {
    writeRolling(batch, first);
  }
  mReady = false;
  return true;
}

bool Stream::gather(FrameBatch& batch, size_t first) {
  std::lock_guard<std::mutex> const lock(mLock);
  if (!mReady) {
    return false;
  }
  note();
  writeStateful(batch, first);
  mReady = false;
  return true;
}

void Stream::note() { mGathered = {mState.resets, mNewest, mFirst, mCount}; }

void Stream::takeNext(FrameBatch& batch, size_t first) {
  uint8_t* to = mNext.data();
  for (size_t tensor = 0; tensor < mTensors.size(); ++tensor) {
    size_t const bytes = keptBytes(tensor) * views();
    std::memcpy(to, batch.carried(tensor, first), bytes);
    to += bytes;
  }
}

void Stream::confirm() {
  std::lock_guard<std::mutex> const lock(mLock);
  ++mState.scored;
  mState.pts_ns = mGathered.time;
  if (stateful() && mState.resets == mGathered.resets) {
    mKept.swap(mNext);
    mHasKept = true;
  }
}

void Stream::putBack() {
  std::lock_guard<std::mutex> const lock(mLock);
  if (mState.resets != mGathered.resets) {
    return;  // the frame is forgotten
  }
  if (mKind == Kind::kOnline) {  // a ring that was full has lost its oldest frame, which the next step drops anyway
    mFirst = mGathered.first;
    mCount = mGathered.count;
  }
  mState.replaced += mReady ? 1 : 0;
  mReady = true;
}

void Stream::writeRolling(ClipBatch& batch, size_t first) {
  ClipSpec const& spec = mEngine->spec();
  if (mIndexed != mCount) {
    clipIndices(spec, static_cast<int64_t>(mCount), mIndices.data());
    mIndexed = mCount;
  }
  // All clips of the first crop, then of the second: the order of ClipSpec's views.
  size_t const frames = framesOf(spec);
  auto const clips = static_cast<size_t>(spec.clips());
  for (size_t view = 0; view < views(); ++view) {
    size_t const crop = view / clips;
    int64_t const* const indices = mIndices.data() + (view % clips) * frames;
    for (size_t frame = 0; frame < frames; ++frame) {
      uint8_t const* const picture = slot(ringSlot(static_cast<size_t>(indices[frame]))) + crop * spec.pictureBytes();
      std::memcpy(batch.at(first + view, frame), picture, spec.pictureBytes());
    }
  }
}

// The frame that waits becomes the newest of the ring.
void Stream::enterRing() {
  if (mCount == mCapacity) {
    mFirst = ringSlot(1);
    --mCount;
  }
  std::memcpy(slot(ringSlot(mCount)), slot(mPending), mPreparedBytes);
  ++mCount;
}

void Stream::writeOnline(ClipBatch& batch, size_t first) {
  ClipSpec const& spec = mEngine->spec();
  for (size_t crop = 0; crop < static_cast<size_t>(spec.crops()); ++crop) {
    for (size_t frame = 0; frame < mCapacity; ++frame) {
      // Before N frames were scored, the missing ones are copies of the first.
      size_t const missing = mCapacity - mCount;
      uint8_t const* const picture = slot(ringSlot(frame > missing ? frame - missing : 0)) + crop * spec.pictureBytes();
      std::memcpy(batch.at(first + crop, frame), picture, spec.pictureBytes());
    }
  }
}

void Stream::writeStateful(FrameBatch& batch, size_t first) {
  uint8_t const* kept = mKept.data();
  for (size_t tensor = 0; tensor < mTensors.size(); ++tensor) {
    size_t const bytes = keptBytes(tensor) * views();
    if (mHasKept) {
      std::memcpy(batch.carried(tensor, first), kept, bytes);
    } else {
      std::memset(batch.carried(tensor, first), 0, bytes);
    }
    kept += bytes;
  }
  size_t const one = mEngine->spec().pictureBytes();
  size_t const missing = mCapacity - mCount;
  for (size_t crop = 0; crop < views(); ++crop) {
    batch.setStarted(first + crop, mHasKept, true);
    for (size_t frame = 0; frame < mCapacity; ++frame) {
      // Before m frames were pushed, the missing ones are copies of the first.
      uint8_t const* const picture = slot(ringSlot(frame > missing ? frame - missing : 0)) + crop * one;
      bool const isNewest = frame + 1 == mCapacity;
      std::memcpy(isNewest ? batch.frame(first + crop) : batch.earlier(first + crop, frame), picture, one);
    }
  }
}

}  // namespace flowless::detail
