// ClipSpec's validation, as pipeline/clip/spec.py: one error lists all
// problems.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "manifest_json.h"
#include "status.h"

namespace flowless::detail {
namespace {

constexpr int64_t kLargest = 32768;            // of a size or a number of frames
constexpr double kLargestClip = 4294967296.0;  // bytes
constexpr double kTooLarge = 9223372036854775808.0;

struct Allowed {
  char const* field;
  std::vector<char const*> allowed;
};

// A field's value as Python's ClipSpec holds it: lists are tuples there.
std::string shownField(Json const& value) {
  std::string text = shown(value);
  if (!value.is_array()) {
    return text;
  }
  text.front() = '(';
  if (text.back() != ']') {  // cut
    return text;
  }
  text.back() = ')';
  return value.size() == 1 ? text.insert(text.size() - 1, ",") : text;
}

// As integerOf; an integer that 64 bits do not hold is the largest.
std::optional<int64_t> clamped(Json const& value) {
  bool const large = value.is_number() && value.get<double>() >= kTooLarge;
  return large ? std::numeric_limits<int64_t>::max() : integerOf(value);
}

void checkFieldNames(Json const& table) {
  static char const* const kFields[] = {"average",  "colour",     "crop",  "crop_side", "frames_per_segment",
                                        "height",   "mean",       "pixel", "resize",    "sampling",
                                        "segments", "short_side", "std",   "width"};
  std::vector<std::string> wrong;
  for (auto const& item : table.items()) {
    bool const known =
        std::any_of(std::begin(kFields), std::end(kFields), [&](char const* name) { return item.key() == name; });
    if (!known) {
      wrong.push_back("unknown field " + quoted(item.key()));
    }
  }
  for (char const* const name : kFields) {
    if (!table.contains(name)) {
      wrong.push_back("missing field " + quoted(name));
    }
  }
  if (!wrong.empty()) {
    throw Error(FLOWLESS_DAMAGED, "ClipSpec: " + joined(wrong, "; ") +
                                      ". It was written by another version of "
                                      "flowless; export the model again.");
  }
}

void checkSizes(Json const& table, std::vector<std::string>& problems) {
  for (char const* const name : {"segments", "frames_per_segment", "height", "width", "short_side"}) {
    auto const value = clamped(table[name]);
    if (!value || *value < 1) {
      problems.push_back(std::string(name) + " is " + shownField(table[name]) +
                         "; it must be an integer of at least 1");
    }
  }
  Json const& side = table["crop_side"];
  auto const pixels = clamped(side);
  if (!side.is_null() && (!pixels || *pixels < 1 || table["height"] != table["width"])) {
    problems.push_back("crop_side is " + shownField(side) + " of a frame of " + shownField(table["height"]) + " x " +
                       shownField(table["width"]) +
                       "; it must be None, or for a square frame an integer of at least 1");
  }
  if (!problems.empty()) {
    return;
  }
  char const* const longer = *clamped(table["height"]) > *clamped(table["width"]) ? "height" : "width";
  Json const& largest = side.is_null() ? table[longer] : side;
  if (*clamped(table["short_side"]) < *clamped(largest)) {
    problems.push_back("short_side is " + shown(table["short_side"]) +
                       "; it must be at least the crop's larger side, " + shown(largest));
  }
}

void checkColours(Json const& table, char const* name, double least, std::vector<std::string>& problems) {
  Json const& value = table[name];
  bool fits = value.is_array() && value.size() == 3;
  for (size_t index = 0; fits && index < 3; ++index) {
    fits = value[index].is_number() && value[index].get<double>() >= least && value[index].get<double>() <= 1.0;
  }
  if (!fits) {
    problems.push_back(
        format("%s is %s; it must be three numbers from %g to 1 (R, G, B)", name, shownField(value).c_str(), least));
  }
}

void checkChoices(Json const& table, std::vector<std::string>& problems) {
  static Allowed const kChoices[] = {
      {"sampling", {"centre", "two-clip", "ten-draw", "one-dense", "dense", "consecutive", "ten-consecutive"}},
      {"crop", {"centre", "three"}},
      {"average", {"logits", "softmax"}},
      {"resize", {"antialiased-bilinear"}},
      {"colour", {"RGB"}},
      {"pixel", {"uint8"}},
  };
  for (auto const& [field, allowed] : kChoices) {
    Json const& value = table[field];
    if (std::any_of(allowed.begin(), allowed.end(), [&](char const* name) { return value == name; })) {
      continue;
    }
    std::vector<std::string> const names(allowed.begin(), allowed.end());
    std::string const rule = names.size() > 1 ? "; it must be one of " + joined(names, ", ")
                                              : "; this version supports only " + quoted(names.front());
    problems.push_back(field + (" is " + shownField(value)) + rule);
  }
}

// Limits of this runtime alone, so that the sizes of a clip fit its arithmetic.
void checkLimits(Json const& table) {
  for (char const* const name : {"segments", "frames_per_segment", "height", "width", "short_side", "crop_side"}) {
    auto const value = clamped(table[name]);
    if (value && *value > kLargest) {
      throw Error(FLOWLESS_UNSUPPORTED, format("ClipSpec: %s is %s; this runtime takes at most %lld. "
                                               "Use flowless in Python.",
                                               name, shown(table[name]).c_str(), static_cast<long long>(kLargest)));
    }
  }
  double bytes = 3;
  for (char const* const name : {"segments", "frames_per_segment", "height", "width"}) {
    bytes *= table[name].get<double>();
  }
  if (bytes > kLargestClip) {
    throw Error(FLOWLESS_UNSUPPORTED, format("ClipSpec: a clip has %.0f bytes; this runtime takes at "
                                             "most %.0f. Use flowless in Python.",
                                             bytes, kLargestClip));
  }
}

}  // namespace

ClipSpec readClipSpec(Json const& given) {
  Json table = given;
  table.emplace("crop_side", nullptr);  // older bundles have neither
  table.emplace("average", "logits");
  checkFieldNames(table);
  std::vector<std::string> problems;
  checkSizes(table, problems);
  checkColours(table, "mean", 0.0, problems);
  checkColours(table, "std", 1e-6, problems);
  checkChoices(table, problems);
  if (!problems.empty()) {
    throw Error(FLOWLESS_DAMAGED, "ClipSpec: " + joined(problems, "; ") + ".");
  }
  checkLimits(table);
  ClipSpec spec;
  spec.segments = table["segments"].get<int32_t>();
  spec.framesPerSegment = table["frames_per_segment"].get<int32_t>();
  spec.height = table["height"].get<int32_t>();
  spec.width = table["width"].get<int32_t>();
  spec.shortSide = table["short_side"].get<int32_t>();
  spec.sampling = table["sampling"].get<std::string>();
  spec.threeCrops = table["crop"] == "three";
  spec.cropSide = table["crop_side"].is_null() ? 0 : table["crop_side"].get<int32_t>();
  spec.averageSoftmax = table["average"] == "softmax";
  return spec;
}

}  // namespace flowless::detail
