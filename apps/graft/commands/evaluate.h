#pragma once

#include <cstdint>
#include <string>

#include "apps/graft/commands/adapter_choice.h"
#include "apps/graft/commands/common.h"

namespace graft::app {

/// The flags of `graft evaluate`, with their defaults.
struct EvaluateFlags {
  ModelFlags model;
  AdapterFlags adapter;
  bool compare_base = false;
  std::string data;
  std::string split = "test";
  bool split_given = false;
  std::int64_t max_seq_length = 2048;
  bool mask_prompt = false;
  bool parse_special = false;
  int max_tokens = 64;
  int batch_size = 64;
  int show = 5;
  bool json = false;
};

/// Loss, perplexity and exact matches of a model on data: what `graft evaluate` runs.
/// Throws UserError.
void run_evaluate(const EvaluateFlags& flags);

}  // namespace graft::app
