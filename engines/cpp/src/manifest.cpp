#include "manifest.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <utility>

#include "manifest_json.h"
#include "status.h"

namespace flowless::detail {
namespace {

namespace fs = std::filesystem;

constexpr char const* kFormat = "flowless-bundle";
constexpr int64_t kVersion = 1;
constexpr size_t kLongest = size_t{16} << 20;  // bytes of a manifest
constexpr double kBeyondIntegers = 9223372036854775808.0;

template <class T>
T valueOf(Json const& table, char const* name) {
  auto const found = table.find(name);
  return found == table.end() || found->is_null() ? T() : found->get<T>();
}

// A compute capability; one that is too large for 32 bits fits no GPU.
int32_t capabilityOf(int64_t value) { return static_cast<int32_t>(std::min<int64_t>(value, INT32_MAX)); }

Artefact readArtefact(Json const& item) {
  static Json const kNone = Json::object();
  Json const& options = item.contains("options") ? item["options"] : kNone;
  Json const& figures = item.contains("figures") ? item["figures"] : kNone;
  Artefact artefact;
  artefact.target = item["target"].get<std::string>();
  artefact.precision = item["precision"].get<std::string>();
  artefact.status = item["status"].get<std::string>();
  artefact.files = item["files"].get<std::vector<std::string>>();
  artefact.versions = valueOf<std::map<std::string, std::string>>(item, "versions");
  artefact.hint = valueOf<std::string>(options, "hint");
  artefact.platform = valueOf<std::string>(options, "platform");
  artefact.gpu = valueOf<std::string>(options, "gpu");
  artefact.gpuComputeCapability = capabilityOf(valueOf<int64_t>(options, "gpu_compute_capability"));
  for (int64_t const value : valueOf<std::vector<int64_t>>(options, "compute_capabilities")) {
    artefact.computeCapabilities.push_back(capabilityOf(value));
  }
  artefact.portable = valueOf<bool>(options, "portable");
  artefact.stripped = valueOf<bool>(options, "stripped");
  artefact.refitFrom = valueOf<std::string>(options, "refit_from");
  artefact.pluginPa = valueOf<std::string>(options, "pa") == "plugin";
  if (figures.contains("latency_ms_p50")) {
    artefact.latencyMs = figures["latency_ms_p50"].get<double>();
  }
  artefact.machine = valueOf<std::string>(figures, "machine");
  return artefact;
}

void checkArtefact(Artefact const& artefact) {
  static char const* const kTargetNames[] = {"tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"};
  static char const* const kStatuses[] = {"verified", "built, not compared", "built, not run here"};
  bool const target =
      std::find(std::begin(kTargetNames), std::end(kTargetNames), artefact.target) != std::end(kTargetNames);
  bool const status = std::find(std::begin(kStatuses), std::end(kStatuses), artefact.status) != std::end(kStatuses);
  if (!target || !status || artefact.files.empty()) {
    throw WrongContents("artefact " + quoted(artefact.target) + " of status " + quoted(artefact.status) + " with " +
                        std::to_string(artefact.files.size()) + " files is unknown");
  }
}

std::string shownSizes(std::vector<int64_t> const& sizes) {
  std::vector<std::string> texts;
  for (int64_t const size : sizes) {
    texts.push_back(std::to_string(size));
  }
  return "[" + joined(texts, ", ") + "]";
}

void readMemory(Json const& body, Manifest& manifest) {
  ClipSpec const& spec = manifest.spec;
  int64_t const memory = *integerOf(body["memory"]);
  if (memory != 0 && (memory != spec.segments - 1 || spec.framesPerSegment != 1)) {
    throw WrongContents("memory is " + std::to_string(memory) + " of a clip of " +
                        shownSizes({spec.segments, spec.framesPerSegment, spec.height, spec.width, 3}));
  }
  manifest.memory = static_cast<int32_t>(memory);
}

std::string shownPort(Port const& tensor) {
  return tensor.name + ": " + (tensor.pixels ? "uint8 " : "float32 ") + shownSizes(tensor.row);
}

bool isTooLarge(Port const& tensor) {
  int64_t elements = 1;
  for (int64_t const size : tensor.row) {  // each is at most the largest number
    elements *= size;
    if (elements > kMostElements) {
      return true;
    }
  }
  return false;
}

// Throws WrongContents where a state does not fit the clip: the checks of Python's _check_state, in the same order.
void checkState(Manifest const& manifest) {
  if (manifest.state.empty()) {
    return;
  }
  if (manifest.memory != 0) {
    throw WrongContents(format("memory is %d beside a state", manifest.memory));
  }
  std::map<std::string, Port const*> there;
  for (Port const& tensor : manifest.state) {
    if (!there.emplace(tensor.name, &tensor).second) {
      throw WrongContents("state has the name " + quoted(tensor.name) + " twice");
    }
    if (isTooLarge(tensor)) {
      throw WrongContents("state " + shownPort(tensor) + " has more than 2^31 - 1 elements");
    }
  }
  ClipSpec const& spec = manifest.spec;
  auto const features = there.find(kFeatures);
  int64_t const feature = features == there.end() ? 1 : features->second->row.back();
  Port const wanted[] = {{kStarted, false, {2}},
                         {kFeatures, false, {spec.segments - 1, feature}},
                         {kFrames, true, {spec.framesPerSegment - 1, spec.height, spec.width, 3}}};
  for (Port const& port : wanted) {
    auto const found = there.find(port.name);
    bool const isThere = found != there.end();
    bool const isWanted = port.row.front() > 0;  // neither features of no segment nor frames of none
    bool const same = isThere && found->second->pixels == port.pixels && found->second->row == port.row;
    if (isWanted ? !same : isThere) {
      throw WrongContents("state " + (isThere ? shownPort(*found->second) : port.name + ": missing") +
                          " for a clip of " +
                          shownSizes({spec.segments, spec.framesPerSegment, spec.height, spec.width, 3}));
    }
  }
}

void readState(Json const& body, Manifest& manifest) {
  for (Json const& item : body["state"]) {
    manifest.state.push_back(
        {item["name"].get<std::string>(), item["dtype"] == "uint8", item["shape"].get<std::vector<int64_t>>()});
  }
  checkState(manifest);
}

Manifest readBody(std::string const& folder, Json body) {
  body.erase("format");
  body.erase("version");
  body.emplace("trials", Json::array());  // older bundles have none of these
  body.emplace("memory", 0);
  body.emplace("config", Json::object());
  body.emplace("state", Json::array());
  checkFieldTypes(body);
  if (body["labels"].empty()) {
    throw WrongContents("labels must be a list of at least one name");
  }
  Manifest manifest;
  manifest.folder = folder;
  manifest.model = body["model"].get<std::string>();
  try {
    manifest.spec = readClipSpec(body["spec"]);
  } catch (Error const& error) {
    throw Error(error.status(), folder + "/manifest.json: " + error.what());
  }
  manifest.labels = body["labels"].get<std::vector<std::string>>();
  readMemory(body, manifest);
  readState(body, manifest);
  manifest.graph = body["graph"].get<std::string>();
  manifest.reference = body["reference"].get<std::string>();
  for (auto const& [name, record] : body["files"].items()) {
    manifest.files[name] = {record["sha256"].get<std::string>(), record["bytes"].get<uint64_t>()};
  }
  for (Json const& item : body["artefacts"]) {
    manifest.artefacts.push_back(readArtefact(item));
    checkArtefact(manifest.artefacts.back());
  }
  for (Json const& row : body["trials"]) {
    if (valueOf<bool>(row, "recommended")) {
      manifest.recommendations.push_back({valueOf<std::string>(row, "machine"), row["target"].get<std::string>(),
                                          row["precision"].get<std::string>()});
    }
  }
  return manifest;
}

void checkPaths(Manifest const& manifest) {
  manifest.pathOf(manifest.graph);
  manifest.pathOf(manifest.reference);
  for (auto const& [name, record] : manifest.files) {
    manifest.pathOf(name);
  }
  for (Artefact const& artefact : manifest.artefacts) {
    for (std::string const& name : artefact.files) {
      manifest.pathOf(name);
    }
  }
}

void checkVersion(std::string const& path, Json const& document) {
  Json const version = document.contains("version") ? document["version"] : Json();
  if (integerOf(version) == kVersion) {
    return;
  }
  bool const newer =
      integerOf(version).value_or(0) > kVersion || (version.is_number() && version.get<double>() >= kBeyondIntegers);
  throw Error(newer ? FLOWLESS_UNSUPPORTED : FLOWLESS_DAMAGED,
              path + ": is a " + kFormat + " of version " + shown(version) + "; this flowless reads version " +
                  std::to_string(kVersion) + (newer ? ". Update flowless." : ". Export the model again."));
}

// A path as Python prints it: without doubled and final slashes, and without
// "." in it.
std::string tidy(std::string const& folder) {
  std::string text = folder.substr(0, 1) == "/" ? "/" : "";
  for (size_t at = 0; at < folder.size();) {
    size_t const end = std::min(folder.find('/', at), folder.size());
    std::string const part = folder.substr(at, end - at);
    if (!part.empty() && part != ".") {
      text += (text.empty() || text == "/" ? "" : "/") + part;
    }
    at = end + 1;
  }
  return text.empty() ? "." : text;
}

std::string readText(std::string const& folder, std::string const& path) {
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored)) {
    throw Error(FLOWLESS_DAMAGED, path + ": not a regular file. Copy the bundle again, or export the model again.");
  }
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file == nullptr && errno == ENOENT) {
    throw Error(FLOWLESS_MISSING, folder +
                                      ": not a bundle: it has no manifest.json. Make one "
                                      "with: flowless export CHECKPOINT --out BUNDLE");
  }
  std::string text;
  bool failed = file == nullptr;
  if (file != nullptr) {
    char block[1 << 14];
    size_t count = 0;
    while (text.size() <= kLongest && (count = std::fread(block, 1, sizeof block, file)) > 0) {
      text.append(block, count);
    }
    failed = std::ferror(file) != 0;
  }
  std::string const reason = failed ? std::strerror(errno) : "";
  if (file != nullptr) {
    std::fclose(file);
  }
  if (failed) {
    throw Error(FLOWLESS_RUNTIME, path + ": cannot be read (" + reason + ").");
  }
  return text;
}

}  // namespace

std::vector<Port> Manifest::carried() const {
  if (memory == 0) {
    return state;
  }
  return {{"memory", true, {memory, spec.height, spec.width, 3}}};
}

Manifest parseManifest(std::string const& folder, std::string_view text) {
  std::string const bundle = tidy(folder);
  std::string const path = bundle + "/manifest.json";
  char const* const remedy = "). Copy the bundle again, or export the model again.";
  Json document;
  try {
    if (text.size() > kLongest) {
      throw WrongContents(std::to_string(kLongest >> 20) + " MiB are the most that a manifest has");
    }
    document = parseJson(text);
  } catch (WrongContents const& error) {
    throw Error(FLOWLESS_DAMAGED, path + ": damaged: not JSON (" + error.what() + remedy);
  }
  if (!document.is_object() || !document.contains("format") || document["format"] != kFormat) {
    throw Error(FLOWLESS_DAMAGED, path + ": not the manifest of a " + kFormat +
                                      ". Make a bundle with: flowless export CHECKPOINT --out BUNDLE");
  }
  checkVersion(path, document);
  try {
    Manifest manifest = readBody(bundle, std::move(document));
    checkPaths(manifest);
    return manifest;
  } catch (WrongContents const& error) {
    throw Error(FLOWLESS_DAMAGED, path + ": damaged (" + error.what() + remedy);
  }
}

Manifest readManifest(std::string const& folder) {
  std::string const bundle = tidy(folder);
  std::error_code error;
  if (fs::is_regular_file(bundle, error)) {
    throw Error(FLOWLESS_MISSING, bundle +
                                      ": a file. A bundle is a folder with manifest.json; make "
                                      "one with: flowless export " +
                                      bundle + " --out BUNDLE");
  }
  if (!fs::is_directory(bundle, error)) {
    throw Error(FLOWLESS_MISSING, bundle +
                                      ": no such folder. A bundle is a folder "
                                      "with manifest.json; make one with: "
                                      "flowless export CHECKPOINT --out " +
                                      bundle);
  }
  return parseManifest(bundle, readText(bundle, bundle + "/manifest.json"));
}

}  // namespace flowless::detail
