#include "views.h"

#include <algorithm>
#include <cstring>

namespace flowless::detail {
namespace {

int placeOf(std::vector<Port> const& ports, char const* name) {
  auto const found = std::find_if(ports.begin(), ports.end(), [&](Port const& port) { return port.name == name; });
  return found == ports.end() ? -1 : static_cast<int>(found - ports.begin());
}

}  // namespace

StatePlaces::StatePlaces(std::vector<Port> const& carried)
    : started(placeOf(carried, kStarted)), frames(placeOf(carried, kFrames)) {}

FrameBatch::FrameBatch(Manifest const& manifest)
    : mSpec(manifest.spec), mPlaces(manifest.carried()), mFrameBytes(manifest.spec.pictureBytes()) {
  for (Port const& port : manifest.carried()) {
    mRowBytes.push_back(port.rowBytes());
  }
  mCarried.resize(mRowBytes.size());
  mAddresses.resize(mRowBytes.size());
}

void FrameBatch::reserve(size_t views) {
  if (mFrames.size() >= views * mFrameBytes) {
    return;
  }
  for (size_t tensor = 0; tensor < mCarried.size(); ++tensor) {
    mCarried[tensor].resize(views * mRowBytes[tensor]);
    mAddresses[tensor] = mCarried[tensor].data();
  }
  mFrames.resize(views * mFrameBytes);
}

void FrameBatch::setStarted(size_t view, bool scored, bool frames) {
  float const started[] = {scored ? 1.0F : 0.0F, frames ? 1.0F : 0.0F};
  std::memcpy(carried(static_cast<size_t>(mPlaces.started), view), started, sizeof started);
}

void FrameBatch::step(Backend& backend, size_t views, float* scores) {
  backend.step(mFrames.data(), mAddresses.data(), static_cast<int32_t>(views), scores);
}

void FrameBatch::writeSegment(size_t view, uint8_t const* segment, bool isFirst) {
  for (size_t tensor = 0; isFirst && tensor < mCarried.size(); ++tensor) {
    std::memset(carried(tensor, view), 0, mRowBytes[tensor]);
  }
  setStarted(view, !isFirst, true);
  auto const before = static_cast<size_t>(mSpec.framesPerSegment - 1);
  if (before > 0) {
    std::memcpy(earlier(view, 0), segment, before * mFrameBytes);
  }
  std::memcpy(frame(view), segment + before * mFrameBytes, mFrameBytes);
}

void FrameBatch::runSegments(Backend& backend, uint8_t const* clips, size_t views, float* scores) {
  size_t const segmentBytes = static_cast<size_t>(mSpec.framesPerSegment) * mFrameBytes;
  reserve(views);
  for (int32_t segment = 0; segment < mSpec.segments; ++segment) {
    for (size_t view = 0; view < views; ++view) {
      uint8_t const* const clip = clips + view * mSpec.clipBytes();
      writeSegment(view, clip + static_cast<size_t>(segment) * segmentBytes, segment == 0);
    }
    step(backend, views, scores);  // the last segment's scores are the clip's
  }
}

ClipBatch::ClipBatch(Manifest const& manifest, FrameBatch& frames)
    : mFrames(frames),
      mOnline(manifest.memory > 0),
      mStreaming(!manifest.state.empty()),
      mClasses(manifest.labels.size()),
      mPictures(static_cast<size_t>(manifest.spec.segments) * static_cast<size_t>(manifest.spec.framesPerSegment)),
      mPictureBytes(manifest.spec.pictureBytes()) {}

void ClipBatch::reserve(size_t views) {
  if (mOnline) {
    mFrames.reserve(views);
  } else if (mClips.size() < mPictures * mPictureBytes * views) {
    mClips.resize(mPictures * mPictureBytes * views);
  }
}

uint8_t* ClipBatch::at(size_t view, size_t picture) {
  if (!mOnline) {
    return mClips.data() + (view * mPictures + picture) * mPictureBytes;
  }
  return picture == mPictures - 1 ? mFrames.frame(view) : mFrames.carried(0, view) + picture * mPictureBytes;
}

void ClipBatch::run(Backend& backend, size_t views, float* scores) {
  if (mOnline) {
    mFrames.step(backend, views, scores);  // the memory that the graph returns is this one moved on by a frame
  } else {
    runFrom(backend, mClips.data(), views, scores);
  }
}

void ClipBatch::runFrom(Backend& backend, uint8_t const* clips, size_t views, float* scores) {
  size_t const clipBytes = mPictures * mPictureBytes;
  if (mStreaming) {
    for (size_t first = 0; first < views; first += kViewsAtOnce) {
      mFrames.runSegments(backend, clips + first * clipBytes, std::min(kViewsAtOnce, views - first),
                          scores + first * mClasses);
    }
    return;
  }
  if (!mOnline) {
    backend.run(clips, static_cast<int32_t>(views), scores);
    return;
  }
  reserve(views);
  for (size_t view = 0; view < views; ++view) {
    for (size_t picture = 0; picture < mPictures; ++picture) {
      std::memcpy(at(view, picture), clips + view * clipBytes + picture * mPictureBytes, mPictureBytes);
    }
  }
  run(backend, views, scores);
}

}  // namespace flowless::detail
