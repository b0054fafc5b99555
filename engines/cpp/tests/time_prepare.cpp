// Time the preparation of frames, for `bench embed`: time_prepare [three] [REPEATS] [WIDTHxHEIGHT ...]
//
// Prints JSON: for each size of frame and each form of the kernels, the median of milliseconds per frame. The clip is
// the usual one: short side 256, a crop of 224 x 224, or with `three` crops of 256 x 256. The kernels take turns.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "resample.h"
#include "resize.h"

using namespace flowless::detail;

namespace {

using Clock = std::chrono::steady_clock;

struct Runner {
  char const* name;
  Preparer preparer;
  std::vector<double> milliseconds;
};

ClipSpec usualSpec(bool three) {
  ClipSpec spec;
  spec.segments = 1;
  spec.framesPerSegment = 1;
  spec.shortSide = 256;
  spec.height = spec.width = three ? 256 : 224;
  spec.threeCrops = three;
  spec.sampling = "centre";
  return spec;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  size_t const middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void timeSize(ClipSpec const& spec, int32_t width, int32_t height, int repeats) {
  std::mt19937 random(0);
  std::vector<uint8_t> frame(size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(height));
  std::generate(frame.begin(), frame.end(), [&] { return static_cast<uint8_t>(random()); });
  std::vector<uint8_t> picture(spec.pictureBytes() * static_cast<size_t>(spec.crops()));
  std::vector<Runner> runners;
  for (size_t index = 0; Kernels const* kernels = kernelsAt(index); ++index) {
    runners.push_back({kernels->name, Preparer(spec, kernels), {}});
  }
  for (int repeat = -3; repeat < repeats; ++repeat) {  // the first are warm-up
    for (Runner& runner : runners) {
      auto const started = Clock::now();
      runner.preparer.prepare(frame.data(), width, height, ptrdiff_t{3} * width, picture.data());
      double const taken = std::chrono::duration<double, std::milli>(Clock::now() - started).count();
      if (repeat >= 0) {
        runner.milliseconds.push_back(taken);
      }
    }
  }
  std::printf("\"%dx%d\": {", width, height);
  for (Runner const& runner : runners) {
    std::printf("%s\"%s\": %.4f", &runner == &runners[0] ? "" : ", ", runner.name, median(runner.milliseconds));
  }
  std::printf("}");
}

}  // namespace

int main(int argc, char** argv) {
  bool three = false;
  int repeats = 50;
  std::vector<std::pair<int, int>> sizes;
  for (int index = 1; index < argc; ++index) {
    int width = 0;
    int height = 0;
    if (std::strcmp(argv[index], "three") == 0) {
      three = true;
    } else if (std::sscanf(argv[index], "%dx%d", &width, &height) == 2 && std::min(width, height) > 0) {
      sizes.emplace_back(width, height);
    } else if (width > 0 && std::strchr(argv[index], 'x') == nullptr) {
      repeats = width;
    } else {
      std::fprintf(stderr, "time_prepare: '%s' is not 'three', a number of repeats, or a size such as 1920x1080.\n",
                   argv[index]);
      return 2;
    }
  }
  if (sizes.empty()) {
    sizes = {{640, 480}, {1920, 1080}, {3840, 2160}};
  }
  std::printf("{\"crops\": %d, \"repeats\": %d, \"ms\": {", three ? 3 : 1, repeats);
  for (auto const& size : sizes) {
    std::printf("%s", &size == &sizes[0] ? "" : ", ");
    timeSize(usualSpec(three), size.first, size.second, repeats);
  }
  std::printf("}}\n");
  return 0;
}
