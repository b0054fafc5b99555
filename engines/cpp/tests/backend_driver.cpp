// Runs backends from the command line, for tests/cpp/test_backends.py. Errors: a line on standard error, and the status
// as exit code.
//
//   backend_driver scores BUNDLE TARGET PRECISION CLIPS BATCH OUT [DEVICE]  clips of raw bytes -> raw scores
//   backend_driver stream BUNDLE TARGET PRECISION CLIPS BATCH OUT           the same, frame by frame, of an online
//   graph backend_driver mismatch                                                 JSON cases on standard input -> a
//   JSON list backend_driver why-not BUNDLE TARGET PRECISION                          the reason, or an empty line
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "backends/backend.h"
#include "backends/compatibility.h"
#include "manifest.h"
#include "status.h"

namespace {

using namespace flowless::detail;

Artefact const& find(Manifest const& manifest, std::string const& target, std::string const& precision) {
  for (Artefact const& artefact : manifest.artefacts) {
    if (artefact.target == target && artefact.precision == precision) {
      return artefact;
    }
  }
  throw Error(FLOWLESS_MISSING, "the bundle has no engine " + target + " " + precision);
}

std::vector<uint8_t> read(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write(std::string const& path, std::vector<float> const& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<char const*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
}

// Clips [batch, N, picture] as an online graph's memory [batch, N - 1, picture] and frames [batch, picture].
struct Split {
  std::vector<uint8_t> memory;
  std::vector<uint8_t> frames;
};

Split split(ClipSpec const& spec, std::vector<uint8_t> const& clips, size_t batch) {
  Split parts;
  size_t const before = spec.clipBytes() - spec.pictureBytes();
  for (size_t row = 0; row < batch; ++row) {
    auto const clip = clips.begin() + static_cast<ptrdiff_t>(row * spec.clipBytes());
    parts.memory.insert(parts.memory.end(), clip, clip + static_cast<ptrdiff_t>(before));
    parts.frames.insert(parts.frames.end(), clip + static_cast<ptrdiff_t>(before),
                        clip + static_cast<ptrdiff_t>(spec.clipBytes()));
  }
  return parts;
}

// Feed the clips' frames one by one: the first memory repeats the first frame, the others are what the graph returns,
// in the same buffer.
void stream(Backend& backend, ClipSpec const& spec, std::vector<uint8_t> const& clips, size_t batch, float* scores) {
  auto const segments = static_cast<size_t>(spec.segments);
  size_t const picture = spec.pictureBytes();
  std::vector<uint8_t> memory(batch * (segments - 1) * picture);
  std::vector<uint8_t> frames(batch * picture);
  for (size_t index = 0; index < segments; ++index) {
    for (size_t row = 0; row < batch; ++row) {
      std::memcpy(frames.data() + row * picture, clips.data() + (row * segments + index) * picture, picture);
      for (size_t place = 0; index == 0 && place < segments - 1; ++place) {
        std::memcpy(memory.data() + (row * (segments - 1) + place) * picture, frames.data() + row * picture, picture);
      }
    }
    void* const carried[] = {memory.data()};
    backend.step(frames.data(), carried, static_cast<int32_t>(batch), scores);
  }
}

void score(int count, char** arguments) {
  if (count < 8) {
    throw Error(FLOWLESS_INVALID, "usage: scores|stream BUNDLE TARGET PRECISION CLIPS BATCH OUT [DEVICE]");
  }
  Manifest const manifest = readManifest(arguments[2]);
  Artefact const& artefact = find(manifest, arguments[3], arguments[4]);
  std::vector<uint8_t> const clips = read(arguments[5]);
  auto const batch = static_cast<size_t>(std::stoul(arguments[6]));
  if (clips.size() != batch * manifest.spec.clipBytes()) {
    throw Error(FLOWLESS_INVALID,
                format("%zu bytes are not %zu clips of %zu", clips.size(), batch, manifest.spec.clipBytes()));
  }
  auto const backend = openBackend(manifest, artefact, {1, count > 8 ? arguments[8] : ""});
  std::vector<float> scores(batch * manifest.labels.size());
  auto const rows = static_cast<int32_t>(batch);
  if (std::string(arguments[1]) == "stream") {
    stream(*backend, manifest.spec, clips, batch, scores.data());
  } else {
    for (int32_t call = 0; call < 3; ++call) {  // later calls use the first one's buffers, of more rows
      int32_t const now = call == 1 ? 1 : rows;
      if (manifest.memory == 0) {
        backend->run(clips.data(), now, scores.data());
      } else {
        Split parts = split(manifest.spec, clips, static_cast<size_t>(now));
        void* const carried[] = {parts.memory.data()};
        backend->step(parts.frames.data(), carried, now, scores.data());
      }
    }
  }
  write(arguments[7], scores);
  std::cout << backend->device() << "|" << backend->computes << "|" << backend->note << "\n";
}

Artefact artefactOf(nlohmann::json const& item) {
  Artefact artefact;
  artefact.target = item.at("target");
  artefact.precision = item.at("precision");
  artefact.versions = item.at("versions").get<std::map<std::string, std::string>>();
  nlohmann::json const& options = item.at("options");
  artefact.platform = options.value("platform", "");
  artefact.gpu = options.value("gpu", "");
  artefact.gpuComputeCapability = options.value("gpu_compute_capability", 0);
  artefact.computeCapabilities = options.value("compute_capabilities", std::vector<int32_t>{});
  artefact.portable = options.value("portable", false);
  return artefact;
}

void mismatches() {
  nlohmann::json lines = nlohmann::json::array();
  for (nlohmann::json const& item : nlohmann::json::parse(std::cin)) {
    nlohmann::json const& here = item.at("here");
    auto const line =
        mismatch(artefactOf(item.at("artefact")),
                 {here.at("version"), here.at("capability"), here.at("gpu"), here.at("platform"), here.at("known")});
    lines.push_back(line ? nlohmann::json(*line) : nlohmann::json());
  }
  std::cout << lines.dump() << "\n";
}

}  // namespace

int main(int count, char** arguments) {
  try {
    std::string const command = count > 1 ? arguments[1] : "";
    if (command == "mismatch") {
      mismatches();
    } else if (command == "why-not" && count == 5) {
      Manifest const manifest = readManifest(arguments[2]);
      std::cout << whyNot(find(manifest, arguments[3], arguments[4])).value_or("") << "\n";
    } else {
      score(count, arguments);
    }
    return FLOWLESS_OK;
  } catch (Error const& error) {
    std::cerr << error.what() << "\n";
    return error.status();
  }
}
