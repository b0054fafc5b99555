// Runs the parts of engines/cpp that prepare clips, for test_prepare.py: a line and bytes in, a line and bytes out.
//
//   kernels                                                              -> the names, each on a line
//   prepare KERNELS HEIGHT WIDTH SHORT_SIDE CROPS CROP_SIDE W H STRIDE   frame -> uint8 [crops, height, width, 3]
//   indices RULE SEGMENTS FRAMES NUM_FRAMES                              -> int64 [clips, segments, frames]
//   average logits|softmax VIEWS CLASSES                                 float32 [views, classes] -> float32 [classes]
//
// A line out is "ok BYTES ALLOCATIONS" or "STATUS TEXT".
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "clip_spec.h"
#include "resample.h"
#include "resize.h"
#include "status.h"

using namespace flowless::detail;

namespace {

size_t sAllocations = 0;

template <typename Value>
Value next(std::istream& line) {
  Value value{};
  if (!(line >> value)) {
    throw std::runtime_error("a line ends too soon");
  }
  return value;
}

// Exactly `count` values, so that an address sanitizer sees what is read beyond them.
template <typename Value>
std::vector<Value> values(size_t count) {
  std::vector<Value> read(count);
  std::cin.read(reinterpret_cast<char*>(read.data()), static_cast<std::streamsize>(count * sizeof(Value)));
  return read;
}

template <typename Value>
void reply(std::vector<Value> const& result, size_t allocations = 0) {
  std::cout << "ok " << result.size() * sizeof(Value) << " " << allocations << "\n";
  std::cout.write(reinterpret_cast<char const*>(result.data()),
                  static_cast<std::streamsize>(result.size() * sizeof(Value)));
}

void listKernels() {
  std::string names;
  for (size_t index = 0; Kernels const* kernels = kernelsAt(index); ++index) {
    names += kernels->name + std::string("\n");
  }
  reply(std::vector<char>(names.begin(), names.end()));
}

Kernels const* kernelsNamed(std::string const& name) {
  for (size_t index = 0; Kernels const* kernels = kernelsAt(index); ++index) {
    if (name == kernels->name) {
      return kernels;
    }
  }
  throw std::runtime_error("no kernels " + name);
}

void prepare(std::istringstream& line) {
  static std::map<std::string, Preparer> preparers;  // kept, as an engine keeps its own
  auto const name = next<std::string>(line);
  ClipSpec spec;
  spec.segments = 1;
  spec.framesPerSegment = 1;
  spec.height = next<int32_t>(line);
  spec.width = next<int32_t>(line);
  spec.shortSide = next<int32_t>(line);
  spec.threeCrops = next<int32_t>(line) == 3;
  spec.cropSide = next<int32_t>(line);
  std::string const key = line.str().substr(0, static_cast<size_t>(line.tellg()));
  auto const width = next<int32_t>(line);
  auto const height = next<int32_t>(line);
  auto const stride = next<ptrdiff_t>(line);
  auto const frame = values<uint8_t>(static_cast<size_t>(stride * (height - 1) + 3 * width));
  auto found = preparers.find(key);
  if (found == preparers.end()) {
    found = preparers.emplace(key, Preparer(spec, kernelsNamed(name))).first;
  }
  std::vector<uint8_t> picture(spec.pictureBytes() * static_cast<size_t>(spec.crops()));
  size_t const before = sAllocations;
  found->second.prepare(frame.data(), width, height, stride, picture.data());
  reply(picture, sAllocations - before);
}

void indices(std::istream& line) {
  ClipSpec spec;
  spec.sampling = next<std::string>(line);
  spec.segments = next<int32_t>(line);
  spec.framesPerSegment = next<int32_t>(line);
  auto const frames = next<int64_t>(line);
  std::vector<int64_t> result(static_cast<size_t>(spec.clips()) * static_cast<size_t>(spec.segments) *
                              static_cast<size_t>(spec.framesPerSegment));
  size_t const before = sAllocations;
  clipIndices(spec, frames, result.data());
  reply(result, sAllocations - before);
}

void average(std::istream& line) {
  ClipSpec spec;
  spec.averageSoftmax = next<std::string>(line) == "softmax";
  auto const count = next<int32_t>(line);
  auto const classes = next<int32_t>(line);
  auto scores = values<float>(static_cast<size_t>(count) * static_cast<size_t>(classes));
  averageViews(spec, scores.data(), count, classes, scores.data());  // in place
  scores.resize(static_cast<size_t>(classes));
  reply(scores);
}

}  // namespace

// Not inline: g++ warns of a mismatch where it inlines only one of a pair.
[[gnu::noinline]] void* operator new(size_t size) {
  ++sAllocations;
  if (void* memory = std::malloc(size)) {
    return memory;
  }
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

int main() {
  std::ios::sync_with_stdio(false);
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    auto const command = next<std::string>(line);
    try {
      if (command == "kernels") {
        listKernels();
      } else if (command == "prepare") {
        prepare(line);
      } else if (command == "indices") {
        indices(line);
      } else if (command == "average") {
        average(line);
      } else {
        throw std::runtime_error("unknown command " + command);
      }
    } catch (Error const& error) {
      std::cout << error.status() << " " << error.what() << "\n";
    }
    std::cout.flush();
  }
  return 0;
}
