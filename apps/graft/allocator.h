#pragma once

namespace graft::app {

/// Makes malloc keep what is freed. Every step allocates and frees the same activations; given back
/// to the system each time, they would be mapped and zeroed anew: 15 % of a training step. Call it
/// before any thread starts. Does nothing where malloc has no such settings.
void keep_freed_memory();

}  // namespace graft::app
