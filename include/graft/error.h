#pragma once

#include <stdexcept>
#include <string>

#include "graft/export.h"

namespace graft {

/// What kind of thing went wrong. The message says which tensor, file or line, and what to do.
enum class ErrorCode {
  kInvalidArgument,  ///< A shape, stride, dtype, device or value that the function does not take.
  kUnsupported,  ///< Well-formed, but no kernel here does it; `supports()` gives the same reason.
  kOutOfMemory,  ///< Scratch or packed weights could not be allocated, or a thread not started.
  kDevice,       ///< A device or its driver failed; the message has what it said.
};

/// The one exception type the library throws. The message opens with the operation in brackets,
/// for example `[lora_linear] b: expected (8, 512), got (16, 512)`.
class GRAFT_EXPORT Error : public std::runtime_error {
 public:
  /// An error of kind `code`; `message` is what `what()` returns.
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  /// What kind of thing went wrong.
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace graft
