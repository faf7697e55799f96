#pragma once

namespace graft::app {

/// Makes malloc keep what is freed. Every step allocates and frees the same activations; given back
/// to the system each time, they would be mapped and zeroed anew (in a profile without this,
/// zeroing pages alone took 12 % of the samples). Call it before any thread starts. Does nothing
/// where malloc has no such settings.
void keep_freed_memory();

/// Gives back to the system what malloc has kept until now.
void return_freed_memory();

/// Makes MLX wait for the operations under way before it allots memory to more than a few others.
/// By itself it goes on to some fifty operations ahead of the one that runs, several layers of a
/// model, and cannot use again what those in between will free. Nor does it then keep freed
/// buffers for requests of their own size: malloc does that for any size.
void allot_memory_late();

}  // namespace graft::app
