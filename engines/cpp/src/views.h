// Batches of views while they are gathered and scored. They grow to the largest batch so far, and allocate nothing
// after that.
#ifndef FLOWLESS_SRC_VIEWS_H
#define FLOWLESS_SRC_VIEWS_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backends/backend.h"
#include "manifest.h"

namespace flowless::detail {

// Views that are scored at once: 64 of 8 x 4 frames of 224 x 224 take 308 MB.
inline constexpr size_t kViewsAtOnce = 64;

// Which tensors of Manifest::carried() are written anew for each frame; -1 where there are none.
struct StatePlaces {
  explicit StatePlaces(std::vector<Port> const& carried);
  int started;  // kStarted
  int frames;   // kFrames
};

// For a graph that takes a frame: the frame of each view, and what the graph carries from the frames before it.
class FrameBatch {
 public:
  explicit FrameBatch(Manifest const& manifest);

  void reserve(size_t views);
  // Where the frame of view `view` is written; it must have been reserved.
  uint8_t* frame(size_t view) { return mFrames.data() + view * mFrameBytes; }
  // Where a tensor of the view is written; after `step`, the next one is there.
  uint8_t* carried(size_t tensor, size_t view) { return mCarried[tensor].data() + view * mRowBytes[tensor]; }
  // Where an earlier frame of a view's segment is written, the oldest first, for a graph with a state.
  uint8_t* earlier(size_t view, size_t frame) {
    return carried(static_cast<size_t>(mPlaces.frames), view) + frame * mFrameBytes;
  }
  // Write a view's `started`: whether a frame was scored before, and whether the earlier frames of its segment are
  // there.
  void setStarted(size_t view, bool scored, bool frames);
  void step(Backend& backend, size_t views, float* scores);

  // Score clips [views, N, m, H, W, 3] with a streaming graph, one segment after another.
  void runSegments(Backend& backend, uint8_t const* clips, size_t views, float* scores);

 private:
  void writeSegment(size_t view, uint8_t const* segment, bool isFirst);

  ClipSpec mSpec;
  StatePlaces mPlaces;
  size_t mFrameBytes;
  std::vector<size_t> mRowBytes;
  std::vector<uint8_t> mFrames;
  std::vector<std::vector<uint8_t>> mCarried;
  std::vector<void*> mAddresses;  // of mCarried
};

// Whole clips, of N x m pictures, for any graph. An online graph takes the last picture as its frame and the others as
// its memory.
class ClipBatch {
 public:
  ClipBatch(Manifest const& manifest, FrameBatch& frames);

  void reserve(size_t views);
  // Where picture `picture` of view `view` is written; both must have been reserved.
  uint8_t* at(size_t view, size_t picture);
  // Score the views that were written.
  void run(Backend& backend, size_t views, float* scores);
  // Score clips [views, N, m, H, W, 3] that lie elsewhere.
  void runFrom(Backend& backend, uint8_t const* clips, size_t views, float* scores);

 private:
  FrameBatch& mFrames;
  bool mOnline;
  bool mStreaming;
  size_t mClasses;
  size_t mPictures;
  size_t mPictureBytes;
  std::vector<uint8_t> mClips;  // not of an online graph
};

}  // namespace flowless::detail

#endif
