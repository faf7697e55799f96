#pragma once

#include <cstdint>

#include "graft/export.h"

namespace graft::llm {

/// Makes malloc keep what is freed. Every step allocates and frees the same activations; given back
/// to the system each time, they would be mapped and zeroed anew (in a profile without this,
/// zeroing pages alone took 12 % of the samples). Call it before any thread starts. Does nothing
/// where malloc has no such settings.
GRAFT_EXPORT void keep_freed_memory();

/// Gives back to the system what malloc has kept until now.
GRAFT_EXPORT void return_freed_memory();

/// Makes MLX wait, once it holds `bytes` more than now, for operations under way before it allots
/// memory to others. By itself it goes on to some fifty operations ahead of the one that runs,
/// several layers of a model, and cannot use again what those in between will free. Waiting is slow
/// (under a bound of 0 training took 1.6 times as long), so `bytes` is best what is needed without
/// running ahead: then only the fullest moment waits. MLX also keeps no freed buffers from now on
/// for requests of their own size, as malloc does that for any size.
GRAFT_EXPORT void bound_run_ahead(std::int64_t bytes);

}  // namespace graft::llm
