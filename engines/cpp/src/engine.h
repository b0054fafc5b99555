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
#include "views.h"

namespace flowless::detail {

class Stream;

struct EngineOptions {
  std::string target;     // empty: any
  std::string precision;  // empty: any
  std::string device;     // CPU, GPU or empty
  int32_t threads = 0;    // 0: the library chooses
};

class Engine {
 public:
  Engine(std::string const& bundle, EngineOptions const& options);
  Engine(Manifest manifest, std::unique_ptr<Backend> backend);

  Manifest const& manifest() const { return mManifest; }
  ClipSpec const& spec() const { return mManifest.spec; }
  // Whether the graph takes a frame, and carries a memory or a state to the next one.
  bool online() const { return mManifest.memory > 0 || streaming(); }
  // Whether it carries a state.
  bool streaming() const { return !mManifest.state.empty(); }
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

  // Score the streams that have a new frame; see flowless_step. Where it throws, the streams are as they were.
  void step(std::vector<std::shared_ptr<Stream>> const& streams, float* scores, uint8_t* answered);

 private:
  using Streams = std::vector<std::shared_ptr<Stream>>;

  // Score the streams whose views are clips or, where `stateful`, those that keep a state.
  void scoreReady(Streams const& streams, bool stateful, float* scores, uint8_t* answered);
  // Score those of [first, last) that were gathered, and write their rows.
  void scoreGathered(Streams const& streams, bool stateful, size_t first, size_t last, size_t views, float* scores,
                     uint8_t const* answered);

  Manifest mManifest;
  std::string mTarget;
  std::string mPrecision;
  std::string mWhy;
  std::unique_ptr<Backend> mBackend;

  Pool<Preparer> mPreparers;

  std::mutex mRunLock;  // of what follows, and of the backend
  FrameBatch mFrames;
  ClipBatch mClips;
  std::vector<float> mViewScores;
};

}  // namespace flowless::detail

#endif
