// Reads bundles for tests/cpp/test_manifest.py: one JSON request a line in, one JSON reply a line out.
#include <iostream>
#include <map>

#include "choose.h"
#include "manifest_json.h"
#include "status.h"

namespace {

using flowless::detail::Artefact;
using flowless::detail::Json;
using flowless::detail::Manifest;

template <class T>
Json orNull(std::optional<T> const& value) {
  return value ? Json(*value) : Json();
}

Json describe(flowless::detail::ClipSpec const& spec) {
  return {{"segments", spec.segments},
          {"frames_per_segment", spec.framesPerSegment},
          {"height", spec.height},
          {"width", spec.width},
          {"short_side", spec.shortSide},
          {"sampling", spec.sampling},
          {"three_crops", spec.threeCrops},
          {"crop_side", spec.cropSide},
          {"average_softmax", spec.averageSoftmax}};
}

Json describe(Artefact const& artefact) {
  return {{"target", artefact.target},
          {"precision", artefact.precision},
          {"status", artefact.status},
          {"files", artefact.files},
          {"versions", artefact.versions},
          {"hint", artefact.hint},
          {"platform", artefact.platform},
          {"gpu", artefact.gpu},
          {"gpu_compute_capability", artefact.gpuComputeCapability},
          {"compute_capabilities", artefact.computeCapabilities},
          {"portable", artefact.portable},
          {"stripped", artefact.stripped},
          {"refit_from", artefact.refitFrom},
          {"plugin_pa", artefact.pluginPa},
          {"latency_ms_p50", orNull(artefact.latencyMs)},
          {"machine", artefact.machine}};
}

Json describe(Manifest const& manifest) {
  Json reply = {{"folder", manifest.folder},      {"model", manifest.model},   {"spec", describe(manifest.spec)},
                {"labels", manifest.labels},      {"memory", manifest.memory}, {"graph", manifest.graph},
                {"reference", manifest.reference}};
  reply["state"] = Json::array();
  for (auto const& tensor : manifest.state) {
    reply["state"].push_back(
        {{"name", tensor.name}, {"shape", tensor.row}, {"dtype", tensor.pixels ? "uint8" : "float32"}});
  }
  reply["files"] = Json::object();
  for (auto const& [name, record] : manifest.files) {
    reply["files"][name] = {{"sha256", record.sha256}, {"bytes", record.bytes}};
  }
  reply["artefacts"] = Json::array();
  for (auto const& artefact : manifest.artefacts) {
    reply["artefacts"].push_back(describe(artefact));
  }
  reply["recommendations"] = Json::array();
  for (auto const& row : manifest.recommendations) {
    reply["recommendations"].push_back({row.machine, row.target, row.precision});
  }
  return reply;
}

Json choose(Json const& request) {
  auto const reasons = request["reasons"].get<std::map<std::string, std::string>>();    // of "target precision"
  auto const computes = request["computes"].get<std::map<std::string, std::string>>();  // of "target precision"
  flowless::detail::Here const here{request["machine"].get<std::string>(),
                                    [&](Artefact const& artefact) -> std::optional<std::string> {
                                      auto const found = reasons.find(artefact.target + " " + artefact.precision);
                                      return found == reasons.end() ? std::nullopt : std::optional(found->second);
                                    },
                                    [&](Artefact const& artefact) {
                                      auto const found = computes.find(artefact.target + " " + artefact.precision);
                                      return found == computes.end() ? artefact.precision : found->second;
                                    }};
  Manifest const manifest = flowless::detail::readManifest(request["folder"]);
  auto const choice = flowless::detail::chooseEngine(manifest, request["target"], request["precision"], here);
  return {{"engine", choice.artefact - manifest.artefacts.data()}, {"why", choice.why}};
}

Json reply(Json const& request) {
  std::string const what = request["do"];
  if (what == "machine") {
    return flowless::detail::machineName(request["root"]);
  }
  if (what == "sha256") {
    return flowless::detail::sha256OfFile(request["path"]);
  }
  if (what == "choose") {
    return choose(request);
  }
  Manifest const manifest = flowless::detail::readManifest(request["folder"]);
  for (auto const& name : request.value("check", std::vector<std::string>())) {
    manifest.check(name);
  }
  return describe(manifest);
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    Json result;
    try {
      result = {{"value", reply(Json::parse(line))}};
    } catch (flowless::detail::Error const& error) {
      result = {{"status", error.status()}, {"message", error.what()}};
    }
    std::cout << result.dump(-1, ' ', true, Json::error_handler_t::replace) << std::endl;
  }
  return 0;
}
