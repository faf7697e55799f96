#pragma once

namespace graft::app {

/// Makes malloc keep what is freed. Every step allocates and frees the same activations; given back
/// to the system each time, they would be mapped and zeroed anew (in a profile without this,
/// zeroing pages alone took 12 % of the samples). Call it before any thread starts. Does nothing
/// where malloc has no such settings.
void keep_freed_memory();

}  // namespace graft::app
