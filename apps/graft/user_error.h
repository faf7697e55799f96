#pragma once

#include "graft/llm/user_error.h"

namespace graft::app {

/// The program is written in the library's names.
using namespace llm;

}  // namespace graft::app
