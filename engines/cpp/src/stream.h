// One camera: the window of a rolling clip, the last frames that an online model scored, or a streaming graph's state.
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
// is the one that the next frame is prepared in, without a lock. Beside a state, the ring has the newest m frames that
// were pushed, which are the segment that the next step scores.
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
  // Whether its views are frames with a state; otherwise they are clips.
  bool stateful() const { return mKind == Kind::kStateful; }

  // For the engine's step, in this order. Write the views of the newest frame; false where no frame has come since the
  // last time.
  bool gather(ClipBatch& batch, size_t first);
  bool gather(FrameBatch& batch, size_t first);
  // Copy the next state.
  void takeNext(FrameBatch& batch, size_t first);
  // The frame that was gathered was scored; or it was not, and the stream is as it was.
  void confirm();
  void putBack();

 private:
  enum class Kind { kRolling, kOnline, kStateful };

  uint8_t* slot(size_t index) { return mPictures.data() + index * mPreparedBytes; }
  // Bytes of a tensor of the state of one view that are kept between steps: those of `frames` are in the ring.
  size_t keptBytes(size_t tensor) const {
    return static_cast<int>(tensor) == mPlaces.frames ? 0 : mTensors[tensor].rowBytes();
  }
  size_t ringSlot(size_t position) const { return (mFirst + position) % mSlots; }
  void checkOptions() const;
  void clear();
  void leaveWindow();
  void note();
  void enterRing();
  void writeRolling(ClipBatch& batch, size_t first);
  void writeOnline(ClipBatch& batch, size_t first);
  void writeStateful(FrameBatch& batch, size_t first);

  std::shared_ptr<Engine> const mEngine;
  Kind mKind;
  size_t mCapacity;       // pictures in the ring
  size_t mSlots;          // slots of the ring: one more where the next frame is prepared in it
  size_t mPreparedBytes;  // of a picture with all its crops
  StreamOptions mOptions;

  // Stateful: the tensors of the engine's state, and which of them are written anew for each frame.
  std::vector<Port> const mTensors;
  StatePlaces const mPlaces;

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
  flowless_stream_state mState{};

  // What a step that runs has gathered.
  struct Gathered {
    uint64_t resets = 0;  // before it
    int64_t time = 0;     // time stamp of the frame
    size_t first = 0;     // online: mFirst and mCount before it
    size_t count = 0;
  } mGathered;

  // Stateful: the kept tensors [crops, ...], one after another, after the newest frame that was scored; mNext after the
  // one that is being scored, which no other thread uses.
  std::vector<uint8_t> mKept;
  std::vector<uint8_t> mNext;
  bool mHasKept = false;  // otherwise zeros
};

}  // namespace flowless::detail

#endif
