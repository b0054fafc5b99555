// The same as score_clip.c with the C++ layer.
#include <cstdio>
#include <flowless/flowless.hpp>

int main(int argc, char** argv) {
  if (argc != 2) {
    return 2;
  }
  try {
    flowless::Engine const engine(argv[1]);
    std::vector<uint8_t> clip(engine.info().clip_bytes);
    if (std::fread(clip.data(), 1, clip.size(), stdin) != clip.size()) {
      return 1;
    }
    std::printf("%s\n", flowless_version());
    for (float const score : engine.run(clip)) {
      std::printf("%.9g\n", static_cast<double>(score));
    }
  } catch (flowless::Error const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
