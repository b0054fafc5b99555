/* Every wrong argument to every call of the C interface ends in its status and a sentence with the value: one row each.
 *
 * bad_input BUNDLE FOLDER: BUNDLE is whole, its segments have several frames; FOLDER has the bundles that rows name,
 * made by tests/cpp/test_bad_input.py. Prints what differs; exit code 0 where nothing does.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flowless/flowless.h"

typedef struct context {
  flowless_engine* engine;
  flowless_engine* second; /* another engine of the same bundle */
  flowless_engine* closed;
  flowless_stream* stream;
  flowless_stream* closed_stream;
  flowless_stream* orphan; /* its engine is closed */
  flowless_info info;
  uint8_t* picture;
  uint8_t* clips;
  uint8_t* rgb;
  float* scores;
  int64_t* indices;
  size_t index_count;
} context;

static const char* folder;
static char bundle_path[4096];

static const char* in_folder(const char* name) {
  snprintf(bundle_path, sizeof(bundle_path), "%s/%s", folder, name);
  return bundle_path;
}

static flowless_status open_named(const char* bundle, flowless_options options) {
  flowless_engine* opened = NULL;
  flowless_status status = flowless_open(bundle, &options, &opened);
  if (status == FLOWLESS_OK) {
    flowless_close(opened);
  } else if (opened != NULL) {
    fprintf(stderr, "a failed open left a handle\n");
    exit(1);
  }
  return status;
}

static flowless_options options_of(const char* target, const char* precision, const char* device, int32_t threads) {
  flowless_options options;
  memset(&options, 0, sizeof(options));
  options.size = sizeof(options);
  options.target = target;
  options.precision = precision;
  options.device = device;
  options.threads = threads;
  return options;
}

static flowless_frame frame_of(const context* all, int32_t width, int32_t height, ptrdiff_t stride) {
  flowless_frame frame;
  memset(&frame, 0, sizeof(frame));
  frame.size = sizeof(frame);
  frame.rgb = all->rgb;
  frame.width = width;
  frame.height = height;
  frame.stride = stride;
  return frame;
}

/* Bundles: each row's name is a folder that the test made. */
#define OPENS(NAME, FOLDER)                                                \
  static flowless_status NAME(context* all) {                              \
    (void)all;                                                             \
    return open_named(in_folder(FOLDER), options_of(NULL, NULL, NULL, 0)); \
  }
OPENS(open_missing, "there is none")
OPENS(open_file, "file")
OPENS(open_empty, "empty")
OPENS(open_not_json, "not-json")
OPENS(open_foreign, "foreign")
OPENS(open_newer, "newer")
OPENS(open_outside, "outside")
OPENS(open_link_outside, "link-outside")
OPENS(open_damaged_engine, "damaged-engine")
OPENS(open_missing_engine, "missing-engine")
OPENS(open_no_engines, "no-engines")
OPENS(open_tensorrt_only, "tensorrt-only")
OPENS(open_broken_graph, "broken-graph")

#define OPENS_WITH(NAME, TARGET, PRECISION, DEVICE, THREADS)                               \
  static flowless_status NAME(context* all) {                                              \
    (void)all;                                                                             \
    return open_named(in_folder("whole"), options_of(TARGET, PRECISION, DEVICE, THREADS)); \
  }
OPENS_WITH(open_unknown_target, "tflite", NULL, NULL, 0)
OPENS_WITH(open_unknown_precision, NULL, "fp8", NULL, 0)
OPENS_WITH(open_unknown_device, NULL, NULL, "NPU", 0)
OPENS_WITH(open_negative_threads, NULL, NULL, NULL, -1)
OPENS_WITH(open_absent_precision, "openvino", "int8", NULL, 0)
OPENS_WITH(open_on_gpu, "openvino", NULL, "GPU", 0)

static flowless_status open_null_bundle(context* all) {
  flowless_engine* opened = NULL;
  (void)all;
  return flowless_open(NULL, NULL, &opened);
}
static flowless_status open_null_engine(context* all) {
  (void)all;
  return flowless_open(in_folder("whole"), NULL, NULL);
}
static flowless_status open_size_zero(context* all) {
  flowless_options options = options_of(NULL, NULL, NULL, 0);
  (void)all;
  options.size = 0;
  return open_named(in_folder("whole"), options);
}
static flowless_status open_size_huge(context* all) {
  flowless_options options = options_of(NULL, NULL, NULL, 0);
  (void)all;
  options.size = 1u << 20;
  return open_named(in_folder("whole"), options);
}
static flowless_status open_reserved(context* all) {
  flowless_options options = options_of(NULL, NULL, NULL, 0);
  (void)all;
  options.reserved = 7;
  return open_named(in_folder("whole"), options);
}
static flowless_status open_newer_struct(context* all) {
  struct {
    flowless_options options;
    int64_t unknown;
  } newer;
  flowless_engine* opened = NULL;
  (void)all;
  memset(&newer, 0, sizeof(newer));
  newer.options.size = sizeof(newer);
  newer.unknown = 1;
  return flowless_open(in_folder("whole"), &newer.options, &opened);
}
static flowless_status open_newer_struct_of_zeros(context* all) {
  struct {
    flowless_options options;
    int64_t unknown;
  } newer;
  flowless_engine* opened = NULL;
  flowless_status status;
  (void)all;
  memset(&newer, 0, sizeof(newer));
  newer.options.size = sizeof(newer);
  status = flowless_open(in_folder("whole"), &newer.options, &opened);
  flowless_close(opened);
  return status;
}
static flowless_status close_null(context* all) {
  (void)all;
  return flowless_close(NULL);
}
static flowless_status close_twice(context* all) { return flowless_close(all->closed); }
static flowless_status close_a_stream(context* all) { return flowless_close((flowless_engine*)(void*)all->stream); }
static flowless_status close_nonsense(context* all) { return flowless_close((flowless_engine*)(void*)all->scores); }

/* Descriptions. */
static flowless_status describe_null(context* all) { return flowless_describe(all->engine, NULL); }
static flowless_status describe_closed(context* all) { return flowless_describe(all->closed, &all->info); }
static flowless_status describe_null_engine(context* all) { return flowless_describe(NULL, &all->info); }
static flowless_status describe_size(context* all) {
  flowless_info info;
  memset(&info, 0, sizeof(info));
  info.size = 8;
  return flowless_describe(all->engine, &info);
}
static flowless_status label_negative(context* all) {
  const char* label;
  return flowless_label(all->engine, -1, &label);
}
static flowless_status label_past(context* all) {
  const char* label;
  return flowless_label(all->engine, all->info.classes, &label);
}
static flowless_status label_null(context* all) { return flowless_label(all->engine, 0, NULL); }
static flowless_status indices_none(context* all) {
  return flowless_indices(all->engine, 0, all->indices, all->index_count);
}
static flowless_status indices_count(context* all) {
  return flowless_indices(all->engine, 10, all->indices, all->index_count - 1);
}
static flowless_status indices_null(context* all) { return flowless_indices(all->engine, 10, NULL, all->index_count); }

/* Frames. */
static flowless_status prepare_null_frame(context* all) {
  return flowless_prepare(all->engine, NULL, all->picture, all->info.picture_bytes);
}
#define PREPARES(NAME, WIDTH, HEIGHT, STRIDE)                                            \
  static flowless_status NAME(context* all) {                                            \
    flowless_frame frame = frame_of(all, WIDTH, HEIGHT, STRIDE);                         \
    return flowless_prepare(all->engine, &frame, all->picture, all->info.picture_bytes); \
  }
PREPARES(prepare_no_width, 0, 10, 0)
PREPARES(prepare_negative_height, 10, -5, 0)
PREPARES(prepare_too_wide, 40000, 10, 0)
PREPARES(prepare_short_stride, 10, 10, 29)
PREPARES(prepare_negative_stride, 10, 10, -30)
static flowless_status prepare_null_rgb(context* all) {
  flowless_frame frame = frame_of(all, 10, 10, 0);
  frame.rgb = NULL;
  return flowless_prepare(all->engine, &frame, all->picture, all->info.picture_bytes);
}
static flowless_status prepare_frame_size(context* all) {
  flowless_frame frame = frame_of(all, 10, 10, 0);
  frame.size = 4;
  return flowless_prepare(all->engine, &frame, all->picture, all->info.picture_bytes);
}
static flowless_status prepare_null_picture(context* all) {
  flowless_frame frame = frame_of(all, 10, 10, 0);
  return flowless_prepare(all->engine, &frame, NULL, all->info.picture_bytes);
}
static flowless_status prepare_picture_size(context* all) {
  flowless_frame frame = frame_of(all, 10, 10, 0);
  return flowless_prepare(all->engine, &frame, all->picture, all->info.picture_bytes + 1);
}

/* Clips. */
#define RUNS(NAME, ENGINE, CLIPS, BYTES, BATCH, SCORES, COUNT)                           \
  static flowless_status NAME(context* all) {                                            \
    return flowless_run(ENGINE, CLIPS, (size_t)(BYTES), BATCH, SCORES, (size_t)(COUNT)); \
  }
RUNS(run_closed, all->closed, all->clips, all->info.clip_bytes, 1, all->scores, all->info.classes)
RUNS(run_null_clips, all->engine, NULL, all->info.clip_bytes, 1, all->scores, all->info.classes)
RUNS(run_null_scores, all->engine, all->clips, all->info.clip_bytes, 1, NULL, all->info.classes)
RUNS(run_no_clip, all->engine, all->clips, 0, 0, all->scores, 0)
RUNS(run_negative_batch, all->engine, all->clips, all->info.clip_bytes, -1, all->scores, all->info.classes)
RUNS(run_bytes, all->engine, all->clips, all->info.clip_bytes - 1, 1, all->scores, all->info.classes)
RUNS(run_batch, all->engine, all->clips, all->info.clip_bytes, 2, all->scores, 2 * all->info.classes)
RUNS(run_score_count, all->engine, all->clips, all->info.clip_bytes, 1, all->scores, all->info.classes + 1)
RUNS(run_huge_batch, all->engine, all->clips, all->info.clip_bytes, 2147483647, all->scores, all->info.classes)
static flowless_status average_none(context* all) {
  return flowless_average(all->engine, all->scores, 0, all->scores, (size_t)all->info.classes);
}
static flowless_status average_null(context* all) {
  return flowless_average(all->engine, NULL, 1, all->scores, (size_t)all->info.classes);
}
static flowless_status average_count(context* all) {
  return flowless_average(all->engine, all->scores, 1, all->scores, 1);
}

/* Streams. */
static flowless_status stream_of(context* all, int32_t mode, int32_t frames, int64_t window, int64_t gap, size_t size) {
  flowless_stream_options options;
  flowless_stream* stream = NULL;
  flowless_status status;
  memset(&options, 0, sizeof(options));
  options.size = size;
  options.mode = mode;
  options.window_frames = frames;
  options.window_ns = window;
  options.max_gap_ns = gap;
  status = flowless_stream_open(all->engine, &options, &stream);
  flowless_stream_close(stream);
  return status;
}
#define STREAMS(NAME, MODE, FRAMES, WINDOW, GAP, SIZE) \
  static flowless_status NAME(context* all) { return stream_of(all, MODE, FRAMES, WINDOW, GAP, SIZE); }
STREAMS(stream_mode, 3, 0, 0, 0, sizeof(flowless_stream_options))
STREAMS(stream_negative_mode, -1, 0, 0, 0, sizeof(flowless_stream_options))
STREAMS(stream_online, FLOWLESS_MODE_ONLINE, 0, 0, 0, sizeof(flowless_stream_options))
STREAMS(stream_negative_window, FLOWLESS_MODE_ROLLING, -1, 0, 0, sizeof(flowless_stream_options))
STREAMS(stream_large_window, FLOWLESS_MODE_ROLLING, 5000, 0, 0, sizeof(flowless_stream_options))
STREAMS(stream_negative_time, FLOWLESS_MODE_ROLLING, 0, -1, 0, sizeof(flowless_stream_options))
STREAMS(stream_negative_gap, FLOWLESS_MODE_ROLLING, 0, 0, -1, sizeof(flowless_stream_options))
STREAMS(stream_size, FLOWLESS_MODE_ROLLING, 0, 0, 0, 12)
static flowless_status stream_null(context* all) { return flowless_stream_open(all->engine, NULL, NULL); }
static flowless_status stream_of_closed(context* all) {
  flowless_stream* stream = NULL;
  return flowless_stream_open(all->closed, NULL, &stream);
}
static flowless_status push_null(context* all) { return flowless_stream_push(all->stream, NULL); }
static flowless_status push_closed(context* all) {
  flowless_frame frame = frame_of(all, 10, 10, 0);
  return flowless_stream_push(all->closed_stream, &frame);
}
static flowless_status push_orphan(context* all) {
  flowless_frame frame = frame_of(all, 10, 10, 0);
  return flowless_stream_push(all->orphan, &frame);
}
static flowless_status reset_null(context* all) {
  (void)all;
  return flowless_stream_reset(NULL);
}
static flowless_status look_null(context* all) { return flowless_stream_look(all->stream, NULL); }
static flowless_status look_size(context* all) {
  flowless_stream_state state;
  memset(&state, 0, sizeof(state));
  state.size = 1;
  return flowless_stream_look(all->stream, &state);
}
static flowless_status close_stream_twice(context* all) { return flowless_stream_close(all->closed_stream); }
static flowless_status close_null_stream(context* all) {
  (void)all;
  return flowless_stream_close(NULL);
}
static flowless_status step_with(context* all, flowless_engine* engine, flowless_stream* stream, int32_t count,
                                 size_t scores) {
  flowless_stream* streams[1];
  uint8_t answered[1];
  streams[0] = stream;
  return flowless_step(engine, streams, count, all->scores, scores, answered);
}
#define STEPS(NAME, ENGINE, STREAM, COUNT, SCORES) \
  static flowless_status NAME(context* all) { return step_with(all, ENGINE, STREAM, COUNT, (size_t)(SCORES)); }
STEPS(step_closed, all->closed, all->stream, 1, all->info.classes)
STEPS(step_null_stream, all->engine, NULL, 1, all->info.classes)
STEPS(step_closed_stream, all->engine, all->closed_stream, 1, all->info.classes)
STEPS(step_other_engine, all->second, all->stream, 1, all->info.classes)
STEPS(step_no_streams, all->engine, all->stream, 0, 0)
STEPS(step_negative, all->engine, all->stream, -3, all->info.classes)
STEPS(step_scores, all->engine, all->stream, 1, all->info.classes - 1)
static flowless_status step_null_streams(context* all) {
  uint8_t answered[1];
  return flowless_step(all->engine, NULL, 1, all->scores, (size_t)all->info.classes, answered);
}
static flowless_status step_null_answered(context* all) {
  flowless_stream* streams[1];
  streams[0] = all->stream;
  return flowless_step(all->engine, streams, 1, all->scores, (size_t)all->info.classes, NULL);
}

typedef struct row {
  const char* name;
  flowless_status (*call)(context*);
  flowless_status status;
  const char* says; /* in the sentence */
} row;

#define ROW(CALL, STATUS, SAYS) \
  { #CALL, CALL, STATUS, SAYS }
static const row kRows[] = {
    ROW(open_missing, FLOWLESS_MISSING, "there is none: no such folder"),
    ROW(open_file, FLOWLESS_MISSING, "file: a file. A bundle is a folder"),
    ROW(open_empty, FLOWLESS_MISSING, "has no manifest.json"),
    ROW(open_not_json, FLOWLESS_DAMAGED, "not JSON"),
    ROW(open_foreign, FLOWLESS_DAMAGED, "not the manifest of a flowless-bundle"),
    ROW(open_newer, FLOWLESS_UNSUPPORTED, "version 2"),
    ROW(open_outside, FLOWLESS_DAMAGED, "outside the bundle"),
    ROW(open_link_outside, FLOWLESS_DAMAGED, "outside the bundle"),
    ROW(open_damaged_engine, FLOWLESS_DAMAGED, "SHA-256"),
    ROW(open_missing_engine, FLOWLESS_MISSING, "missing"),
    ROW(open_no_engines, FLOWLESS_MISSING, "flowless build"),
    ROW(open_tensorrt_only, FLOWLESS_UNSUPPORTED, "tensorrt"),
    ROW(open_broken_graph, FLOWLESS_RUNTIME, "cannot load it"),
    ROW(open_unknown_target, FLOWLESS_INVALID, "'tflite'"),
    ROW(open_unknown_precision, FLOWLESS_INVALID, "'fp8'"),
    ROW(open_unknown_device, FLOWLESS_INVALID, "'NPU'"),
    ROW(open_negative_threads, FLOWLESS_INVALID, "-1"),
    ROW(open_absent_precision, FLOWLESS_MISSING, "int8"),
    ROW(open_on_gpu, FLOWLESS_MISSING, "GPU"),
    ROW(open_null_bundle, FLOWLESS_INVALID, "bundle is NULL"),
    ROW(open_null_engine, FLOWLESS_INVALID, "engine is NULL"),
    ROW(open_size_zero, FLOWLESS_INVALID, "flowless_options.size is 0"),
    ROW(open_size_huge, FLOWLESS_INVALID, "flowless_options.size is 1048576"),
    ROW(open_reserved, FLOWLESS_INVALID, "reserved is 7"),
    ROW(open_newer_struct, FLOWLESS_UNSUPPORTED, "Update flowless"),
    ROW(open_newer_struct_of_zeros, FLOWLESS_OK, ""),
    ROW(close_null, FLOWLESS_OK, ""),
    ROW(close_twice, FLOWLESS_INVALID, "engine is closed"),
    ROW(close_a_stream, FLOWLESS_INVALID, "engine is closed, or was never opened"),
    ROW(close_nonsense, FLOWLESS_INVALID, "never opened"),
    ROW(describe_null, FLOWLESS_INVALID, "info is NULL"),
    ROW(describe_closed, FLOWLESS_INVALID, "closed"),
    ROW(describe_null_engine, FLOWLESS_INVALID, "engine is NULL"),
    ROW(describe_size, FLOWLESS_INVALID, "flowless_info.size is 8"),
    ROW(label_negative, FLOWLESS_INVALID, "index is -1"),
    ROW(label_past, FLOWLESS_INVALID, "classes 0 to"),
    ROW(label_null, FLOWLESS_INVALID, "label is NULL"),
    ROW(indices_none, FLOWLESS_INVALID, "num_frames is 0"),
    ROW(indices_count, FLOWLESS_INVALID, "count is"),
    ROW(indices_null, FLOWLESS_INVALID, "indices is NULL"),
    ROW(prepare_null_frame, FLOWLESS_INVALID, "frame is NULL"),
    ROW(prepare_no_width, FLOWLESS_INVALID, "0 x 10"),
    ROW(prepare_negative_height, FLOWLESS_INVALID, "10 x -5"),
    ROW(prepare_too_wide, FLOWLESS_INVALID, "40000 x 10"),
    ROW(prepare_short_stride, FLOWLESS_INVALID, "29 bytes"),
    ROW(prepare_negative_stride, FLOWLESS_INVALID, "-30 bytes"),
    ROW(prepare_null_rgb, FLOWLESS_INVALID, "rgb is NULL"),
    ROW(prepare_frame_size, FLOWLESS_INVALID, "flowless_frame.size is 4"),
    ROW(prepare_null_picture, FLOWLESS_INVALID, "picture is NULL"),
    ROW(prepare_picture_size, FLOWLESS_INVALID, "picture_bytes is"),
    ROW(run_closed, FLOWLESS_INVALID, "closed"),
    ROW(run_null_clips, FLOWLESS_INVALID, "clips is NULL"),
    ROW(run_null_scores, FLOWLESS_INVALID, "scores is NULL"),
    ROW(run_no_clip, FLOWLESS_INVALID, "batch is 0"),
    ROW(run_negative_batch, FLOWLESS_INVALID, "batch is -1"),
    ROW(run_bytes, FLOWLESS_INVALID, "clips_bytes is"),
    ROW(run_batch, FLOWLESS_INVALID, "clips_bytes is"),
    ROW(run_score_count, FLOWLESS_INVALID, "score_count is"),
    ROW(run_huge_batch, FLOWLESS_INVALID, "clips_bytes is"),
    ROW(average_none, FLOWLESS_INVALID, "count is 0"),
    ROW(average_null, FLOWLESS_INVALID, "views is NULL"),
    ROW(average_count, FLOWLESS_INVALID, "score_count is 1"),
    ROW(stream_mode, FLOWLESS_INVALID, "mode is 3"),
    ROW(stream_negative_mode, FLOWLESS_INVALID, "mode is -1"),
    ROW(stream_online, FLOWLESS_UNSUPPORTED, "FLOWLESS_MODE_ROLLING"),
    ROW(stream_negative_window, FLOWLESS_INVALID, "window_frames is -1"),
    ROW(stream_large_window, FLOWLESS_INVALID, "window_frames is 5000"),
    ROW(stream_negative_time, FLOWLESS_INVALID, "window_ns -1"),
    ROW(stream_negative_gap, FLOWLESS_INVALID, "max_gap_ns -1"),
    ROW(stream_size, FLOWLESS_INVALID, "flowless_stream_options.size is 12"),
    ROW(stream_null, FLOWLESS_INVALID, "stream is NULL"),
    ROW(stream_of_closed, FLOWLESS_INVALID, "closed"),
    ROW(push_null, FLOWLESS_INVALID, "frame is NULL"),
    ROW(push_closed, FLOWLESS_INVALID, "stream is closed"),
    ROW(push_orphan, FLOWLESS_INVALID, "stream is closed"),
    ROW(reset_null, FLOWLESS_INVALID, "stream is NULL"),
    ROW(look_null, FLOWLESS_INVALID, "state is NULL"),
    ROW(look_size, FLOWLESS_INVALID, "flowless_stream_state.size is 1"),
    ROW(close_stream_twice, FLOWLESS_INVALID, "stream is closed"),
    ROW(close_null_stream, FLOWLESS_OK, ""),
    ROW(step_closed, FLOWLESS_INVALID, "engine is closed"),
    ROW(step_null_stream, FLOWLESS_INVALID, "stream is NULL"),
    ROW(step_closed_stream, FLOWLESS_INVALID, "stream is closed"),
    ROW(step_other_engine, FLOWLESS_INVALID, "another engine"),
    ROW(step_no_streams, FLOWLESS_INVALID, "count is 0"),
    ROW(step_negative, FLOWLESS_INVALID, "count is -3"),
    ROW(step_scores, FLOWLESS_INVALID, "score_count is"),
    ROW(step_null_streams, FLOWLESS_INVALID, "streams is NULL"),
    ROW(step_null_answered, FLOWLESS_INVALID, "answered is NULL"),
};

static void needs(flowless_status status, const char* what) {
  if (status != FLOWLESS_OK) {
    fprintf(stderr, "%s: status %d: %s\n", what, (int)status, flowless_error());
    exit(1);
  }
}

static context set_up(const char* bundle) {
  context all;
  flowless_engine* third = NULL;
  memset(&all, 0, sizeof(all));
  needs(flowless_open(bundle, NULL, &all.engine), "open");
  needs(flowless_open(bundle, NULL, &all.second), "open");
  needs(flowless_open(bundle, NULL, &all.closed), "open");
  needs(flowless_close(all.closed), "close");
  needs(flowless_open(bundle, NULL, &third), "open");
  needs(flowless_stream_open(third, NULL, &all.orphan), "stream");
  needs(flowless_close(third), "close");
  needs(flowless_stream_open(all.engine, NULL, &all.stream), "stream");
  needs(flowless_stream_open(all.engine, NULL, &all.closed_stream), "stream");
  needs(flowless_stream_close(all.closed_stream), "close a stream");
  all.info.size = sizeof(all.info);
  needs(flowless_describe(all.engine, &all.info), "describe");
  all.picture = malloc(all.info.picture_bytes);
  all.clips = calloc(1, all.info.clip_bytes);
  all.rgb = calloc(1, 3 * 64 * 64);
  all.scores = calloc((size_t)all.info.classes * 2, sizeof(float));
  all.index_count = (size_t)(all.info.clips * all.info.segments * all.info.frames);
  all.indices = calloc(all.index_count, sizeof(int64_t));
  return all;
}

int main(int argc, char** argv) {
  size_t index;
  int failures = 0;
  context all;
  if (argc != 3) {
    fprintf(stderr, "bad_input BUNDLE FOLDER\n");
    return 2;
  }
  folder = argv[2];
  all = set_up(argv[1]);
  for (index = 0; index < sizeof(kRows) / sizeof(kRows[0]); ++index) {
    const row* one = &kRows[index];
    const flowless_status status = one->call(&all);
    const char* text = status == FLOWLESS_OK ? "" : flowless_error();
    const size_t length = strlen(text);
    const int sentence = status == FLOWLESS_OK || (length > 10 && strchr(text, '\n') == NULL);
    if (status != one->status || strstr(text, one->says) == NULL || !sentence) {
      printf("%s: status %d, not %d with '%s': %s\n", one->name, (int)status, (int)one->status, one->says, text);
      ++failures;
    }
  }
  /* After all that, the engine still runs. */
  needs(flowless_run(all.engine, all.clips, all.info.clip_bytes, 1, all.scores, (size_t)all.info.classes), "run");
  needs(flowless_close(all.engine), "close");
  needs(flowless_close(all.second), "close");
  free(all.picture);
  free(all.clips);
  free(all.rgb);
  free(all.scores);
  free(all.indices);
  printf("%zu rows, %d failures\n", index, failures);
  return failures == 0 ? 0 : 1;
}
