#pragma once

#include <cstdint>

#include "apps/graft/commands/finetune/flags.h"
#include "apps/graft/user_error.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/llm/model/llama_config.h"

namespace graft::app {

/// A run that is about to begin: all that it holds from its first iteration to its last is there.
struct RunToFit {
  const FinetuneFlags& flags;
  const LlamaConfig& config;
  const AdapterLayout& layout;
  const DataSplits& data;
  std::int32_t pad_token = 0;
  int first_iteration = 0;  ///< Iterations done before.
};

/// Estimates the peak memory of the run in bytes. Throws UserError if it is more than there is; the
/// message names the flags with which the run would fit.
std::int64_t check_memory(const RunToFit& run);

/// Between two iterations: gives back what malloc keeps if the process has grown past what was
/// expected. Batches of many lengths leave holes that fit no later one, and they add up.
void return_memory_above(std::int64_t expected);

}  // namespace graft::app
