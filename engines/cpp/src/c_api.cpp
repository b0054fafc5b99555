// The C interface: arguments are checked here, and what is thrown behind it becomes a status and the thread's error
// text.
#include <atomic>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "engine.h"
#include "flowless/flowless.h"
#include "handles.h"
#include "pool.h"
#include "status.h"
#include "stream.h"

namespace flowless::detail {

uintptr_t nextHandle() {
  static std::atomic<uintptr_t> last{0};
  return ++last;
}

namespace {

constexpr int32_t kLargestSide = 32768;
constexpr size_t kLargestStruct = 4096;

// Of a type without a destructor: calls that fail after the thread's other objects are gone still write here.
thread_local char tError[4096];
static_assert(std::is_trivially_destructible_v<decltype(tError)>);

// Never destroyed: a program's own static objects may close engines after this library's would be gone.
Handles<flowless_engine, Engine>& engines() {
  static auto& open = *new Handles<flowless_engine, Engine>("engine");
  return open;
}

Handles<flowless_stream, Stream>& streams() {
  static auto& open = *new Handles<flowless_stream, Stream>("stream");
  return open;
}

flowless_status failed(flowless_status status, char const* text) noexcept {
  size_t length = std::strlen(text);
  if (length >= sizeof(tError)) {
    length = sizeof(tError) - 1;
    while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0U) == 0x80U) {
      --length;  // not within a character
    }
  }
  std::memcpy(tError, text, length);
  tError[length] = '\0';
  return status;
}

using StreamList = std::vector<std::shared_ptr<Stream>>;

// Lists for steps.
Pool<StreamList>& streamLists() {
  static auto& lists = *new Pool<StreamList>();
  return lists;
}

template <class Call>
flowless_status guarded(Call call) noexcept {
  try {
    call();
    return FLOWLESS_OK;
  } catch (Error const& error) {
    return failed(error.status(), error.what());
  } catch (std::bad_alloc const&) {
    return failed(FLOWLESS_RUNTIME, "there is not enough memory. Free some, or use fewer streams or a smaller batch.");
  } catch (std::exception const& error) {
    return failed(FLOWLESS_RUNTIME, error.what());
  } catch (...) {
    return failed(FLOWLESS_RUNTIME, "an error of unknown type was thrown.");
  }
}

void refuseNull(void const* pointer, char const* name) {
  if (pointer == nullptr) {
    throw Error(FLOWLESS_INVALID, format("%s is NULL; it must be an address.", name));
  }
}

template <class Number>
void refuseOther(Number given, Number wanted, char const* name, char const* what) {
  if (given != wanted) {
    throw Error(FLOWLESS_INVALID,
                format("%s is %llu; it must be %llu: %s.", name, static_cast<unsigned long long>(given),
                       static_cast<unsigned long long>(wanted), what));
  }
}

void checkSize(size_t given, size_t known, char const* name) {
  if (given < known || given > kLargestStruct) {
    throw Error(FLOWLESS_INVALID,
                format("%s.size is %zu; set it to sizeof(%s), %zu in this version.", name, given, name, known));
  }
}

// A struct of arguments is of this version's size or, from a newer header, larger with zeros in what this version does
// not know.
template <class Struct>
void checkArguments(Struct const& given, char const* name) {
  checkSize(given.size, sizeof(Struct), name);
  auto const* const bytes = reinterpret_cast<unsigned char const*>(&given);
  for (size_t at = sizeof(Struct); at < given.size; ++at) {
    if (bytes[at] != 0) {
      throw Error(FLOWLESS_UNSUPPORTED,
                  format("%s has a field that is set and that this version, %s, does not know. Update flowless.", name,
                         FLOWLESS_VERSION));
    }
  }
}

// Set a struct of results to zeros, but its size.
template <class Struct>
void clearResult(Struct* result, char const* argument, char const* name) {
  refuseNull(result, argument);
  checkSize(result->size, sizeof(Struct), name);
  size_t const size = result->size;
  std::memset(result, 0, size);
  result->size = size;
}

void checkFrame(flowless_frame const* frame) {
  refuseNull(frame, "frame");
  checkArguments(*frame, "flowless_frame");
  refuseNull(frame->rgb, "frame.rgb");
  if (frame->width < 1 || frame->height < 1 || frame->width > kLargestSide || frame->height > kLargestSide) {
    throw Error(FLOWLESS_INVALID, format("the frame is %d x %d; both sides must be from 1 to %d pixels.", frame->width,
                                         frame->height, kLargestSide));
  }
  if (frame->stride != 0 && frame->stride < ptrdiff_t{3} * frame->width) {
    throw Error(FLOWLESS_INVALID,
                format("the frame's stride is %td bytes; it must be 0, or at least 3 x its width, %td.", frame->stride,
                       ptrdiff_t{3} * frame->width));
  }
}

void checkBatch(int32_t batch, char const* name) {
  if (batch < 1) {
    throw Error(FLOWLESS_INVALID, format("%s is %d; it must be at least 1.", name, batch));
  }
}

// a x b; the largest number where that overflows, which no buffer's size equals.
size_t product(size_t a, size_t b) {
  return b != 0 && a > std::numeric_limits<size_t>::max() / b ? std::numeric_limits<size_t>::max() : a * b;
}

char const* textOf(char const* text) { return text == nullptr ? "" : text; }

}  // namespace
}  // namespace flowless::detail

using namespace flowless::detail;  // NOLINT: this file is the interface of that namespace

const char* flowless_version(void) { return FLOWLESS_VERSION; }

const char* flowless_error(void) { return tError; }

flowless_status flowless_open(const char* bundle, const flowless_options* options, flowless_engine** engine) {
  return guarded([&] {
    refuseNull(engine, "engine");
    *engine = nullptr;
    refuseNull(bundle, "bundle");
    EngineOptions wanted;
    if (options != nullptr) {
      checkArguments(*options, "flowless_options");
      if (options->reserved != 0) {
        throw Error(FLOWLESS_INVALID, format("flowless_options.reserved is %d; it must be 0.", options->reserved));
      }
      wanted = {textOf(options->target), textOf(options->precision), textOf(options->device), options->threads};
    }
    *engine = engines().add(std::make_shared<Engine>(bundle, wanted));
  });
}

flowless_status flowless_close(flowless_engine* engine) {
  return guarded([&] {
    if (engine != nullptr) {
      std::shared_ptr<Engine> const closed = engines().take(engine);
      streams().removeWhere([&](Stream const& stream) { return stream.engine() == closed.get(); });
    }
  });
}

flowless_status flowless_describe(flowless_engine* engine, flowless_info* info) {
  return guarded([&] {
    std::shared_ptr<Engine> const open = engines().find(engine);
    clearResult(info, "info", "flowless_info");
    ClipSpec const& spec = open->spec();
    info->segments = spec.segments;
    info->frames = spec.framesPerSegment;
    info->height = spec.height;
    info->width = spec.width;
    info->classes = open->classes();
    info->online = open->online() ? 1 : 0;
    info->crops = spec.crops();
    info->clips = spec.clips();
    info->clip_bytes = spec.clipBytes();
    info->picture_bytes = open->preparedBytes();
    info->model = open->manifest().model.c_str();
    info->target = open->target();
    info->precision = open->precision();
    info->device = open->device();
    info->why = open->why();
  });
}

flowless_status flowless_label(flowless_engine* engine, int32_t index, const char** label) {
  return guarded([&] {
    std::shared_ptr<Engine> const open = engines().find(engine);
    refuseNull(label, "label");
    if (index < 0 || index >= open->classes()) {
      throw Error(FLOWLESS_INVALID,
                  format("index is %d; this engine has the classes 0 to %d.", index, open->classes() - 1));
    }
    *label = open->manifest().labels[static_cast<size_t>(index)].c_str();
  });
}

flowless_status flowless_indices(flowless_engine* engine, int64_t num_frames, int64_t* indices, size_t count) {
  return guarded([&] {
    std::shared_ptr<Engine> const open = engines().find(engine);
    refuseNull(indices, "indices");
    ClipSpec const& spec = open->spec();
    if (num_frames < 1) {
      throw Error(FLOWLESS_INVALID,
                  format("num_frames is %lld; it must be at least 1.", static_cast<long long>(num_frames)));
    }
    size_t const wanted = static_cast<size_t>(spec.clips()) * static_cast<size_t>(spec.segments) *
                          static_cast<size_t>(spec.framesPerSegment);
    refuseOther(count, wanted, "count", "clips x segments x frames");
    clipIndices(spec, num_frames, indices);
  });
}

flowless_status flowless_prepare(flowless_engine* engine, const flowless_frame* frame, uint8_t* picture,
                                 size_t picture_bytes) {
  return guarded([&] {
    std::shared_ptr<Engine> const open = engines().find(engine);
    checkFrame(frame);
    refuseNull(picture, "picture");
    refuseOther(picture_bytes, open->preparedBytes(), "picture_bytes", "crops x height x width x 3");
    open->prepare(*frame, picture);
  });
}

flowless_status flowless_run(flowless_engine* engine, const uint8_t* clips, size_t clips_bytes, int32_t batch,
                             float* scores, size_t score_count) {
  return guarded([&] {
    std::shared_ptr<Engine> const open = engines().find(engine);
    refuseNull(clips, "clips");
    refuseNull(scores, "scores");
    checkBatch(batch, "batch");
    refuseOther(clips_bytes, product(static_cast<size_t>(batch), open->spec().clipBytes()), "clips_bytes",
                "batch x segments x frames x height x width x 3");
    refuseOther(score_count, product(static_cast<size_t>(batch), static_cast<size_t>(open->classes())), "score_count",
                "batch x classes");
    open->run(clips, batch, scores);
  });
}

flowless_status flowless_average(flowless_engine* engine, const float* views, int32_t count, float* scores,
                                 size_t score_count) {
  return guarded([&] {
    std::shared_ptr<Engine> const open = engines().find(engine);
    refuseNull(views, "views");
    refuseNull(scores, "scores");
    checkBatch(count, "count");
    refuseOther(score_count, static_cast<size_t>(open->classes()), "score_count", "classes");
    averageViews(open->spec(), views, count, open->classes(), scores);
  });
}

flowless_status flowless_stream_open(flowless_engine* engine, const flowless_stream_options* options,
                                     flowless_stream** stream) {
  return guarded([&] {
    refuseNull(stream, "stream");
    *stream = nullptr;
    std::shared_ptr<Engine> const open = engines().find(engine);
    StreamOptions wanted;
    if (options != nullptr) {
      checkArguments(*options, "flowless_stream_options");
      if (options->mode < FLOWLESS_MODE_DEFAULT || options->mode > FLOWLESS_MODE_ONLINE) {
        throw Error(FLOWLESS_INVALID, format("mode is %d; it must be a flowless_mode, from 0 to 2.", options->mode));
      }
      wanted = {static_cast<flowless_mode>(options->mode), options->window_frames, options->window_ns,
                options->max_gap_ns};
    }
    flowless_stream* const added = streams().add(std::make_shared<Stream>(open, wanted));
    try {
      engines().find(engine);  // another thread may have closed it, and its streams, before this one was added
    } catch (...) {
      streams().removeWhere([&](Stream const& other) { return other.engine() == open.get(); });
      throw;
    }
    *stream = added;
  });
}

flowless_status flowless_stream_close(flowless_stream* stream) {
  return guarded([&] {
    if (stream != nullptr) {
      streams().take(stream);
    }
  });
}

flowless_status flowless_stream_push(flowless_stream* stream, const flowless_frame* frame) {
  return guarded([&] {
    std::shared_ptr<Stream> const open = streams().find(stream);
    checkFrame(frame);
    open->push(*frame);
  });
}

flowless_status flowless_stream_reset(flowless_stream* stream) {
  return guarded([&] { streams().find(stream)->reset(); });
}

flowless_status flowless_stream_look(flowless_stream* stream, flowless_stream_state* state) {
  return guarded([&] {
    std::shared_ptr<Stream> const open = streams().find(stream);
    clearResult(state, "state", "flowless_stream_state");
    size_t const size = state->size;
    open->state(*state);
    state->size = size;
  });
}

flowless_status flowless_step(flowless_engine* engine, flowless_stream* const* all, int32_t count, float* scores,
                              size_t score_count, uint8_t* answered) {
  return guarded([&] {
    std::shared_ptr<Engine> const open = engines().find(engine);
    refuseNull(all, "streams");
    refuseNull(scores, "scores");
    refuseNull(answered, "answered");
    checkBatch(count, "count");
    refuseOther(score_count, product(static_cast<size_t>(count), static_cast<size_t>(open->classes())), "score_count",
                "count x classes");
    struct Found {
      std::unique_ptr<StreamList> list = streamLists().take([] { return std::make_unique<StreamList>(); });
      ~Found() {
        list->clear();
        streamLists().giveBack(std::move(list));
      }
    } const found;
    for (int32_t index = 0; index < count; ++index) {
      try {
        found.list->push_back(streams().find(all[index]));
      } catch (Error const& error) {
        throw Error(error.status(), format("streams[%d]: ", index) + error.what());
      }
      if (found.list->back()->engine() != open.get()) {
        throw Error(FLOWLESS_INVALID,
                    format("streams[%d] is of another engine; step each engine's streams apart.", index));
      }
    }
    open->step(*found.list, scores, answered);
  });
}
