#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "apps/graft/commands/common.h"
#include "apps/graft/user_error.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/llm/train/loop.h"

namespace graft::app {

/// The flags of `graft finetune`, with their defaults.
struct FinetuneFlags {
  ModelFlags model;
  std::string data;
  std::string adapter_path = "adapters";
  std::string init_adapter;
  std::string resume_adapter_file;
  std::string record_batches;
  std::vector<std::string> target_modules;
  std::string lr_schedule = "constant";
  std::string optimizer = "adamw";
  int num_layers = -1;
  AdapterOptions adapter;
  LoopOptions loop;
  double learning_rate = 2e-4;
  double weight_decay = 0.01;
  double max_grad_norm = 1.0;
  int warmup = 0;
  int batch_size = 4;
  int grad_accumulation_steps = 1;
  int val_batches = 25;
  int test_batches = 500;
  std::int64_t max_seq_length = 2048;
  std::uint64_t seed = 0;
  bool mask_prompt = false;
  bool parse_special = false;
  bool test = false;
  bool grad_checkpoint = false;
  bool require_fused = false;
  bool resume = false;
  bool quiet = false;
  bool json = false;

  std::string program = "graft";  ///< As the user called it.
  std::set<std::string> given;    ///< Names of the flags on the command line or in --config.
};

/// The flags as a checkpoint keeps them, by name.
nlohmann::json saved_flags(const FinetuneFlags& flags);

/// Fills in what the command line left out from the checkpoint at `path`. Throws UserError if a
/// flag that was given would make the losses differ from those of the run that wrote it, or if the
/// checkpoint's make no sense.
void take_saved_flags(FinetuneFlags& flags, const nlohmann::json& saved, const std::string& path);

/// Throws UserError if a flag cannot be kept in a checkpoint, which is JSON: paths may have any
/// bytes, but their text must be UTF-8.
void check_savable(const FinetuneFlags& flags);

/// The command that goes on with the run, for the user's shell.
std::string resume_command(const FinetuneFlags& flags);

}  // namespace graft::app
