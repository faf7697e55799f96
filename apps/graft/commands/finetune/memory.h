#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/graft/commands/finetune/flags.h"
#include "apps/graft/user_error.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/train/trainer.h"

namespace graft::app {

/// A run that is about to begin: all that it holds from its first iteration to its last is there.
struct RunToFit {
  const FinetuneFlags& flags;
  const Trainer& trainer;
  const DataSplits& data;
  std::int32_t pad_token = 0;
};

/// Estimates the peak memory of the run in bytes. Throws UserError if it is more than there is; the
/// message names flags that would help.
std::int64_t check_memory(const RunToFit& run);

/// What would make a run need less memory.
struct Remedy {
  std::string flags;      ///< "--grad-checkpoint".
  std::int64_t peak = 0;  ///< Bytes that the run would need with them.
};

/// In the order in which to try them.
struct Remedies {
  std::vector<Remedy> each;   ///< Alone.
  std::int64_t together = 0;  ///< Bytes with all of them.
};

/// What helps a run that may take `most` bytes: any remedy that is enough alone; else all of them,
/// if they are enough together. `resume`: its flags have to stay as they are, but for these.
std::string advice(const Remedies& remedies, std::int64_t most, bool resume);

/// Between two iterations: gives back what malloc keeps if the process has grown past what was
/// expected. Batches of many lengths leave holes that fit no later one, and they add up.
void return_memory_above(std::int64_t expected);

}  // namespace graft::app
