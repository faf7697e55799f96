#pragma once

#include "apps/graft/commands/finetune/flags.h"

namespace graft::app {

/// Trains an adapter on the data and saves it with its metrics and checkpoints: what `graft
/// finetune` runs. Throws UserError, and Interrupted if the user ended it before its time.
void run_finetune(FinetuneFlags flags);

}  // namespace graft::app
