// The library of TensorRT or of TensorRT-RTX in this process: loaded when first needed, its version, its logger, and
// what creates runtimes (engines/backends/tensorrt_process.py). Which of the two is decided by the headers on the
// include path. For tensorrt.cpp alone.
//
// Both libraries' headers declare the same classes with other layouts, so their namespace is renamed where they are
// TensorRT-RTX's: with both in one program, the linker must not take an inline function of one for the other's.
#ifndef FLOWLESS_SRC_BACKENDS_TENSORRT_LIBRARY_H
#define FLOWLESS_SRC_BACKENDS_TENSORRT_LIBRARY_H

#include <NvInferVersion.h>

#ifdef TRT_MAJOR_RTX
#define nvinfer1 nvinfer1_rtx
#define nvonnxparser nvonnxparser_rtx
#define FLOWLESS_TENSORRT tensorrt_rtx
#else
#define FLOWLESS_TENSORRT tensorrt
#endif

#include <NvInferRuntime.h>
#include <NvOnnxParser.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../status.h"

namespace flowless::detail::FLOWLESS_TENSORRT {

#ifdef TRT_MAJOR_RTX
inline constexpr bool kRtx = true;
inline constexpr char const* kModule = "tensorrt_rtx";
inline constexpr char const* kFile = "libtensorrt_rtx.so.";
inline constexpr char const* kParserFile = "libtensorrt_onnxparser_rtx.so.";
inline constexpr char const* kOption = "TENSORRT_RTX_ROOT";
#else
inline constexpr bool kRtx = false;
inline constexpr char const* kModule = "tensorrt";
inline constexpr char const* kFile = "libnvinfer.so.";
inline constexpr char const* kParserFile = "libnvonnxparser.so.";
inline constexpr char const* kOption = "TENSORRT_ROOT";
#endif
// Environment variable that names the folder of the libraries; without it the system's loader finds them.
inline constexpr char const* kFolderVariable = "FLOWLESS_TENSORRT_LIBRARIES";

// Load one of the libraries; null with the loader's reason. It stays loaded until the process ends.
inline void* loadLibrary(char const* file, std::string& reason) {
  std::string name = file + std::to_string(NV_TENSORRT_MAJOR);
  char const* const folder = std::getenv(kFolderVariable);
  if (folder != nullptr && *folder != '\0') {
    name = std::string(folder) + "/" + name;
  }
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    char const* const text = dlerror();
    reason = text == nullptr ? name : text;
  }
  return library;
}

struct Library {
  std::string problem;  // why it cannot be used; empty where it can
  std::string version;  // 10.13.3.9
  decltype(&createInferRuntime_INTERNAL) createRuntime = nullptr;
  decltype(&createInferRefitter_INTERNAL) createRefitter = nullptr;
  decltype(&getPluginRegistry) pluginRegistry = nullptr;

  std::string named() const { return std::string(kRtx ? "tensorrt-rtx " : "tensorrt ") + version; }
};

// Read the version; refuse another major version than the headers', or an older minor one: classes only grow within a
// major version.
inline void readVersion(void* handle, Library& library) {
  std::vector<int32_t> numbers;
  for (char const* part : {"Major", "Minor", "Patch", "Build"}) {
    auto const get =
        reinterpret_cast<int32_t (*)()>(dlsym(handle, (std::string("getInferLib") + part + "Version").c_str()));
    if (get == nullptr) {
      library.problem =
          format("%s has no getInferLib%sVersion; it is older than this build of libflowless can use", kModule, part);
      return;
    }
    numbers.push_back(get());
    library.version += (library.version.empty() ? "" : ".") + std::to_string(numbers.back());
  }
  if (numbers[0] != NV_TENSORRT_MAJOR || numbers[1] < NV_TENSORRT_MINOR) {
    library.problem = format(
        "%s %s is here, and this build of libflowless is for %d.%d and later ones of %d.x (configure with -D%s=FOLDER)",
        kModule, library.version.c_str(), NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_MAJOR, kOption);
  }
}

inline Library openLibrary() {
  Library library;
  std::string reason;
  void* const handle = loadLibrary(kFile, reason);
  if (handle == nullptr) {
    library.problem =
        format("%s cannot be loaded (%s); set %s to its folder", kModule, reason.c_str(), kFolderVariable);
    return library;
  }
  readVersion(handle, library);
  library.createRuntime =
      reinterpret_cast<decltype(library.createRuntime)>(dlsym(handle, "createInferRuntime_INTERNAL"));
  library.createRefitter =
      reinterpret_cast<decltype(library.createRefitter)>(dlsym(handle, "createInferRefitter_INTERNAL"));
  library.pluginRegistry = reinterpret_cast<decltype(library.pluginRegistry)>(dlsym(handle, "getPluginRegistry"));
  bool const whole =
      library.createRuntime != nullptr && library.createRefitter != nullptr && library.pluginRegistry != nullptr;
  if (library.problem.empty() && !whole) {
    library.problem = format("%s %s lacks a function that an engine needs", kModule, library.version.c_str());
  }
  return library;
}

inline Library const& library() {
  static Library const* const opened = new Library(openLibrary());  // never destroyed, as the library is
  return *opened;
}

// Errors that the library logs while one of these lives. It keeps a bare pointer to the first logger that it is given,
// so there is one, which is never destroyed and prints nothing. Errors go to the objects of the thread that caused
// them; one from a thread of the library's goes to all.
class Errors {
 public:
  Errors() : mThread(std::this_thread::get_id()) {
    std::lock_guard<std::mutex> const lock(logger().mutex);
    logger().open.push_back(this);
  }
  ~Errors() {
    std::lock_guard<std::mutex> const lock(logger().mutex);
    auto& open = logger().open;
    open.erase(std::find(open.begin(), open.end(), this));
  }
  Errors(Errors const&) = delete;
  Errors& operator=(Errors const&) = delete;

  // Each message once, in one line; `first` come before what was logged.
  std::string text(std::vector<std::string> const& first = {}) const {
    std::lock_guard<std::mutex> const lock(logger().mutex);
    std::vector<std::string> seen;
    std::string joined;
    for (auto const* const texts : {&first, &mTexts}) {
      for (std::string const& item : *texts) {
        if (std::find(seen.begin(), seen.end(), item) == seen.end()) {
          joined += (seen.empty() ? "" : "; ") + item;
          seen.push_back(item);
        }
      }
    }
    return seen.empty() ? "it gives no reason" : joined;
  }

  class Logger final : public nvinfer1::ILogger {
   public:
    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override {
      if (severity == Severity::kERROR || severity == Severity::kINTERNAL_ERROR) {
        try {
          record(message);
        } catch (std::exception const&) {  // no memory for a message: the call that failed reports that it did
        }
      }
    }

   private:
    friend class Errors;

    void record(char const* message) {
      std::string line;
      for (char const* at = message; *at != '\0'; ++at) {  // runs of white space become one space
        bool const space = *at == ' ' || (*at >= '\t' && *at <= '\r');
        if (!space) {
          line += *at;
        } else if (!line.empty() && line.back() != ' ') {
          line += ' ';
        }
      }
      line.erase(line.find_last_not_of(' ') + 1);
      std::lock_guard<std::mutex> const lock(mutex);
      auto const thread = std::this_thread::get_id();
      bool const known =
          std::any_of(open.begin(), open.end(), [&](Errors const* item) { return item->mThread == thread; });
      for (Errors* const item : open) {
        if (!known || item->mThread == thread) {
          item->mTexts.push_back(line);
        }
      }
    }

    std::mutex mutex;
    std::vector<Errors*> open;
  };

  static Logger& logger() {
    static Logger* const made = new Logger();
    return *made;
  }

 private:
  std::thread::id const mThread;
  std::vector<std::string> mTexts;
};

inline nvinfer1::IRuntime* makeRuntime() {
  return static_cast<nvinfer1::IRuntime*>(library().createRuntime(&Errors::logger(), NV_TENSORRT_VERSION));
}

// Why TensorRT-RTX finds an engine invalid, from the engine's header; TensorRT has no such function.
inline std::vector<std::string> whyInvalid([[maybe_unused]] nvinfer1::IRuntime const& runtime,
                                           [[maybe_unused]] std::vector<char> const& plan) {
  std::vector<std::string> reasons;
#ifdef TRT_MAJOR_RTX
  using Why = nvinfer1::EngineInvalidityDiagnostics;
  std::pair<Why, char const*> const names[] = {{Why::kVERSION_MISMATCH, "version mismatch"},
                                               {Why::kUNSUPPORTED_CC, "unsupported cc"},
                                               {Why::kOLD_CUDA_DRIVER, "old cuda driver"},
                                               {Why::kOLD_CUDA_RUNTIME, "old cuda runtime"},
                                               {Why::kINSUFFICIENT_GPU_MEMORY, "insufficient gpu memory"},
                                               {Why::kMALFORMED_ENGINE, "malformed engine"},
                                               {Why::kCUDA_ERROR, "cuda error"}};
  uint64_t diagnostics = 0;
  runtime.getEngineValidity(plan.data(), static_cast<int64_t>(plan.size()), &diagnostics);
  for (auto const& [bit, name] : names) {
    if ((diagnostics & static_cast<uint64_t>(bit)) != 0) {
      reasons.emplace_back(name);
    }
  }
#endif
  return reasons;
}

}  // namespace flowless::detail::FLOWLESS_TENSORRT

#endif
