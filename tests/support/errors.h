#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "graft/error.h"

namespace graft::test {

/// What the Error says that `call` throws, of this kind if one is given; "no error" if it throws
/// none.
template <class Call>
std::string error_of(const Call& call, std::optional<ErrorCode> code = std::nullopt) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code.value_or(error.code())) << error.what();
    return error.what();
  }
  return "no error";
}

}  // namespace graft::test
