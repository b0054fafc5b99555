// Recognise the action in a video file, as `flowless predict` does:
//   classify_file BUNDLE VIDEO
#include <cstdio>
#include <flowless/flowless.hpp>
#include <map>

#include "video_frames.hpp"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s BUNDLE VIDEO\n", argv[0]);
    return 2;
  }
  try {
    flowless::Engine engine(argv[1]);
    std::fprintf(stderr, "%s\n", engine.info().why);

    // Which frames the bundle's clips consist of depends on the number of frames.
    int64_t numFrames = 0;
    for (VideoFrames counted(argv[2]); counted.next();) {
      ++numFrames;
    }
    std::map<int64_t, std::vector<uint8_t>> pictures;  // by the frame's ordinal
    for (int64_t const ordinal : engine.indices(numFrames)) {
      pictures[ordinal];
    }

    // Only these frames are converted to RGB, resized and cropped.
    VideoFrames video(argv[2]);
    int64_t decoded = 0;
    for (auto& [ordinal, picture] : pictures) {
      while (decoded <= ordinal && video.next()) {
        ++decoded;
      }
      RgbFrame const rgb = video.rgb();
      picture = engine.prepare(flowless::frame(rgb.rgb, rgb.width, rgb.height, rgb.stride));
    }

    std::vector<float> const scores =
        engine.video(numFrames, [&](int64_t ordinal) { return pictures.at(ordinal).data(); });
    for (flowless::Label const& label : engine.top(scores.data())) {
      std::printf("%.6f  %s\n", label.score, label.label.c_str());
    }
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
