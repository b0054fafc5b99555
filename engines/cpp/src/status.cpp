#include "status.h"

#include <cstdarg>
#include <cstdio>

namespace flowless::detail {
namespace {

constexpr size_t kLongest = 200;

// Length of the UTF-8 character at `at`; 0 where the bytes are not valid.
size_t characterLength(std::string const& text, size_t at) {
  auto const byte = [&](size_t index) { return index < text.size() ? static_cast<unsigned char>(text[index]) : 0U; };
  unsigned const first = byte(at);
  size_t const length = first < 0x80                    ? 1
                        : first >= 0xC2 && first < 0xE0 ? 2
                        : first >= 0xE0 && first < 0xF0 ? 3
                        : first >= 0xF0 && first < 0xF5 ? 4
                                                        : 0;
  for (size_t index = 1; index < length; ++index) {
    if ((byte(at + index) & 0xC0U) != 0x80U) {
      return 0;
    }
  }
  return length;
}

}  // namespace

std::string format(char const* pattern, ...) {
  va_list arguments;
  va_start(arguments, pattern);
  va_list copy;
  va_copy(copy, arguments);
  int const length = std::vsnprintf(nullptr, 0, pattern, copy);
  va_end(copy);
  std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  if (length > 0) {
    std::vsnprintf(text.data(), text.size() + 1, pattern, arguments);
  }
  va_end(arguments);
  return text;
}

std::string quoted(std::string const& text) {
  bool const doubled = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  char const quote = doubled ? '"' : '\'';
  std::string result(1, quote);
  for (size_t at = 0; at < text.size();) {
    if (result.size() > kLongest) {
      result += "...";
      break;
    }
    size_t const length = characterLength(text, at);
    auto const byte = static_cast<unsigned char>(text[at]);
    char const* const escape = byte == '\n' ? "\\n" : byte == '\r' ? "\\r" : byte == '\t' ? "\\t" : nullptr;
    if (escape != nullptr) {
      result += escape;
      ++at;
    } else if (length == 0 || byte < 0x20 || byte == 0x7F) {
      result += format("\\x%02x", static_cast<unsigned>(byte));
      ++at;
    } else {
      result.append(byte == '\\' || byte == quote ? "\\" : "").append(text, at, length);
      at += length;
    }
  }
  return result + quote;
}

std::string joined(std::vector<std::string> const& parts, char const* separator) {
  std::string text;
  for (size_t index = 0; index < parts.size(); ++index) {
    text += (index == 0 ? "" : separator) + parts[index];
  }
  return text;
}

}  // namespace flowless::detail
