#pragma once

#include <string_view>

#include "graft/export.h"

namespace graft::llm {

enum class LrShape { kConstant, kLinear, kCosine };

/// Reads "constant", "linear" or "cosine". Throws UserError.
GRAFT_EXPORT LrShape lr_shape_named(std::string_view name);

/// The learning rate of every iteration: it climbs linearly over the first `warmup` iterations, up
/// to `peak`, and then stays there or falls towards 0, which it would reach one iteration after the
/// last.
struct GRAFT_EXPORT LrSchedule {
  LrShape shape = LrShape::kConstant;  ///< Its course after the warm-up.
  double peak = 0.0;                   ///< The highest rate.
  int warmup = 0;                      ///< Iterations.
  int iters = 0;                       ///< Of the whole run; a constant rate does not ask.

  double rate(int iteration) const;  ///< Iterations count from 1.
};

}  // namespace graft::llm
