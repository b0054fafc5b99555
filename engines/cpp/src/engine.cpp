#include "engine.h"

#include <algorithm>
#include <utility>

#include "choose.h"
#include "status.h"
#include "stream.h"

namespace flowless::detail {
namespace {

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

Engine::Engine(std::string const& bundle, EngineOptions const& options)
    : mManifest(readManifest(bundle)), mFrames(mManifest), mClips(mManifest, mFrames) {
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
}

Engine::Engine(Manifest manifest, std::unique_ptr<Backend> backend)
    : mManifest(std::move(manifest)), mBackend(std::move(backend)), mFrames(mManifest), mClips(mManifest, mFrames) {}

void Engine::prepare(flowless_frame const& frame, uint8_t* picture) {
  std::unique_ptr<Preparer> preparer = mPreparers.take([&] { return std::make_unique<Preparer>(spec()); });
  ptrdiff_t const stride = frame.stride == 0 ? ptrdiff_t{3} * frame.width : frame.stride;
  preparer->prepare(frame.rgb, frame.width, frame.height, stride, picture);
  mPreparers.giveBack(std::move(preparer));
}

void Engine::run(uint8_t const* clips, int32_t batch, float* scores) {
  std::lock_guard<std::mutex> const lock(mRunLock);
  mClips.runFrom(*mBackend, clips, static_cast<size_t>(batch), scores);
}

void Engine::step(Streams const& streams, float* scores, uint8_t* answered) {
  std::lock_guard<std::mutex> const lock(mRunLock);
  std::fill_n(answered, streams.size(), uint8_t{0});
  try {
    scoreReady(streams, false, scores, answered);
    scoreReady(streams, true, scores, answered);
  } catch (...) {
    for (size_t index = 0; index < streams.size(); ++index) {
      if (answered[index] != 0) {
        streams[index]->putBack();
      }
      answered[index] = 0;
    }
    throw;
  }
  for (size_t index = 0; index < streams.size(); ++index) {
    if (answered[index] != 0) {
      streams[index]->confirm();
    }
  }
}

void Engine::scoreReady(Streams const& streams, bool stateful, float* scores, uint8_t* answered) {
  size_t first = 0;
  size_t gathered = 0;
  for (size_t index = 0; index < streams.size(); ++index) {
    Stream& stream = *streams[index];
    if (stream.stateful() != stateful) {
      continue;
    }
    if (gathered > 0 && gathered + stream.views() > kViewsAtOnce) {
      scoreGathered(streams, stateful, first, index, gathered, scores, answered);
      first = index;
      gathered = 0;
    }
    bool isGathered = false;
    if (stateful) {
      mFrames.reserve(gathered + stream.views());
      isGathered = stream.gather(mFrames, gathered);
    } else {
      mClips.reserve(gathered + stream.views());
      isGathered = stream.gather(mClips, gathered);
    }
    answered[index] = isGathered ? 1 : 0;
    gathered += isGathered ? stream.views() : 0;
  }
  scoreGathered(streams, stateful, first, streams.size(), gathered, scores, answered);
}

void Engine::scoreGathered(Streams const& streams, bool stateful, size_t first, size_t last, size_t views,
                           float* scores, uint8_t const* answered) {
  if (views == 0) {
    return;
  }
  auto const width = static_cast<size_t>(classes());
  if (mViewScores.size() < views * width) {
    mViewScores.resize(views * width);
  }
  if (stateful) {
    mFrames.step(*mBackend, views, mViewScores.data());
  } else {
    mClips.run(*mBackend, views, mViewScores.data());
  }
  size_t row = 0;
  for (size_t index = first; index < last; ++index) {
    Stream& stream = *streams[index];
    if (answered[index] == 0 || stream.stateful() != stateful) {
      continue;
    }
    averageViews(spec(), mViewScores.data() + row * width, static_cast<int32_t>(stream.views()), classes(),
                 scores + index * width);
    if (stateful) {
      stream.takeNext(mFrames, row);
    }
    row += stream.views();
  }
}

}  // namespace flowless::detail
