// Decodes a video file, a camera or a network stream with libav to upright RGB frames. The pixels equal those that
// flowless reads in Python: the conversion is FFmpeg's own, by its filters, and the display matrix is applied as FFmpeg
// does.
#ifndef VIDEO_FRAMES_HPP
#define VIDEO_FRAMES_HPP

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavfilter/avfilter.h>
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>
#include <libavformat/avformat.h>
#include <libavutil/pixdesc.h>
#ifdef VIDEO_FRAMES_CAMERA
#include <libavdevice/avdevice.h>
#endif
}

#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

// An upright RGB picture; its pixels live until the next call to the reader that made it.
struct RgbFrame {
  uint8_t const* rgb;
  int32_t width;
  int32_t height;
  ptrdiff_t stride;  // bytes from a row to the next
  int64_t ptsNs;     // time stamp, nanoseconds
};

// Whether frames come at their own pace: an address such as rtsp://camera/stream, or a camera such as /dev/video0.
inline bool isLive(std::string const& address) {
  return address.find("://") != std::string::npos || address.rfind("/dev/", 0) == 0;
}

class VideoFrames {
 public:
  // address: a file, a network stream or a camera. A network stream ends with an error when
  // nothing comes for five seconds, and everything ends when *stop is true. Throws std::runtime_error, and
  // std::invalid_argument for a camera where this was built without libavdevice.
  explicit VideoFrames(std::string const& address, std::atomic<bool> const* stop = nullptr);

  // Decode the next frame, which rgb() then converts; false at the end. Throws std::runtime_error where a file is
  // damaged.
  bool next();

  // The frame that next() decoded, as RGB.
  RgbFrame rgb();

 private:
  struct Free {
    void operator()(AVFormatContext* context) const { avformat_close_input(&context); }
    void operator()(AVCodecContext* context) const { avcodec_free_context(&context); }
    void operator()(AVFilterGraph* graph) const { avfilter_graph_free(&graph); }
    void operator()(AVFrame* frame) const { av_frame_free(&frame); }
    void operator()(AVPacket* packet) const { av_packet_free(&packet); }
  };
  template <typename T>
  using Owned = std::unique_ptr<T, Free>;

  // Return `code`; throw where it is an error.
  int check(int code, char const* action) const;
  AVInputFormat const* inputOptions(AVDictionary** options) const;
  void openDecoder();
  std::string orientationSteps() const;
  void makeGraph();

  std::string mAddress;
  bool mLive;
  Owned<AVFormatContext> mFile;
  Owned<AVCodecContext> mDecoder;
  Owned<AVPacket> mPacket{av_packet_alloc()};
  Owned<AVFrame> mFrame{av_frame_alloc()};
  Owned<AVFrame> mPicture{av_frame_alloc()};
  Owned<AVFilterGraph> mGraph;
  std::string mGraphText;  // what mGraph was made of
  int mStream = -1;
  int64_t mCount = 0;  // frames decoded
};

inline VideoFrames::VideoFrames(std::string const& address, std::atomic<bool> const* stop)
    : mAddress(address), mLive(isLive(address)) {
  av_log_set_level(AV_LOG_ERROR);
  AVFormatContext* context = avformat_alloc_context();
  if (stop != nullptr) {
    context->interrupt_callback.opaque = const_cast<std::atomic<bool>*>(stop);
    context->interrupt_callback.callback = [](void* flag) -> int {
      return static_cast<std::atomic<bool>*>(flag)->load() ? 1 : 0;
    };
  }
  AVDictionary* options = nullptr;
  // FFmpeg takes the text before a colon for a protocol: the prefix keeps a file's name whole.
  std::string const name = mLive ? address : "file:" + address;
  int const opened = avformat_open_input(&context, name.c_str(), inputOptions(&options),
                                         &options);  // frees the context where it fails
  av_dict_free(&options);
  check(opened, "open it");
  mFile.reset(context);
  openDecoder();
}

inline int VideoFrames::check(int code, char const* action) const {
  if (code < 0) {
    char text[AV_ERROR_MAX_STRING_SIZE] = {};
    av_strerror(code, text, sizeof(text));
    throw std::runtime_error(mAddress + ": libav could not " + action + ": " + text + ".");
  }
  return code;
}

inline AVInputFormat const* VideoFrames::inputOptions(AVDictionary** options) const {
  if (!mLive) {
    av_dict_set(options, "protocol_whitelist", "file", 0);
    return nullptr;
  }
  av_dict_set(options, "fflags", "nobuffer", 0);
  av_dict_set(options, "rw_timeout", "5000000", 0);  // microseconds
  if (mAddress.rfind("rtsp", 0) == 0) {
    av_dict_set(options, "rtsp_transport", "tcp", 0);
    av_dict_set(options, "timeout", "5000000", 0);
    // The stream's description says what it is: without probing, the first frame comes a second earlier.
    av_dict_set(options, "probesize", "32", 0);
    av_dict_set(options, "analyzeduration", "0", 0);
  }
  if (mAddress.rfind("/dev/", 0) != 0) {
    return nullptr;
  }
#ifdef VIDEO_FRAMES_CAMERA
  avdevice_register_all();
  return av_find_input_format("v4l2");
#else
  throw std::invalid_argument(
      mAddress + ": built without libavdevice, which reads cameras. Install libavdevice-dev and build again.");
#endif
}

inline void VideoFrames::openDecoder() {
  check(avformat_find_stream_info(mFile.get(), nullptr), "read its streams");
  AVCodec const* codec = nullptr;
  mStream = check(av_find_best_stream(mFile.get(), AVMEDIA_TYPE_VIDEO, -1, -1, &codec, 0), "find a video stream");
  mDecoder.reset(avcodec_alloc_context3(codec));
  check(avcodec_parameters_to_context(mDecoder.get(), mFile->streams[mStream]->codecpar),
        "read its codec's parameters");
  if (mLive) {
    mDecoder->flags |= AV_CODEC_FLAG_LOW_DELAY;
  }
  check(avcodec_open2(mDecoder.get(), codec, nullptr), "open its decoder");
}

inline bool VideoFrames::next() {
  for (;;) {
    int const received = avcodec_receive_frame(mDecoder.get(), mFrame.get());
    if (received == AVERROR_EOF) {
      return false;
    }
    if (received != AVERROR(EAGAIN)) {
      check(received, "decode a frame");
      ++mCount;
      if (!(mFrame->flags & AV_FRAME_FLAG_CORRUPT)) {
        return true;
      }
      if (!mLive) {
        throw std::runtime_error(mAddress + ": damaged near frame " + std::to_string(mCount - 1) +
                                 ". Copy or convert it again.");
      }
      continue;  // a lost packet: the next frames are whole again
    }
    int const read = av_read_frame(mFile.get(), mPacket.get());
    if (read == AVERROR_EOF) {
      check(avcodec_send_packet(mDecoder.get(), nullptr), "end decoding");  // the frames that the decoder holds back
      continue;
    }
    check(read, "read on");
    int const sent =
        mPacket->stream_index == mStream && mPacket->size > 0 ? avcodec_send_packet(mDecoder.get(), mPacket.get()) : 0;
    av_packet_unref(mPacket.get());
    if (!(mLive && sent == AVERROR_INVALIDDATA)) {
      check(sent, "decode a frame");
    }
  }
}

// FFmpeg's filters that turn the frame upright, as its autorotation inserts them.
inline std::string VideoFrames::orientationSteps() const {
  AVFrameSideData const* own = av_frame_get_side_data(mFrame.get(), AV_FRAME_DATA_DISPLAYMATRIX);
  void const* data = own == nullptr ? nullptr : own->data;
  if (data == nullptr) {
    AVStream* stream = mFile->streams[mStream];
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(60, 31, 100)
    AVCodecParameters const* parameters = stream->codecpar;
    AVPacketSideData const* side =
        av_packet_side_data_get(parameters->coded_side_data, parameters->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
    data = side == nullptr ? nullptr : side->data;
#else
    data = av_stream_get_side_data(stream, AV_PKT_DATA_DISPLAYMATRIX, nullptr);
#endif
  }
  if (data == nullptr) {
    return "";
  }
  // The matrix maps the direction of stored columns to (a, b) and of stored rows to (c, d).
  int32_t const* matrix = static_cast<int32_t const*>(data);
  double const a = matrix[0], b = matrix[1], c = matrix[3], d = matrix[4];
  bool const mirrored = a * d - b * c < 0;
  double const degrees = std::atan2(mirrored ? -b : b, mirrored ? -a : a) * 180.0 / std::acos(-1.0);
  static char const* const kSteps[2][4] = {{"", "transpose=clock,", "hflip,vflip,", "transpose=cclock,"},
                                           {"hflip,", "transpose=clock_flip,", "vflip,", "transpose=cclock_flip,"}};
  return kSteps[mirrored ? 1 : 0][static_cast<unsigned>(std::lround(degrees / 90.0)) % 4U];
}

// Filters for frames like the one that was decoded; a stream's size may change.
inline void VideoFrames::makeGraph() {
  std::string text = "buffer@in=video_size=" + std::to_string(mFrame->width) + "x" + std::to_string(mFrame->height) +
                     ":pix_fmt=" + av_get_pix_fmt_name(static_cast<AVPixelFormat>(mFrame->format)) + ":time_base=1/25";
#if LIBAVFILTER_VERSION_MAJOR >= 10
  text += ":colorspace=" + std::to_string(mFrame->colorspace) + ":range=" + std::to_string(mFrame->color_range);
#endif
  text += "," + orientationSteps() + "format=rgb24,buffersink@out";
  if (text == mGraphText) {
    return;
  }
  mGraph.reset(avfilter_graph_alloc());
  mGraph->nb_threads = 1;
  AVFilterInOut* inputs = nullptr;
  AVFilterInOut* outputs = nullptr;
  check(avfilter_graph_parse2(mGraph.get(), text.c_str(), &inputs, &outputs), "make the filters");
  check(avfilter_graph_config(mGraph.get(), nullptr), "configure the filters");
  mGraphText = text;
}

inline RgbFrame VideoFrames::rgb() {
  AVStream const* stream = mFile->streams[mStream];
  int64_t const stamp = mFrame->best_effort_timestamp;
  AVRational const rate = stream->avg_frame_rate.num > 0 ? stream->avg_frame_rate : AVRational{25, 1};
  int64_t const ptsNs = stamp != AV_NOPTS_VALUE ? av_rescale_q(stamp, stream->time_base, {1, 1000000000})
                                                : av_rescale_q(mCount - 1, av_inv_q(rate), {1, 1000000000});
  makeGraph();
  av_frame_unref(mPicture.get());
  check(av_buffersrc_add_frame(avfilter_graph_get_filter(mGraph.get(), "buffer@in"), mFrame.get()), "convert a frame");
  check(av_buffersink_get_frame(avfilter_graph_get_filter(mGraph.get(), "buffersink@out"), mPicture.get()),
        "convert a frame");
  return {mPicture->data[0], mPicture->width, mPicture->height, mPicture->linesize[0], ptsNs};
}

#endif
