#pragma once

#include <stdexcept>
#include <string>

namespace graft::mlx::testing {

// What std::invalid_argument says that `call` throws.
template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no std::invalid_argument";
}

}  // namespace graft::mlx::testing
