// Reading a manifest; tests/cpp/test_manifest.py compares the reader with Python's on many more.
#include "manifest.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "manifest_json.h"
#include "status.h"

namespace {

namespace fs = std::filesystem;
using flowless::detail::Error;
using flowless::detail::Json;
using flowless::detail::Manifest;

Json const kDocument = Json::parse(R"({
  "format": "flowless-bundle", "version": 1, "model": "stm-r18", "labels": ["down", "up"], "opset": 20,
  "config": {},
  "spec": {"segments": 4, "frames_per_segment": 1, "height": 40, "width": 40, "short_side": 48,
           "mean": [0.485, 0.456, 0.406],
           "std": [0.229, 0.224, 0.225], "sampling": "ten-consecutive",
           "resize": "antialiased-bilinear", "crop": "three",
           "crop_side": 48, "average": "softmax", "colour": "RGB", "pixel": "uint8"},
  "memory": 3, "graph": "model.onnx", "reference": "reference.npz", "versions": {}, "parity": {}, "calibration": null,
  "trials": [{"target": "openvino", "precision": "fp32", "machine": "here", "recommended": true},
             {"target": "a", "precision": "b"}],
  "files": {"abc.bin": {"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "bytes": 3}},
  "artefacts": [{"target": "openvino", "precision": "fp32", "status": "verified", "files": ["model.xml", "abc.bin"],
                 "figures": {"latency_ms_p50": 2, "machine": "here"}, "options": {"hint": "bf16"}}]
})");

Manifest parsed(Json const& document) { return flowless::detail::parseManifest("/tmp/bundle/", document.dump()); }

// The status and sentence with which a call ends.
template <class Call>
std::pair<flowless_status, std::string> refusalOf(Call const& call) {
  try {
    call();
  } catch (Error const& error) {
    return {error.status(), error.what()};
  }
  return {FLOWLESS_OK, ""};
}

bool holds(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

// A folder that is removed at the end of a test.
struct Folder {
  fs::path path = fs::temp_directory_path() / ("flowless-manifest-test-" + std::to_string(std::rand()));
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  void write(std::string const& name, std::string const& content) const { std::ofstream(path / name) << content; }
};

}  // namespace

TEST_CASE("a manifest is read") {
  Manifest const manifest = parsed(kDocument);
  CHECK(manifest.folder == "/tmp/bundle");
  CHECK(manifest.labels == std::vector<std::string>{"down", "up"});
  CHECK(manifest.memory == 3);
  CHECK(manifest.spec.threeCrops);
  CHECK(manifest.spec.cropSide == 48);
  CHECK(manifest.spec.averageSoftmax);
  CHECK(manifest.files.at("abc.bin").bytes == 3);
  REQUIRE(manifest.artefacts.size() == 1);
  CHECK(manifest.artefacts[0].hint == "bf16");
  CHECK(manifest.artefacts[0].latencyMs == 2.0);
  REQUIRE(manifest.recommendations.size() == 1);
  CHECK(manifest.recommendations[0].machine == "here");
}

TEST_CASE("an error has the value, what is allowed and what to do") {
  Json document = kDocument;
  document["version"] = 7;
  auto const [status, text] = refusalOf([&] { parsed(document); });
  CHECK(status == FLOWLESS_UNSUPPORTED);
  CHECK(
      text ==
      "/tmp/bundle/manifest.json: is a flowless-bundle of version 7; this flowless reads version 1. Update flowless.");
}

TEST_CASE("a version of 30 digits is newer") {
  std::string text = kDocument.dump();
  text.replace(text.find("\"version\":1"), 11, "\"version\":" + std::string(30, '9'));
  CHECK(refusalOf([&] { flowless::detail::parseManifest("/tmp/bundle", text); }).first == FLOWLESS_UNSUPPORTED);
}

TEST_CASE("all problems of a clip are in one error") {
  Json document = kDocument;
  document["spec"]["segments"] = 0;
  document["spec"]["mean"] = {0.5, 2, 0.5};
  document["spec"]["crop"] = "five";
  auto const [status, text] = refusalOf([&] { parsed(document); });
  CHECK(status == FLOWLESS_DAMAGED);
  CHECK(text ==
        "/tmp/bundle/manifest.json: ClipSpec: segments is 0; it must be an integer of at least 1; mean is (0.5, 2, "
        "0.5); it must be "
        "three numbers from 0 to 1 (R, G, B); crop is 'five'; it must be one of centre, three.");
}

TEST_CASE("nesting without end is refused before it is held") {
  for (std::string const open : {"[", "{\"a\":"}) {
    std::string text;
    for (int depth = 0; depth < 1000000; ++depth) {
      text += open;
    }
    CHECK(holds(refusalOf([&] { flowless::detail::parseManifest("/tmp/bundle", text); }).second, "nested too deeply"));
  }
}

TEST_CASE("a manifest that is too long is refused") {
  std::string const text((size_t{16} << 20) + 1, ' ');
  CHECK(holds(refusalOf([&] { flowless::detail::parseManifest("/tmp/bundle", text); }).second, "16 MiB"));
}

TEST_CASE("names lead to files of the bundle alone") {
  Folder const folder;
  folder.write("abc.bin", "abc");
  fs::create_symlink("/etc", folder.path / "etc");
  fs::create_symlink("abc.bin", folder.path / "inside");
  Manifest manifest = parsed(kDocument);
  manifest.folder = folder.path.string();
  CHECK(manifest.pathOf("abc.bin") == (folder.path / "abc.bin").string());
  CHECK(manifest.pathOf("inside") == (folder.path / "inside").string());
  for (std::string const name : {"", "/etc/passwd", "../x", "a/../../x", "a\\b", "C:x", "etc/passwd", "etc"}) {
    CAPTURE(name);
    auto const [status, text] = refusalOf([&] { manifest.pathOf(name); });
    CHECK(status == FLOWLESS_DAMAGED);
    CHECK(holds(text, "which lies outside the bundle"));
  }
}

TEST_CASE("files are compared with their hashes") {
  Folder const folder;
  Manifest manifest = parsed(kDocument);
  manifest.folder = folder.path.string();
  auto const check = [&] { manifest.check("abc.bin"); };
  CHECK(refusalOf(check).first == FLOWLESS_MISSING);
  folder.write("abc.bin", "abc");
  CHECK(refusalOf(check).second == "");
  folder.write("abc.bin", "abd");
  CHECK(refusalOf(check).first == FLOWLESS_DAMAGED);
  folder.write("abc.bin", "abcd");
  CHECK(refusalOf(check).first == FLOWLESS_DAMAGED);
  CHECK(refusalOf([&] { manifest.check("model.xml"); }).first == FLOWLESS_DAMAGED);
}

TEST_CASE("what is missing is missing") {
  Folder const folder;
  CHECK(refusalOf([&] { flowless::detail::readManifest(folder.path.string()); }).first == FLOWLESS_MISSING);
  CHECK(refusalOf([&] { flowless::detail::readManifest((folder.path / "x").string()); }).first == FLOWLESS_MISSING);
  folder.write("manifest.json", kDocument.dump());
  CHECK(flowless::detail::readManifest(folder.path.string()).model == "stm-r18");
}

TEST_CASE("SHA-256 of the standard's examples") {
  Folder const folder;
  folder.write("empty", "");
  folder.write("a million", std::string(1000000, 'a'));
  CHECK(flowless::detail::sha256OfFile((folder.path / "empty").string()) ==
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(flowless::detail::sha256OfFile((folder.path / "a million").string()) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}
