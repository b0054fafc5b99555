// Backends without a bundle: which libraries this build has, devices, threads, the GPU that is not here.
#include "backends/backend.h"

#include <doctest/doctest.h>
#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "backends/cuda_driver.h"
#include "backends/graph.h"
#include "backends/threads.h"

using namespace flowless::detail;

namespace {

Manifest manifestOf(int32_t memory) {
  Manifest manifest;
  manifest.spec.segments = 4;
  manifest.spec.framesPerSegment = memory > 0 ? 1 : 2;
  manifest.spec.height = 5;
  manifest.spec.width = 6;
  manifest.labels = {"left", "right", "up"};
  manifest.memory = memory;
  return manifest;
}

Artefact artefactOf(char const* target) {
  Artefact artefact;
  artefact.target = target;
  artefact.precision = "fp32";
  artefact.files = {"engine/model.xml"};
  return artefact;
}

std::string messageOf(flowless_status status, Manifest const& manifest, Artefact const& artefact,
                      OpenSettings const& settings = {}) {
  try {
    openBackend(manifest, artefact, settings);
  } catch (Error const& error) {
    CHECK(error.status() == status);
    return error.what();
  }
  FAIL("it opened");
  return "";
}

bool contains(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

void checkContains(std::string const& text, std::string const& part) {
  INFO("text: " << text);
  CHECK(contains(text, part));
}

// A backend whose scores are the first byte of each row.
class FirstBytes final : public GraphBackend {
 public:
  using GraphBackend::GraphBackend;
  char const* device() const override { return "CPU"; }

 private:
  void infer(Inputs const& inputs, Outputs const& outputs, int32_t batch) override {
    for (int32_t row = 0; row < batch; ++row) {
      static_cast<float*>(outputs[0])[row] = inputs[0][static_cast<size_t>(row) * mPorts.inputs[0].rowBytes()];
    }
  }
};

}  // namespace

TEST_CASE("a graph's inputs and outputs follow from the clip, the labels and the memory") {
  Ports const clip = portsOf(manifestOf(0));
  REQUIRE(clip.inputs.size() == 1);
  REQUIRE(clip.outputs.size() == 1);
  CHECK(clip.inputs[0].row == std::vector<int64_t>{4, 2, 5, 6, 3});
  CHECK(clip.inputs[0].rowBytes() == 4 * 2 * 5 * 6 * 3);
  CHECK(clip.outputs[0].rowBytes() == 3 * sizeof(float));
  Ports const online = portsOf(manifestOf(3));
  REQUIRE(online.inputs.size() == 2);
  CHECK(online.inputs[0].name == "frame");
  CHECK(online.inputs[1].name == "memory");
  CHECK(online.inputs[1].row == std::vector<int64_t>{3, 5, 6, 3});
  CHECK(online.outputs[0].name == "scores");
  CHECK(online.outputs[1].rowBytes() == online.inputs[1].rowBytes());
  Manifest streaming = manifestOf(0);
  streaming.state = {{"frames", true, {1, 5, 6, 3}}, {"features", false, {3, 8}}, {"started", false, {2}}};
  Ports const stateful = portsOf(streaming);
  REQUIRE(stateful.inputs.size() == 4);
  REQUIRE(stateful.outputs.size() == 4);
  CHECK(stateful.inputs[0].name == "frame");
  CHECK(stateful.inputs[2].rowBytes() == 3 * 8 * sizeof(float));
  CHECK(stateful.outputs[1].name == "next_frames");
  CHECK(stateful.outputs[1].pixels);
  CHECK(stateful.outputs[3].name == "next_started");
}

TEST_CASE("whole clips and single frames are not confused") {
  std::vector<uint8_t> const clips(2 * 4 * 2 * 5 * 6 * 3, 7);
  std::vector<uint8_t> memory(clips.size());
  float scores[6] = {};
  FirstBytes whole(manifestOf(0));
  whole.run(clips.data(), 2, scores);
  CHECK(scores[1] == 7.0F);
  void* const carried[] = {memory.data()};
  CHECK_THROWS_AS(whole.step(clips.data(), carried, 1, scores), Error);
  FirstBytes online(manifestOf(3));
  online.step(clips.data(), carried, 2, scores);
  CHECK_THROWS_AS(online.run(clips.data(), 1, scores), Error);
}

TEST_CASE("what this build does not have is named with the option that adds it") {
  checkContains(whyNot(artefactOf("abacus")).value_or(""), "no target 'abacus'");
  CHECK(computedPrecision(artefactOf("abacus")) == "fp32");
#ifndef FLOWLESS_HAS_TENSORRT
  CHECK(whyNot(artefactOf("tensorrt")) ==
        "this build of libflowless has no TensorRT (configure with -DTENSORRT_ROOT=FOLDER)");
#endif
#ifndef FLOWLESS_HAS_TENSORRT_RTX
  checkContains(whyNot(artefactOf("tensorrt-rtx")).value_or(""), "-DTENSORRT_RTX_ROOT=FOLDER");
#endif
#ifndef FLOWLESS_HAS_ONNXRUNTIME
  std::string const message = messageOf(FLOWLESS_UNSUPPORTED, manifestOf(0), artefactOf("onnxruntime"));
  checkContains(message,
                "the engine onnxruntime fp32 does not run here: this build of libflowless has no ONNX Runtime");
#endif
}

TEST_CASE("engines of GPUs are refused where there is none") {
  if (cuda::computeCapability()) {
    return;
  }
  CHECK(cuda::gpuName().empty());
  CHECK_THROWS_AS(cuda::Gpu(), Error);
  for (char const* target : {"tensorrt", "tensorrt-rtx"}) {
    [[maybe_unused]] std::string const message = messageOf(FLOWLESS_UNSUPPORTED, manifestOf(0), artefactOf(target));
    checkContains(message, std::string("the engine ") + target + " fp32 does not run here: ");
    bool const compiled = !contains(message, "this build");
    CHECK((!compiled || contains(message, "there is no NVIDIA GPU here")));
  }
}

#ifdef FLOWLESS_HAS_OPENVINO
TEST_CASE("a device that OpenVINO has not, and a file that it cannot read") {
  Manifest manifest = manifestOf(0);
  auto const folder = std::filesystem::temp_directory_path() / ("flowless-backend-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder / "engine");
  std::ofstream(folder / "engine" / "model.xml") << "not a model";
  manifest.folder = folder.string();
  manifest.files["engine/model.xml"] = {};
  Artefact const artefact = artefactOf("openvino");
  checkContains(messageOf(FLOWLESS_INVALID, manifest, artefact, {0, "TPU"}), "device is 'TPU'; it must be CPU or GPU");
  checkContains(messageOf(FLOWLESS_UNSUPPORTED, manifest, artefact, {0, "GPU"}), "openvino runs on the CPU alone");
  std::string const message = messageOf(FLOWLESS_RUNTIME, manifest, artefact);
  checkContains(message, "engine/model.xml: openvino cannot load it (");
  checkContains(message, "build it again with: flowless build BUNDLE --target openvino --precision fp32 --force.");
  CHECK(message.find('\n') == std::string::npos);
  std::filesystem::remove_all(folder);
}
#endif

TEST_CASE("threads stay awake only where OMP_WAIT_POLICY is active") {
  char const* const before = std::getenv("OMP_WAIT_POLICY");
  std::string const kept = before == nullptr ? "" : before;
  std::pair<char const*, bool> const cases[] = {{"ACTIVE", true},   {" active\t", true}, {"Active", true}, {"", false},
                                                {"PASSIVE", false}, {"act ive", false},  {"  ", false}};
  for (auto const& item : cases) {
    INFO("value: '" << item.first << "'");
    setenv("OMP_WAIT_POLICY", item.first, 1);
    CHECK(threadsStayAwake() == item.second);
  }
  unsetenv("OMP_WAIT_POLICY");
  CHECK_FALSE(threadsStayAwake());
  if (before != nullptr) {
    setenv("OMP_WAIT_POLICY", kept.c_str(), 1);
  }
}

TEST_CASE("physical cores are those that the thread may run on") {
  int32_t const all = usablePhysicalCores();
  CHECK(all >= 1);
  CHECK(all <= static_cast<int32_t>(std::thread::hardware_concurrency()));
  std::thread([] {
    int const core = sched_getcpu();
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<size_t>(core), &one);
    REQUIRE(sched_setaffinity(0, sizeof(one), &one) == 0);
    CHECK(usablePhysicalCores() == 1);
  }).join();
}
