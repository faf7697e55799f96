#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "graft/llm/files/atomic_file.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/llm/train/loop.h"
#include "graft/llm/train/trainer.h"

namespace graft::llm {

/// What the losses of a run depend on besides its flags: fingerprints, and what computes.
struct RunInputs {
  std::string model;
  std::string train;
  std::string valid;    ///< Empty if there is no validation data.
  std::string machine;  ///< Version and instruction set: others round otherwise.
};

/// Where in the data a run is, for whoever reads the file: it follows from the iteration, and the
/// order of an epoch's batches from the seed and the epoch.
struct DataPosition {
  std::uint64_t seed = 0;
  std::int64_t batches_per_epoch = 0;
  std::int64_t epoch = 0;
  std::int64_t position = 0;  ///< Batches of this epoch that have been trained on.
};

/// All that a run needs to go on as if it had never been interrupted. There is no other random
/// state: the shuffle and dropout are functions of what stands here.
struct Checkpoint {
  nlohmann::json flags;  ///< By name, as the command keeps them.
  RunInputs inputs;
  DataPosition data;
  LoopState loop;
  TrainerState trainer;
  std::string metrics;  ///< metrics.jsonl up to here.
};

/// Writes `checkpoints/<iteration>` below `folder`, in one step: the adapter's files, which PEFT
/// loads from there, optimizer.safetensors, metrics.jsonl, and state.json with the rest and a
/// fingerprint of each file. Throws UserError.
void save_checkpoint(const std::string& folder, const std::vector<FileContents>& adapter,
                     const Checkpoint& checkpoint);

/// A checkpoint that was found whole. Its flags decide which model its adapter is for, so they come
/// first, and the trainer's state in a second reading.
struct FoundCheckpoint {
  std::string path;
  Checkpoint checkpoint;  ///< Without `trainer.pairs`, the moments and the pending gradients.

  /// The trainer's state, with the pairs of the adapter at `path`. Throws UserError.
  TrainerState trainer_state(std::vector<LoraPair> pairs) const;
};

/// The whole checkpoint of the highest iteration below `folder`, if there is any. Each that is
/// damaged and so passed over adds a line to `damaged`. Throws UserError if none is
/// whole, but one only of another version of graft.
std::optional<FoundCheckpoint> last_checkpoint(const std::string& folder,
                                               std::vector<std::string>& damaged);

/// Throws UserError if a file of the checkpoint at `path` is not as it was written.
void check_whole(const std::string& path);

/// The folder that holds all checkpoints of the run in `folder`, and that of one of them.
std::string checkpoints_folder(const std::string& folder);
std::string checkpoint_path(const std::string& folder, int iteration);

}  // namespace graft::llm
