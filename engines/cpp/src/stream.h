// One camera: the window of a rolling clip, or the last frames that an online model scored.
#ifndef FLOWLESS_SRC_STREAM_H
#define FLOWLESS_SRC_STREAM_H

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "engine.h"
#include "flowless/flowless.h"

namespace flowless::detail {

struct StreamOptions {
  flowless_mode mode = FLOWLESS_MODE_DEFAULT;
  int32_t windowFrames = 0;
  int64_t windowNs = 0;
  int64_t maxGapNs = 0;
};

// Pictures, which are frames resized and cropped, lie in slots of one buffer. The last slot that the ring does not use
// is the one that the next frame is prepared in, without a lock.
class Stream {
 public:
  // Throws Error: the mode does not fit the engine, an option is out of range.
  Stream(std::shared_ptr<Engine> engine, StreamOptions const& options);

  Engine const* engine() const { return mEngine.get(); }

  // A frame that was checked. Waits at most while a step copies this stream's views.
  void push(flowless_frame const& frame);
  void reset();
  void state(flowless_stream_state& state);

  // Views that one step scores.
  size_t views() const;
  // Write the views of the newest frame; false where no frame has come since the last time. For the engine's step, like
  // confirm.
  bool gather(Views& views, size_t first);
  void confirm();

 private:
  uint8_t* slot(size_t index) { return mPictures.data() + index * mPreparedBytes; }
  size_t ringSlot(size_t position) const { return (mFirst + position) % mSlots; }
  void clear();
  void leaveWindow();
  void writeRolling(Views& views, size_t first);
  void writeOnline(Views& views, size_t first);

  std::shared_ptr<Engine> const mEngine;
  bool mOnline;
  size_t mCapacity;       // pictures in the ring
  size_t mSlots;          // slots of the ring: one more where the next frame is prepared in it
  size_t mPreparedBytes;  // of a picture with all its crops
  StreamOptions mOptions;

  std::mutex mPushLock;  // of the slot that is written without mLock

  std::mutex mLock;  // of all that follows
  std::vector<uint8_t> mPictures;
  std::vector<int64_t> mTimes;    // rolling: time stamp of each slot
  std::vector<int64_t> mIndices;  // rolling: of the clips of a window of mIndexed frames
  size_t mIndexed = 0;
  size_t mFirst = 0;
  size_t mCount = 0;
  size_t mPending;  // online: slot of the newest frame
  size_t mStaging;  // online: slot that the next frame is prepared in
  bool mReady = false;
  bool mHasNewest = false;  // a frame was pushed since the last reset
  int64_t mNewest = 0;      // time stamp of the newest frame
  int64_t mGathered = 0;    // and of the newest one that a step gathered
  flowless_stream_state mState{};
};

}  // namespace flowless::detail

#endif
