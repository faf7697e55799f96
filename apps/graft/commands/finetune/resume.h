#pragma once

#include <optional>

#include "apps/graft/commands/finetune/flags.h"
#include "apps/graft/user_error.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/train/checkpoint.h"

namespace graft::app {

/// The checkpoint that --resume goes on from, whose flags fill in those not given. Throws UserError
/// if there is none, or a given flag contradicts it.
FoundCheckpoint checkpoint_to_resume(FinetuneFlags& flags);

/// Throws UserError if a new run would write over one in --adapter-path that was interrupted.
void refuse_interrupted_run(const FinetuneFlags& flags);

/// What the losses depend on besides the flags; `model` is its fingerprint.
RunInputs inputs_of(const std::string& model, const DataSplits& data);

/// Throws UserError if the model or the data are no longer those of the checkpoint; says so on
/// stderr if only the machine is another.
void check_same_inputs(const FinetuneFlags& flags, const RunInputs& now, const RunInputs& before);

}  // namespace graft::app
