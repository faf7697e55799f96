#pragma once

#include <string>
#include <vector>

#include "apps/graft/commands/bench_flags.h"

namespace graft::app {

/// The flags of `graft bench lora`, with their defaults.
struct BenchLoraFlags : MeasurementFlags {
  std::string dtype = "f32";
  float dropout = 0.1f;
  std::vector<std::string> filter;
  std::string svg;
};

/// Measures fused LoRA beside other ways to compute it: what `graft bench lora` runs.
/// Throws UserError.
void run_bench_lora(const BenchLoraFlags& flags);

}  // namespace graft::app
