#pragma once

#include <vector>

#include "benchmarks/graft_bench/blas.h"
#include "benchmarks/graft_bench/problem.h"
#include "benchmarks/graft_bench/timing.h"

namespace graft::bench {

/// @{
/// Names of candidates; the composed ones of MLX are named kComposed and then their order of ops.
inline constexpr const char* kCore = "core";      ///< Graft's core, called directly.
inline constexpr const char* kBase = "base";      ///< The core's `linear`: lora_linear's base.
inline constexpr const char* kEval = "eval";      ///< Graft through MLX's eval.
inline constexpr const char* kBlas = "blas";      ///< Products through the BLAS, called directly.
inline constexpr const char* kComposed = "mlx ";  ///< MLX's own ops.
/// @}

/// Every way to compute `item` on `sets`, which must outlive them.
std::vector<Candidate> candidates_for(const Case& item, const std::vector<Tensors>& sets,
                                      const Blas& blas);

}  // namespace graft::bench
