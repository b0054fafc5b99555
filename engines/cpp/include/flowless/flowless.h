/* flowless: run a bundle's engine from C or C++. Frames in, scores out; decoding is the caller's.
 *
 * Every call returns a status. After any other status than FLOWLESS_OK, flowless_error() is a sentence for the calling thread, with
 * the value, what is allowed and what to do. Structs that a caller fills begin with their size: set it with sizeof, zero the rest.
 * All calls may be made from several threads. An engine runs one call after another; different engines run side by side.
 *
 * Pixels are uint8, RGB, rows from the top. A clip is [segments, frames, height, width, 3], as flowless_describe reports it.
 * Scores are the network's, float32 before any softmax.
 */
#ifndef FLOWLESS_FLOWLESS_H
#define FLOWLESS_FLOWLESS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(FLOWLESS_BUILDS_LIBRARY)
#define FLOWLESS_API __declspec(dllexport)
#else
#define FLOWLESS_API __declspec(dllimport)
#endif
#else
#define FLOWLESS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What a call came to. */
typedef enum flowless_status {
  FLOWLESS_OK = 0,
  FLOWLESS_INVALID = 1,     /* an argument is not allowed: a null pointer, a size that does not fit, a closed handle */
  FLOWLESS_MISSING = 2,     /* there is no such bundle, file or engine */
  FLOWLESS_DAMAGED = 3,     /* a file is not what the manifest says, or the manifest is not readable */
  FLOWLESS_UNSUPPORTED = 4, /* this machine, or this build of the library, cannot do it */
  FLOWLESS_RUNTIME = 5      /* the engine's library, or the system, failed */
} flowless_status;

/* Handles. A closed one is refused with FLOWLESS_INVALID, also after others were opened. */
typedef struct flowless_engine flowless_engine;
typedef struct flowless_stream flowless_stream;

/* How to open a bundle. All zero (but `size`): the best engine that runs here. */
typedef struct flowless_options {
  size_t size;
  const char *target;    /* tensorrt, tensorrt-rtx, openvino or onnxruntime; NULL: the first of these that runs here */
  const char *precision; /* fp32, bf16, fp16 or int8; NULL: what the bundle has */
  const char *device;    /* CPU or GPU; NULL: the target's own */
  int32_t threads;       /* CPU threads; 0: the library chooses */
  int32_t reserved;
} flowless_options;

/* What an engine is and what a clip of it is. The texts live until the engine is closed. */
typedef struct flowless_info {
  size_t size;
  int32_t segments;   /* segments N of a clip */
  int32_t frames;     /* adjacent frames m of a segment */
  int32_t height;     /* rows of a prepared picture, pixels */
  int32_t width;      /* columns of a prepared picture, pixels */
  int32_t classes;    /* scores of a clip */
  int32_t online;     /* 1: the graph takes a frame, and a memory (flowless export --online) or a state (--streaming) of the
                         frames before; such an engine scores whole clips as well, a streaming one in `segments` steps */
  int32_t crops;      /* pictures that flowless_prepare makes of a frame: 1, or 3 along its long side */
  int32_t clips;      /* clips that flowless_indices samples from a video; a video has crops x clips views */
  size_t clip_bytes;  /* bytes of a clip */
  size_t picture_bytes; /* bytes of what flowless_prepare writes: crops x height x width x 3 */
  const char *model;     /* the model's name, such as pan-lite-r50 */
  const char *target;    /* the library that runs it */
  const char *precision; /* the precision that it computes in */
  const char *device;    /* CPU or GPU */
  const char *why;       /* why this engine was chosen, in one sentence */
} flowless_info;

/* A decoded frame, upright. */
typedef struct flowless_frame {
  size_t size;
  const uint8_t *rgb; /* the first row */
  int32_t width;      /* columns, pixels */
  int32_t height;     /* rows, pixels */
  ptrdiff_t stride;   /* bytes from a row to the next; 0: 3 x width */
  int64_t pts_ns;     /* time stamp, nanoseconds; used by streams only */
} flowless_frame;

/* Which frames of a stream an engine scores. */
typedef enum flowless_mode {
  FLOWLESS_MODE_DEFAULT = 0, /* online for an engine whose `online` is 1, otherwise rolling */
  FLOWLESS_MODE_ROLLING = 1, /* a clip sampled from the frames of a window, as a video of these frames would be */
  FLOWLESS_MODE_ONLINE = 2   /* the newest frame and the N - 1 frames that were scored before it; needs segments of one frame.
                                Of a streaming engine: a step over the newest m frames that were pushed, scored or not, with the
                                state that the stream's last scored step returned; missing frames are copies of the first */
} flowless_mode;

/* How a stream is read. All zero (but `size`): the engine's mode, a window of 64 frames, no limit of time. */
typedef struct flowless_stream_options {
  size_t size;
  int32_t mode;          /* a flowless_mode */
  int32_t window_frames; /* rolling: at most so many frames, 1 to 4096; 0: 64. Each takes picture_bytes of memory */
  int64_t window_ns;     /* rolling: frames older than this beside the newest leave the window; 0: no limit */
  int64_t max_gap_ns;    /* a frame that comes later than this after the one before, or earlier than it, resets the stream; 0: never */
} flowless_stream_options;

/* What happened in a stream so far. */
typedef struct flowless_stream_state {
  size_t size;
  uint64_t pushed;   /* frames pushed */
  uint64_t replaced; /* frames that no step found as the newest: another came before it */
  uint64_t scored;   /* steps that scored this stream */
  uint64_t resets;   /* resets, by call or by a gap */
  int32_t ready;     /* 1: a frame was pushed that no step has scored */
  int32_t frames;    /* frames in the window, or pictures in the memory; of a streaming engine, the frames of the newest segment */
  int64_t pts_ns;    /* time stamp of the newest frame that was scored; 0 before the first */
} flowless_stream_state;

/* The library's version, such as 0.1.0. */
FLOWLESS_API const char *flowless_version(void);

/* The sentence about the calling thread's last call that failed; empty before the first. Valid until the thread's next call that fails. */
FLOWLESS_API const char *flowless_error(void);

/* Open a bundle's engine. Only the files that are loaded are compared with their hashes. `options` may be NULL. */
FLOWLESS_API flowless_status flowless_open(const char *bundle, const flowless_options *options, flowless_engine **engine);

/* Close an engine and its streams. A call that is running in another thread ends as usual; the memory is freed after it. NULL is allowed. */
FLOWLESS_API flowless_status flowless_close(flowless_engine *engine);

/* Describe an engine; set info->size first. */
FLOWLESS_API flowless_status flowless_describe(flowless_engine *engine, flowless_info *info);

/* The name of class `index`; it lives until the engine is closed. */
FLOWLESS_API flowless_status flowless_label(flowless_engine *engine, int32_t index, const char **label);

/* The frames of a video of `num_frames` frames that its clips consist of: int64 [clips, segments, frames], `count` numbers. */
FLOWLESS_API flowless_status flowless_indices(flowless_engine *engine, int64_t num_frames, int64_t *indices, size_t count);

/* Resize and crop a frame, byte for byte as Python does: uint8 [crops, height, width, 3], `picture_bytes` of them. */
FLOWLESS_API flowless_status flowless_prepare(flowless_engine *engine, const flowless_frame *frame, uint8_t *picture,
                                              size_t picture_bytes);

/* Score clips: uint8 [batch, segments, frames, height, width, 3] of `clips_bytes` in, float32 [batch, classes], `score_count`, out. */
FLOWLESS_API flowless_status flowless_run(flowless_engine *engine, const uint8_t *clips, size_t clips_bytes, int32_t batch,
                                          float *scores, size_t score_count);

/* Average the scores of a video's views, float32 [views, classes], as the bundle says; float32 [classes]. May be done in place. */
FLOWLESS_API flowless_status flowless_average(flowless_engine *engine, const float *views, int32_t count, float *scores,
                                              size_t score_count);

/* Open a stream: one camera's window, an online graph's memory, or a streaming graph's state. `options` may be NULL. */
FLOWLESS_API flowless_status flowless_stream_open(flowless_engine *engine, const flowless_stream_options *options,
                                                  flowless_stream **stream);

/* Close a stream. NULL is allowed. */
FLOWLESS_API flowless_status flowless_stream_close(flowless_stream *stream);

/* Push the newest frame; frames may have any size, also a new one each. It is resized here, in the caller's thread, and waits for no
 * engine. Each stream takes frames from one thread at a time. */
FLOWLESS_API flowless_status flowless_stream_push(flowless_stream *stream, const flowless_frame *frame);

/* Forget the frames and the state so far, as after a reconnect. */
FLOWLESS_API flowless_status flowless_stream_reset(flowless_stream *stream);

/* Report what happened in a stream; set state->size first. */
FLOWLESS_API flowless_status flowless_stream_look(flowless_stream *stream, flowless_stream_state *state);

/* Score, in one batch, every stream that has a new frame: float32 [count, classes], `score_count`. `answered[i]` is 1 where row i was
 * written; other rows stay as they are. All streams must be of this engine. A step that fails leaves them as they were, so that the
 * next one scores the same frames, and sets all of `answered` to 0; rows may have been written. */
FLOWLESS_API flowless_status flowless_step(flowless_engine *engine, flowless_stream *const *streams, int32_t count, float *scores,
                                           size_t score_count, uint8_t *answered);

#ifdef __cplusplus
}
#endif

#endif
