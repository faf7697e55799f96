#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/graft/commands/common.h"
#include "apps/graft/model/adapter_layout.h"
#include "apps/graft/train/adamw.h"
#include "apps/graft/train/loop.h"

namespace graft::app {

/// The flags of `graft finetune`, with their defaults.
struct FinetuneFlags {
  ModelFlags model;
  std::string data;
  std::string adapter_path = "adapters";
  std::string init_adapter;
  std::string record_batches;
  std::vector<std::string> target_modules;
  std::string lr_schedule = "constant";
  int num_layers = -1;
  AdapterOptions adapter;
  AdamWOptions adamw;
  LoopOptions loop;
  double learning_rate = 2e-4;
  double max_grad_norm = 1.0;
  int warmup = 0;
  int batch_size = 4;
  int val_batches = 25;
  std::int64_t max_seq_length = 2048;
  std::uint64_t seed = 0;
  bool mask_prompt = false;
  bool require_fused = false;
};

/// Trains an adapter on the data and saves it with its metrics: what `graft finetune` runs.
/// Throws UserError.
void run_finetune(const FinetuneFlags& flags);

}  // namespace graft::app
