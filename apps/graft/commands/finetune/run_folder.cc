#include "apps/graft/commands/finetune/run_folder.h"

#include <fmt/format.h>

#include <utility>

#include "apps/graft/user_error.h"
#include "graft/llm/process/allocator.h"

namespace graft::app {
namespace {

const std::string& cleared(const std::string& folder, bool resume) {
  remove_unfinished_writes(folder);
  if (resume) {
    remove_unfinished_writes(checkpoints_folder(folder));
  } else {
    remove_folder_atomically(checkpoints_folder(folder));
  }
  return folder;
}

}  // namespace

RunFolder::RunFolder(const FinetuneFlags& flags, const AdapterLayout& layout,
                     const Batches& batches, RunInputs inputs, const std::string& metrics)
    : flags_(flags),
      layout_(layout),
      batches_(batches),
      inputs_(std::move(inputs)),
      record_(cleared(flags.adapter_path, flags.resume), "Loss of " + flags.adapter_path, metrics) {
}

std::string RunFolder::save(const Trainer& trainer, const LoopState& loop) {
  return_freed_memory();  // else what is copied here comes on top of an iteration's room
  TrainerState state = trainer.state();
  const std::vector<FileContents> adapter = adapter_files(layout_, state.pairs, base());
  const std::int64_t per_epoch = batches_.per_epoch();
  save_checkpoint(flags_.adapter_path, adapter,
                  {.flags = saved_flags(flags_),
                   .inputs = inputs_,
                   .data = {.seed = flags_.seed,
                            .batches_per_epoch = per_epoch,
                            .epoch = trainer.iteration() / per_epoch,
                            .position = trainer.iteration() % per_epoch},
                   .loop = loop,
                   .trainer = std::move(state),
                   .metrics = record_.metrics()});
  saved_ = trainer.iteration();
  publish(adapter);
  return checkpoint_path(flags_.adapter_path, saved_);
}

void RunFolder::resume(const Trainer& trainer) {
  saved_ = trainer.iteration();
  publish(adapter_files(layout_, trainer.pairs(), base()));
}

std::optional<std::vector<LoraPair>> RunFolder::go_back_to(int iteration,
                                                           const LlamaConfig& model) {
  const std::string checkpoint = checkpoint_path(flags_.adapter_path, iteration);
  std::vector<LoraPair> pairs;
  try {
    check_whole(checkpoint);
    pairs = load_adapter(checkpoint, model).pairs;
  } catch (const UserError&) {
    return std::nullopt;
  }
  publish(adapter_files(layout_, pairs, base()));
  return pairs;
}

std::string RunFolder::what_is_kept(bool can_go_on) const {
  if (saved_ < 0) return "; nothing had been saved yet";
  return fmt::format("; kept: the checkpoint of iteration {} in {}{}", saved_,
                     checkpoints_folder(flags_.adapter_path),
                     can_go_on ? "; then go on with: " + resume_command(flags_) : "");
}

void RunFolder::publish(const std::vector<FileContents>& adapter) const {
  write_files_atomically(flags_.adapter_path, adapter);
  record_.write_plot();
}

}  // namespace graft::app
