#pragma once

#include <string>
#include <vector>

namespace graft::app {

/// The flags of `graft bench lora`, with their defaults.
struct BenchFlags {
  std::string dtype = "f32";
  float dropout = 0.1f;
  int threads = 0;
  int rounds = 7;
  double block_ms = 8.0;
  double rotate_mb = -1.0;  // below zero: usual_rotate_bytes()
  bool quick = false;
  std::vector<std::string> filter;
  std::string csv;
  std::string svg;
};

/// Measures fused LoRA beside other ways to compute it: what `graft bench lora` runs.
/// Throws UserError.
void run_bench_lora(const BenchFlags& flags);

}  // namespace graft::app
