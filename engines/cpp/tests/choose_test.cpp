// Choosing an engine; tests/cpp/test_manifest.py compares the choices with Python's on random bundles.
#include "choose.h"

#include <doctest/doctest.h>

#include "status.h"

namespace {

using flowless::detail::Artefact;
using flowless::detail::Here;
using flowless::detail::Manifest;

Artefact engine(std::string const& target, std::string const& precision, std::optional<double> latency = std::nullopt,
                std::string const& machine = "here") {
  Artefact artefact;
  artefact.target = target;
  artefact.precision = precision;
  artefact.status = "verified";
  artefact.latencyMs = latency;
  artefact.machine = machine;
  return artefact;
}

Manifest bundle(std::vector<Artefact> artefacts) {
  Manifest manifest;
  manifest.folder = "/tmp/bundle";
  manifest.reference = "reference.npz";
  manifest.files["reference.npz"] = {};
  manifest.artefacts = std::move(artefacts);
  return manifest;
}

// A machine without a GPU that computes everything.
Here cpu() {
  return {"here",
          [](Artefact const& artefact) -> std::optional<std::string> {
            bool const gpu = artefact.target.find("tensorrt") == 0;
            return gpu ? std::optional<std::string>("there is no NVIDIA GPU here") : std::nullopt;
          },
          [](Artefact const& artefact) { return artefact.precision; }};
}

std::string why(Manifest const& manifest, std::string const& target = "", std::string const& precision = "",
                Here const& here = cpu()) {
  return flowless::detail::chooseEngine(manifest, target, precision, here).why;
}

flowless_status statusOf(Manifest const& manifest, std::string const& target = "", std::string const& precision = "") {
  try {
    why(manifest, target, precision);
  } catch (flowless::detail::Error const& error) {
    return error.status();
  }
  return FLOWLESS_OK;
}

}  // namespace

TEST_CASE("targets of GPUs come first, and their refusals are in the sentence") {
  Manifest const manifest = bundle({engine("openvino", "fp32"), engine("tensorrt-rtx", "fp16")});
  CHECK(why(manifest) ==
        "openvino fp32: the fastest engine of this bundle that runs here (verified); not tensorrt: the bundle has no "
        "such engine; not "
        "tensorrt-rtx: there is no NVIDIA GPU here");
  Here here = cpu();
  here.whyNot = [](Artefact const&) { return std::nullopt; };
  CHECK(why(manifest, "", "", here).find("tensorrt-rtx fp16: ") == 0);
}

TEST_CASE("the lowest precision that this processor computes in") {
  Manifest const manifest =
      bundle({engine("openvino", "fp32"), engine("openvino", "bf16"), engine("openvino", "fp16")});
  CHECK(why(manifest, "openvino") == "openvino fp16: asked for (verified)");
  Here here = cpu();
  here.computedPrecision = [](Artefact const&) { return "fp32"; };
  CHECK(why(manifest, "openvino", "", here) == "openvino fp32: asked for (verified)");
}

TEST_CASE("measured times decide where every engine has one of this machine") {
  CHECK(why(bundle({engine("openvino", "fp32", 2.0), engine("onnxruntime", "fp32", 1.0)})).find("onnxruntime fp32") ==
        0);
  CHECK(why(bundle({engine("openvino", "fp32", 2.0), engine("onnxruntime", "fp32", 1.0, "there")})).find("openvino") ==
        0);
  CHECK(why(bundle({engine("openvino", "fp32", 1.0), engine("openvino", "int8", 2.0)})).find("openvino fp32") == 0);
  CHECK(why(bundle({engine("openvino", "fp32", 1.0), engine("openvino", "int8")})).find("openvino int8") == 0);
}

TEST_CASE("what was recommended on this machine") {
  Manifest manifest = bundle({engine("openvino", "int8", 1.0), engine("onnxruntime", "fp32", 2.0)});
  manifest.recommendations = {{"there", "openvino", "int8"}, {"here", "onnxruntime", "fp32"}};
  CHECK(why(manifest).find("onnxruntime fp32: what flowless build --precision auto found the fastest (verified)") == 0);
}

TEST_CASE("no engine: the status says whether the bundle has it") {
  Manifest const manifest = bundle({engine("tensorrt", "fp16")});
  CHECK(statusOf(manifest) == FLOWLESS_UNSUPPORTED);
  CHECK(statusOf(manifest, "tensorrt") == FLOWLESS_UNSUPPORTED);
  CHECK(statusOf(manifest, "openvino") == FLOWLESS_MISSING);
  CHECK(statusOf(manifest, "", "int8") == FLOWLESS_MISSING);
  CHECK(statusOf(bundle({})) == FLOWLESS_MISSING);
  CHECK(statusOf(manifest, "coffee") == FLOWLESS_INVALID);
  CHECK(statusOf(manifest, "", "fp7") == FLOWLESS_INVALID);
}

TEST_CASE("a packed bundle cannot be built in") {
  Manifest packed = bundle({engine("tensorrt", "fp16")});
  packed.files.clear();
  CHECK_THROWS_WITH_AS(
      why(packed, "openvino"),
      "/tmp/bundle: no engine openvino that runs here (not openvino: the bundle has no such engine). The bundle's "
      "engines: tensorrt fp16. It is a packed bundle: pack another engine of the full bundle, with: flowless pack "
      "BUNDLE --target T --precision P",
      flowless::detail::Error);
}

TEST_CASE("the machine's name has its cores") {
  CHECK(flowless::detail::machineName().find(" cores; ") != std::string::npos);
}
