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
  LrShape shape = LrShape::kConstant;
  double peak = 0.0;
  int warmup = 0;
  int iters = 0;

  double rate(int iteration) const;  ///< Iterations count from 1.
};

}  // namespace graft::llm
