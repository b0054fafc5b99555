// A manifest's JSON: parsed within limits, shown in messages as Python shows
// it, and its clip.
#ifndef FLOWLESS_SRC_MANIFEST_JSON_H
#define FLOWLESS_SRC_MANIFEST_JSON_H

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "clip_spec.h"

namespace flowless::detail {

using Json = nlohmann::json;

// Most elements of one tensor of a state, and so its largest size.
inline constexpr int64_t kMostElements = INT32_MAX;

// What is wrong with a manifest's text or contents, without the file's name and
// the remedy.
class WrongContents : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Parse what Python's json.loads accepts, but for NaN, infinity, numbers beyond
// double, and nesting of more than 500 levels; throws WrongContents. A
// surrogate without its pair becomes U+FFFD.
Json parseJson(std::string_view text);

// A value as Python prints it, its first 100 bytes.
std::string shown(Json const& value);

// An integer that 64 bits with a sign hold; nothing for other values, such
// as 8.0 and true.
std::optional<int64_t> integerOf(Json const& value);

// Check the names and types of a manifest's fields, without `format` and
// `version`, with defaults for what older bundles lack; throws WrongContents.
void checkFieldTypes(Json const& body);

// The clip of a manifest's `spec`, which is an object. Throws Error with one
// sentence that begins with "ClipSpec: ": damaged for what Python refuses too,
// unsupported for sizes that only this runtime refuses.
ClipSpec readClipSpec(Json const& table);

}  // namespace flowless::detail

#endif
