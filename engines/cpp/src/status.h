// Errors within the library: thrown as Error, turned into a status and the thread's text at the C interface.
#ifndef FLOWLESS_SRC_STATUS_H
#define FLOWLESS_SRC_STATUS_H

#include <stdexcept>
#include <string>
#include <vector>

#include "flowless/flowless.h"

namespace flowless::detail {

class Error : public std::runtime_error {
 public:
  Error(flowless_status status, std::string const& text) : std::runtime_error(text), mStatus(status) {}
  flowless_status status() const noexcept { return mStatus; }

 private:
  flowless_status mStatus;
};

// printf into a std::string.
std::string format(char const* pattern, ...) __attribute__((format(printf, 1, 2)));

// Text of a file or a user in quotes as Python's repr has it, with control characters and invalid UTF-8 escaped, cut
// after 200 bytes.
std::string quoted(std::string const& text);

std::string joined(std::vector<std::string> const& parts, char const* separator);

}  // namespace flowless::detail

#endif
