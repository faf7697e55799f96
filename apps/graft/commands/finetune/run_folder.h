#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/graft/commands/finetune/flags.h"
#include "apps/graft/commands/finetune/run_record.h"
#include "apps/graft/user_error.h"
#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/data/batches.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/train/checkpoint.h"
#include "graft/llm/train/loop.h"
#include "graft/llm/train/trainer.h"

namespace graft::app {

/// What a run writes into --adapter-path: its adapter, metrics.jsonl, loss.svg and checkpoints. All
/// members throw UserError.
class RunFolder {
 public:
  /// The folder must exist and be locked. What it holds of a writer that was killed is removed, and
  /// for a new run what it holds of one that is finished. `metrics` are those of a run that goes
  /// on. All references must outlive it.
  RunFolder(const FinetuneFlags& flags, const AdapterLayout& layout, const Batches& batches,
            RunInputs inputs, const std::string& metrics);

  RunRecord& record() { return record_; }

  /// A checkpoint, whose path it gives, and its adapter.
  std::string save(const Trainer& trainer, const LoopState& loop);

  /// The adapter of the checkpoint that a run goes on from, once more: the run may have ended
  /// between the two.
  void resume(const Trainer& trainer);

  /// Puts the adapter of a checkpoint in place of the last one, and gives its pairs; nothing if
  /// that checkpoint is no longer there or damaged.
  std::optional<std::vector<LoraPair>> go_back_to(int iteration, const LlamaConfig& model);

  /// What is left of the run if it fails, to add to the reason.
  std::string what_is_kept(bool can_go_on) const;

 private:
  ModelIdentity base() const { return {flags_.model.model, inputs_.model}; }
  void publish(const std::vector<FileContents>& adapter) const;

  const FinetuneFlags& flags_;
  const AdapterLayout& layout_;
  const Batches& batches_;
  RunInputs inputs_;
  RunRecord record_;
  int saved_ = -1;
};

}  // namespace graft::app
