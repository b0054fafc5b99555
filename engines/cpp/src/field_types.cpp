// The types of a manifest's fields: the kinds and tables of
// engines/bundle/field_types.py.
#include <algorithm>
#include <iterator>
#include <vector>

#include "manifest_json.h"
#include "status.h"

namespace flowless::detail {
namespace {

// What a field may be.
struct Kind {
  char const* name;
  bool (*fits)(Json const&);    // its items aside
  Kind const* items = nullptr;  // what the items of a list, or the values of a table, may be; null: anything
};

struct Field {
  char const* name;
  Kind const& kind;
  bool required;
};

bool isCount(Json const& value) { return integerOf(value).value_or(-1) >= 0; }
bool isText(Json const& value) { return value.is_string(); }
bool isNumber(Json const& value) { return value.is_number(); }
bool isFlag(Json const& value) { return value.is_boolean(); }
bool isTable(Json const& value) { return value.is_object(); }
bool isList(Json const& value) { return value.is_array(); }
bool isPrecision(Json const& value) { return value == "fp32" || value == "bf16" || value == "fp16" || value == "int8"; }
bool isHint(Json const& value) { return value == "f32" || value == "bf16" || value == "f16"; }

bool isSize(Json const& value) {
  int64_t const size = integerOf(value).value_or(0);
  return size >= 1 && size <= kMostElements;
}
bool isShape(Json const& value) { return value.is_array() && !value.empty(); }
bool isType(Json const& value) { return value == "float32" || value == "uint8"; }
bool isStateName(Json const& value) {
  if (!value.is_string()) {
    return false;
  }
  auto const& name = value.get_ref<std::string const&>();
  bool const taken = name == "frame" || name == "scores" || name.compare(0, 5, "next_") == 0;
  return !taken && !name.empty() && name.size() <= 40 &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos;
}

template <bool (*fits)(Json const&)>
bool orNull(Json const& value) {
  return value.is_null() || fits(value);
}

constexpr Kind kText{"text", isText};
constexpr Kind kTextOrNull{"text or null", orNull<isText>};
constexpr Kind kTexts{"a list of texts", isList, &kText};
constexpr Kind kTextTable{"a table of texts", isTable, &kText};
constexpr Kind kCount{"an integer from 0 to 2^63 - 1", isCount};
constexpr Kind kCountOrNull{"an integer from 0 to 2^63 - 1 or null", orNull<isCount>};
constexpr Kind kCounts{"a list of integers from 0 to 2^63 - 1", isList, &kCount};
constexpr Kind kNumber{"a number", isNumber};
constexpr Kind kNumberOrNull{"a number or null", orNull<isNumber>};
constexpr Kind kFlag{"true or false", isFlag};
constexpr Kind kTable{"a table", isTable};
constexpr Kind kTableOrNull{"a table or null", orNull<isTable>};
constexpr Kind kTables{"a list of tables", isList, &kTable};
constexpr Kind kTableTable{"a table of tables", isTable, &kTable};
constexpr Kind kPrecision{"one of fp32, bf16, fp16, int8", isPrecision};
constexpr Kind kHint{"one of f32, bf16, f16", isHint};

constexpr Kind kStateName{
    "at most 40 characters of a-z, 0-9 and _, without next_ at the beginning, and not frame or scores", isStateName};
constexpr Kind kSize{"an integer from 1 to 2^31 - 1", isSize};
constexpr Kind kShape{"a list of at least one integer", isShape, &kSize};
constexpr Kind kType{"one of float32, uint8", isType};

constexpr Field kManifest[] = {
    {"model", kText, true},         {"spec", kTable, true},       {"labels", kTexts, true},
    {"opset", kCount, true},        {"config", kTable, true},     {"memory", kCount, true},
    {"state", kTables, true},       {"graph", kText, true},       {"reference", kText, true},
    {"versions", kTextTable, true}, {"parity", kTable, true},     {"calibration", kTableOrNull, true},
    {"trials", kTables, true},      {"files", kTableTable, true}, {"artefacts", kTables, true},
};
constexpr Field kState[] = {{"name", kStateName, true}, {"shape", kShape, true}, {"dtype", kType, true}};
constexpr Field kFile[] = {{"sha256", kText, true}, {"bytes", kCount, true}};
constexpr Field kTrial[] = {
    {"target", kText, true}, {"precision", kText, true}, {"machine", kText, false}, {"recommended", kFlag, false}};
constexpr Field kArtefact[] = {
    {"target", kText, true},
    {"precision", kPrecision, true},
    {"status", kText, true},
    {"files", kTexts, true},
    {"max_abs_diff", kNumberOrNull, false},
    {"versions", kTextTable, false},
    {"options", kTable, false},
    {"figures", kTable, false},
    {"key", kText, false},
};
constexpr Field kOptions[] = {
    {"hint", kHint, false},
    {"platform", kText, false},
    {"gpu", kTextOrNull, false},
    {"gpu_compute_capability", kCountOrNull, false},
    {"compute_capabilities", kCounts, false},
    {"portable", kFlag, false},
    {"stripped", kFlag, false},
    {"refit_from", kTextOrNull, false},
    {"pa", kText, false},
};
constexpr Field kFigures[] = {{"latency_ms_p50", kNumber, false}, {"machine", kText, false}};

std::string listed(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  std::transform(names.begin(), names.end(), names.begin(), quoted);
  return "[" + joined(names, ", ") + "]";
}

std::string shownShortly(Json const& value) {
  return value.is_object() ? "a table" : value.is_array() ? "a list" : shown(value);
}

void checkValue(std::string const& place, Json const& value, Kind const& kind) {
  if (!kind.fits(value)) {
    throw WrongContents(place + " is " + shownShortly(value) + "; it must be " + kind.name);
  }
  if (kind.items == nullptr) {
    return;
  }
  size_t index = 0;
  for (auto item = value.begin(); item != value.end(); ++item, ++index) {
    std::string const key = value.is_object() ? shown(item.key()) : std::to_string(index);
    checkValue(place + "[" + key + "]", *item, *kind.items);
  }
}

enum class Others { kRefused, kAllowed };

template <size_t count>
void checkFields(std::string const& place, Json const& table, Field const (&fields)[count],
                 Others others = Others::kRefused) {
  std::vector<std::string> missing;
  std::vector<std::string> unknown;
  for (Field const& field : fields) {
    if (field.required && !table.contains(field.name)) {
      missing.emplace_back(field.name);
    }
  }
  for (auto item = table.begin(); item != table.end() && others == Others::kRefused; ++item) {
    if (std::none_of(std::begin(fields), std::end(fields),
                     [&](Field const& field) { return item.key() == field.name; })) {
      unknown.push_back(item.key());
    }
  }
  if (!missing.empty() || !unknown.empty()) {
    throw WrongContents(place + (place.empty() ? "" : ": ") + "fields missing: " + listed(missing) +
                        "; unknown: " + listed(unknown));
  }
  for (Field const& field : fields) {
    auto const found = table.find(field.name);
    if (found != table.end()) {
      checkValue(place + (place.empty() ? "" : ".") + field.name, *found, field.kind);
    }
  }
}

}  // namespace

void checkFieldTypes(Json const& body) {
  checkFields("", body, kManifest);
  for (size_t index = 0; index < body["state"].size(); ++index) {
    checkFields("state[" + std::to_string(index) + "]", body["state"][index], kState);
  }
  for (auto const& [name, record] : body["files"].items()) {
    checkFields("files[" + shown(name) + "]", record, kFile);
  }
  for (size_t index = 0; index < body["trials"].size(); ++index) {
    checkFields("trials[" + std::to_string(index) + "]", body["trials"][index], kTrial, Others::kAllowed);
  }
  for (size_t index = 0; index < body["artefacts"].size(); ++index) {
    Json const& artefact = body["artefacts"][index];
    std::string const place = "artefacts[" + std::to_string(index) + "]";
    checkFields(place, artefact, kArtefact);
    if (artefact.contains("options")) {
      checkFields(place + ".options", artefact["options"], kOptions, Others::kAllowed);
    }
    if (artefact.contains("figures")) {
      checkFields(place + ".figures", artefact["figures"], kFigures, Others::kAllowed);
    }
  }
}

}  // namespace flowless::detail
