#include "manifest_json.h"

#include <cstring>

#include "status.h"

namespace flowless::detail {
namespace {

constexpr int kDeepest = 500;
constexpr size_t kShown = 100;
constexpr size_t kEscape = 6;  // bytes of \u and its four digits

// The code unit of the escape (\u and four digits) at `at`; nothing where there is none.
std::optional<unsigned> escapeAt(std::string_view text, size_t at) {
  if (at + kEscape > text.size() || text[at] != '\\' || text[at + 1] != 'u') {
    return std::nullopt;
  }
  unsigned unit = 0;
  for (char const digit : text.substr(at + 2, 4)) {
    char const* const digits = "0123456789abcdef";
    char const lower = digit >= 'A' && digit <= 'F' ? static_cast<char>(digit - 'A' + 'a') : digit;
    char const* const found = lower == '\0' ? nullptr : std::strchr(digits, lower);
    if (found == nullptr) {
      return std::nullopt;
    }
    unit = unit * 16 + static_cast<unsigned>(found - digits);
  }
  return unit;
}

// Python writes a file name that is not UTF-8 as surrogates without a pair,
// which nlohmann-json refuses.
std::string withPairedSurrogates(std::string_view text) {
  std::string result(text);
  for (size_t at = result.find('\\'); at != std::string::npos; at = result.find('\\', at)) {
    auto const unit = escapeAt(result, at);
    if (!unit) {
      at += 2;
      continue;
    }
    auto const next = escapeAt(result, at + kEscape);
    if (*unit >= 0xD800 && *unit < 0xDC00 && next && *next >= 0xDC00 && *next < 0xE000) {
      at += 2 * kEscape;
      continue;
    }
    if (*unit >= 0xD800 && *unit < 0xE000) {
      result.replace(at, kEscape, "\\ufffd");
    }
    at += kEscape;
  }
  return result;
}

// "[json.exception.parse_error.101] parse error at line 1, column 2: what - the
// text there" without its first and last part.
std::string whereItFails(std::string const& what) {
  size_t const start = what.find("] ");
  std::string reason = start == std::string::npos ? what : what.substr(start + 2);
  reason = reason.substr(0, std::min(reason.find(" - "), kShown));
  for (char& letter : reason) {
    letter = letter < 0x20 || letter > 0x7E ? '?' : letter;
  }
  return reason;
}

void print(Json const& value, std::string& text) {
  bool const object = value.is_object();
  if (value.is_string()) {
    text += quoted(value.get_ref<std::string const&>());
  } else if (value.is_null()) {
    text += "None";
  } else if (value.is_boolean()) {
    text += value.get<bool>() ? "True" : "False";
  } else if (!object && !value.is_array()) {
    text += value.dump();
  } else {
    size_t const start = text.size();
    for (auto item = value.begin(); item != value.end() && text.size() <= kShown; ++item) {
      text += text.size() == start ? (object ? "{" : "[") : ", ";
      if (object) {
        text += quoted(item.key()) + ": ";
      }
      print(*item, text);
    }
    text += value.empty() ? (object ? "{}" : "[]") : (object ? "}" : "]");
  }
}

}  // namespace

Json parseJson(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) {
    throw WrongContents("a zero byte");  // nlohmann-json takes it for the end
  }
  if (text.substr(0, 3) == "\xEF\xBB\xBF") {
    throw WrongContents("Unexpected UTF-8 BOM");
  }
  auto const limit = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kDeepest) {
      throw WrongContents("nested too deeply");
    }
    return true;
  };
  try {
    return Json::parse(withPairedSurrogates(text), limit);
  } catch (Json::exception const& error) {
    throw WrongContents(whereItFails(error.what()));
  }
}

std::string shown(Json const& value) {
  std::string text;
  print(value, text);
  if (text.size() > kShown) {
    size_t end = kShown;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) {
      --end;
    }
    text.resize(end);
  }
  return text;
}

std::optional<int64_t> integerOf(Json const& value) {
  bool const large = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  return value.is_number_integer() && !large ? std::optional(value.get<int64_t>()) : std::nullopt;
}

}  // namespace flowless::detail
