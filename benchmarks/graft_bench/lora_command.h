#pragma once

#include <string>
#include <vector>

#include "benchmarks/graft_bench/measurement_flags.h"

namespace graft::bench {

/// The flags of `graft-bench lora`, with their defaults.
struct LoraFlags : MeasurementFlags {
  std::string dtype = "f32";
  float dropout = 0.1f;
  std::vector<std::string> filter, without;
  std::string svg;
};

/// Measures fused LoRA beside other ways to compute it: what `graft-bench lora` runs.
/// Throws llm::UserError.
void run_lora(const LoraFlags& flags);

}  // namespace graft::bench
