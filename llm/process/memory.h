#pragma once

#include <cstdint>

namespace graft::llm {

/// The most memory this process has had resident so far, in bytes.
std::int64_t peak_memory_bytes();

/// What it has resident now, in bytes.
std::int64_t resident_memory_bytes();

}  // namespace graft::llm
