// Fuzzes the manifest's reader: whatever the text is, it is read, or refused with an Error that has a sentence.
//   clang++ -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined ...   libFuzzer's own main
//   c++ -std=c++17 -DFLOWLESS_SEEDS_ONLY ...                            reads each file that is named, or each file of
//   a folder
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "manifest.h"
#include "status.h"

namespace {

void require(bool holds, char const* what) {
  if (!holds) {
    std::fprintf(stderr, "a manifest was read with %s\n", what);
    std::abort();
  }
}

void checkRead(flowless::detail::Manifest const& manifest) {
  auto const& spec = manifest.spec;
  require(!manifest.labels.empty(), "no labels");
  require(spec.segments > 0 && spec.framesPerSegment > 0 && spec.height > 0 && spec.width > 0, "an empty clip");
  require(spec.clipBytes() <= UINT32_MAX + size_t{1}, "a clip beyond the limit");
  require(spec.shortSide >= spec.cropSide && (spec.cropSide > 0 || spec.shortSide >= spec.height),
          "a crop beyond the frame");
  require(manifest.memory == 0 || manifest.memory == spec.segments - 1, "a memory of other segments");
  require(manifest.state.empty() || manifest.memory == 0, "a memory and a state");
  for (auto const& tensor : manifest.state) {
    require(!tensor.name.empty() && tensor.name.size() <= 40, "a name that is too long");
    require(!tensor.row.empty() && tensor.rowBytes() > 0 && tensor.rowBytes() <= sizeof(float) * INT32_MAX,
            "a tensor of no size, or too many elements");
  }
  for (auto const& artefact : manifest.artefacts) {
    require(!artefact.files.empty(), "an engine without files");
    for (auto const& name : artefact.files) {
      require(name.find("..") != 0 && name.front() != '/', "a path that leads out");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
  std::string_view const text(reinterpret_cast<char const*>(data), size);
  try {
    checkRead(flowless::detail::parseManifest("/nowhere/bundle", text));
  } catch (flowless::detail::Error const& error) {
    require(std::string_view(error.what()).size() > 20, "a message of no sentence");
  }
  return 0;
}

#ifdef FLOWLESS_SEEDS_ONLY
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

int main(int count, char** names) {
  size_t read = 0;
  for (int index = 1; index < count; ++index) {
    std::vector<std::filesystem::path> paths{names[index]};
    if (std::filesystem::is_directory(names[index])) {
      paths.assign(std::filesystem::directory_iterator(names[index]), {});
    }
    for (auto const& path : paths) {
      std::ifstream stream(path, std::ios::binary);
      std::string const text((std::istreambuf_iterator<char>(stream)), {});
      LLVMFuzzerTestOneInput(reinterpret_cast<uint8_t const*>(text.data()), text.size());
      ++read;
    }
  }
  std::printf("%zu seeds read\n", read);
  return read == 0 ? 1 : 0;
}
#else
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

namespace {

using Json = nlohmann::json;

void collect(Json& value, std::vector<Json*>& found) {
  for (Json& item : value) {
    found.push_back(&item);
    if (item.is_structured()) {
      collect(item, found);
    }
  }
}

// Replace or remove a value anywhere in a document, which changes of single bytes seldom do.
void change(Json& document, std::minstd_rand& random) {
  static Json const kValues =
      Json::parse(R"([null, true, -1, 0, 1, 3, 32769, 9223372036854775808, 1.5, 1e300, "", "..", "/a", "a",
    [], {}, [0.5], [[]], {"a": 1}, [1, "a"]])");
  std::vector<Json*> values;
  collect(document, values);
  Json& value = *values[random() % values.size()];
  size_t const kind = random() % 4;
  if (kind == 0 && value.is_structured() && !value.empty()) {
    auto item = value.begin();
    std::advance(item, static_cast<ptrdiff_t>(random() % value.size()));
    value.erase(item);
  } else if (kind == 1) {
    value = Json(*values[random() % values.size()]);
  } else {
    value = kValues[random() % kValues.size()];
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t limit);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t limit, unsigned seed) {
  std::minstd_rand random(seed);
  if (random() % 2 == 0) {
    Json document = Json::parse(data, data + size, nullptr, false);
    if (document.is_structured() && !document.empty()) {
      change(document, random);
      std::string const text = document.dump(-1, ' ', false, Json::error_handler_t::replace);
      if (text.size() <= limit) {
        std::memcpy(data, text.data(), text.size());
        return text.size();
      }
    }
  }
  return LLVMFuzzerMutate(data, size, limit);
}
#endif
