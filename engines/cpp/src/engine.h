// An open engine: one backend, and what prepares frames for it.
#ifndef FLOWLESS_SRC_ENGINE_H
#define FLOWLESS_SRC_ENGINE_H

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/backend.h"
#include "flowless/flowless.h"
#include "manifest.h"
#include "pool.h"
#include "resize.h"

namespace flowless::detail {

class Stream;

struct EngineOptions {
  std::string target;     // empty: any
  std::string precision;  // empty: any
  std::string device;     // CPU, GPU or empty
  int32_t threads = 0;    // 0: the library chooses
};

// Views while they are gathered. A view is the N x m pictures of a clip; for an online graph its last picture is the
// frame and the others are the memory. Grows to the largest batch so far.
class Views {
 public:
  Views(ClipSpec const& spec, bool online);

  void reserve(size_t views);
  // Where picture `picture` of view `view` is written; both must have been reserved.
  uint8_t* at(size_t view, size_t picture);
  void run(Backend& backend, size_t views, float* scores);

 private:
  size_t mPictures;
  size_t mPictureBytes;
  bool mOnline;
  std::vector<uint8_t> mClips;  // offline: whole clips; online: the memories
  std::vector<uint8_t> mFrames;
};

class Engine {
 public:
  Engine(std::string const& bundle, EngineOptions const& options);
  Engine(Manifest manifest, std::unique_ptr<Backend> backend);

  Manifest const& manifest() const { return mManifest; }
  ClipSpec const& spec() const { return mManifest.spec; }
  bool online() const { return mManifest.memory > 0; }
  int32_t classes() const { return static_cast<int32_t>(mManifest.labels.size()); }
  char const* target() const { return mTarget.c_str(); }
  char const* precision() const { return mPrecision.c_str(); }
  char const* device() const { return mBackend->device(); }
  char const* why() const { return mWhy.c_str(); }
  size_t preparedBytes() const { return spec().pictureBytes() * static_cast<size_t>(spec().crops()); }

  // Resize and crop a frame, which was checked; from any number of threads. `picture` has preparedBytes().
  void prepare(flowless_frame const& frame, uint8_t* picture);

  // Score clips [batch, N, m, H, W, 3]; one call runs after another.
  void run(uint8_t const* clips, int32_t batch, float* scores);

  // Score the streams that have a new frame; see flowless_step.
  void step(std::vector<std::shared_ptr<Stream>> const& streams, float* scores, uint8_t* answered);

 private:
  // Score the streams [first, last) whose views were gathered, and write their rows.
  void scoreGathered(std::vector<std::shared_ptr<Stream>> const& streams, size_t first, size_t last, size_t views,
                     float* scores, uint8_t const* answered);

  Manifest mManifest;
  std::string mTarget;
  std::string mPrecision;
  std::string mWhy;
  std::unique_ptr<Backend> mBackend;

  Pool<Preparer> mPreparers;

  std::mutex mRunLock;  // of what follows, and of the backend
  std::unique_ptr<Views> mViews;
  std::vector<float> mViewScores;
};

}  // namespace flowless::detail

#endif
