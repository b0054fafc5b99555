// Starts TensorRT-RTX's library and reads a file that is not an engine: its version, then what it says about the file.
// No GPU is needed.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>

#include "backends/tensorrt_library.h"

int main(int count, char** arguments) {
  using namespace flowless::detail::tensorrt_rtx;
  if (count != 2 || !library().problem.empty()) {
    std::fprintf(stderr, "%s\n", library().problem.c_str());
    return 1;
  }
  std::ifstream file(arguments[1], std::ios::binary);
  std::vector<char> const plan{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  Errors const errors;
  std::unique_ptr<nvinfer1::IRuntime> const runtime(makeRuntime());
  if (runtime == nullptr || runtime->getLogger() != &Errors::logger() || library().pluginRegistry() == nullptr) {
    std::fprintf(stderr, "no runtime\n");
    return 1;
  }
  std::unique_ptr<nvinfer1::ICudaEngine> const engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  std::printf("%s\n%s\n", library().named().c_str(),
              engine == nullptr ? errors.text(whyInvalid(*runtime, plan)).c_str() : "an engine");
  return 0;
}
