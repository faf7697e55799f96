#pragma once

#include <stdexcept>
#include <string>

#include "graft/export.h"

namespace graft::llm {

/// A mistake in what the user gave (a file, a line, a flag), or a machine that cannot go on. The
/// message is one line that names the place and the fix; the program prints it and exits with 1.
class GRAFT_EXPORT UserError : public std::runtime_error {
 public:
  explicit UserError(const std::string& message) : std::runtime_error(message) {}
};

/// Flags that cannot be meant together, or a value that one cannot have: the program exits with 2.
class GRAFT_EXPORT UsageError : public UserError {
 public:
  using UserError::UserError;
};

}  // namespace graft::llm
