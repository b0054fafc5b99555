#include "engine.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "choose.h"
#include "status.h"
#include "stream.h"

namespace flowless::detail {
namespace {

// Views that are scored at once in a step: 64 of 8 x 4 frames of 224 x 224 take 308 MB.
constexpr size_t kViewsAtOnce = 64;

bool onGpuOnly(std::string const& target) { return target == "tensorrt" || target == "tensorrt-rtx"; }

// Leave out engines that a device cannot run.
void keepDevice(Manifest& manifest, std::string const& device) {
  auto& engines = manifest.artefacts;
  auto const other = [&](Artefact const& item) {
    return device == "CPU" ? onGpuOnly(item.target) : device == "GPU" && item.target == "openvino";
  };
  engines.erase(std::remove_if(engines.begin(), engines.end(), other), engines.end());
}

// Choose among a bundle's engines for the device that is wanted.
Choice chooseFor(Manifest const& manifest, Manifest const& candidates, EngineOptions const& options) {
  if (candidates.artefacts.empty() && !manifest.artefacts.empty()) {
    std::vector<std::string> have;
    for (Artefact const& item : manifest.artefacts) {
      have.push_back(item.target + " " + item.precision);
    }
    throw Error(
        FLOWLESS_MISSING,
        format(
            "%s: device is %s, and no engine of this bundle runs on one: OpenVINO runs on the CPU alone, TensorRT on "
            "GPUs "
            "alone. The bundle's engines: %s. Leave the device out, or build one with: flowless build %s --target %s",
            manifest.folder.c_str(), options.device.c_str(), joined(have, ", ").c_str(), manifest.folder.c_str(),
            options.device == "CPU" ? "openvino" : "tensorrt"));
  }
  return chooseEngine(candidates, options.target, options.precision);
}

}  // namespace

Views::Views(ClipSpec const& spec, bool online)
    : mPictures(static_cast<size_t>(spec.segments) * static_cast<size_t>(spec.framesPerSegment)),
      mPictureBytes(spec.pictureBytes()),
      mOnline(online) {}

void Views::reserve(size_t views) {
  size_t const inClips = (mPictures - (mOnline ? 1 : 0)) * mPictureBytes * views;
  if (mClips.size() < inClips) {
    mClips.resize(inClips);
  }
  if (mOnline && mFrames.size() < views * mPictureBytes) {
    mFrames.resize(views * mPictureBytes);
  }
}

uint8_t* Views::at(size_t view, size_t picture) {
  if (!mOnline) {
    return mClips.data() + (view * mPictures + picture) * mPictureBytes;
  }
  if (picture == mPictures - 1) {
    return mFrames.data() + view * mPictureBytes;
  }
  return mClips.data() + (view * (mPictures - 1) + picture) * mPictureBytes;
}

void Views::run(Backend& backend, size_t views, float* scores) {
  auto const batch = static_cast<int32_t>(views);
  if (mOnline) {
    // The memory that the graph returns is this one moved on by a frame; streams keep their pictures themselves.
    backend.step(mFrames.data(), mClips.data(), batch, scores, mClips.data());
  } else {
    backend.run(mClips.data(), batch, scores);
  }
}

Engine::Engine(std::string const& bundle, EngineOptions const& options) : mManifest(readManifest(bundle)) {
  if (!options.device.empty() && options.device != "CPU" && options.device != "GPU") {
    throw Error(FLOWLESS_INVALID, "device is " + quoted(options.device) + "; it must be CPU, GPU or NULL.");
  }
  if (options.threads < 0) {
    throw Error(FLOWLESS_INVALID,
                format("threads is %d; it must be at least 1, or 0 to let the library choose.", options.threads));
  }
  Manifest candidates = mManifest;
  keepDevice(candidates, options.device);
  Choice const choice = chooseFor(mManifest, candidates, options);
  Artefact const& artefact = *choice.artefact;
  for (std::string const& file : artefact.files) {
    mManifest.check(file);
  }
  mBackend = openBackend(mManifest, artefact, OpenSettings{options.threads, options.device});
  if (!options.device.empty() && options.device != mBackend->device()) {
    throw Error(
        FLOWLESS_UNSUPPORTED,
        format("%s: device is %s, and %s runs on the %s here%s. Leave the device out, or free the GPU.", bundle.c_str(),
               options.device.c_str(), artefact.target.c_str(), mBackend->device(), mBackend->note.c_str()));
  }
  mTarget = artefact.target;
  mPrecision = mBackend->computes.empty() ? artefact.precision : mBackend->computes;
  mWhy = choice.why + mBackend->note;
  mViews = std::make_unique<Views>(spec(), online());
}

Engine::Engine(Manifest manifest, std::unique_ptr<Backend> backend)
    : mManifest(std::move(manifest)),
      mBackend(std::move(backend)),
      mViews(std::make_unique<Views>(mManifest.spec, mManifest.memory > 0)) {}

void Engine::prepare(flowless_frame const& frame, uint8_t* picture) {
  std::unique_ptr<Preparer> preparer = mPreparers.take([&] { return std::make_unique<Preparer>(spec()); });
  ptrdiff_t const stride = frame.stride == 0 ? ptrdiff_t{3} * frame.width : frame.stride;
  preparer->prepare(frame.rgb, frame.width, frame.height, stride, picture);
  mPreparers.giveBack(std::move(preparer));
}

void Engine::run(uint8_t const* clips, int32_t batch, float* scores) {
  std::lock_guard<std::mutex> const lock(mRunLock);
  if (!online()) {
    mBackend->run(clips, batch, scores);
    return;
  }
  auto const views = static_cast<size_t>(batch);
  auto const pictures = static_cast<size_t>(spec().segments);
  mViews->reserve(views);
  for (size_t view = 0; view < views; ++view) {
    for (size_t picture = 0; picture < pictures; ++picture) {
      std::memcpy(mViews->at(view, picture), clips + (view * pictures + picture) * spec().pictureBytes(),
                  spec().pictureBytes());
    }
  }
  mViews->run(*mBackend, views, scores);
}

void Engine::step(std::vector<std::shared_ptr<Stream>> const& streams, float* scores, uint8_t* answered) {
  std::lock_guard<std::mutex> const lock(mRunLock);
  size_t first = 0;
  size_t gathered = 0;
  for (size_t index = 0; index < streams.size(); ++index) {
    if (gathered > 0 && gathered + streams[index]->views() > kViewsAtOnce) {
      scoreGathered(streams, first, index, gathered, scores, answered);
      first = index;
      gathered = 0;
    }
    mViews->reserve(gathered + streams[index]->views());
    answered[index] = streams[index]->gather(*mViews, gathered) ? 1 : 0;
    gathered += answered[index] != 0 ? streams[index]->views() : 0;
  }
  scoreGathered(streams, first, streams.size(), gathered, scores, answered);
}

void Engine::scoreGathered(std::vector<std::shared_ptr<Stream>> const& streams, size_t first, size_t last, size_t views,
                           float* scores, uint8_t const* answered) {
  if (views == 0) {
    return;
  }
  auto const width = static_cast<size_t>(classes());
  if (mViewScores.size() < views * width) {
    mViewScores.resize(views * width);
  }
  mViews->run(*mBackend, views, mViewScores.data());
  float const* row = mViewScores.data();
  for (size_t index = first; index < last; ++index) {
    if (answered[index] != 0) {
      averageViews(spec(), row, static_cast<int32_t>(streams[index]->views()), classes(), scores + index * width);
      row += streams[index]->views() * width;
      streams[index]->confirm();
    }
  }
}

}  // namespace flowless::detail
