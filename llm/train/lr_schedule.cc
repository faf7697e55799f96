#include "graft/llm/train/lr_schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "graft/llm/user_error.h"

namespace graft::llm {

LrShape lr_shape_named(std::string_view name) {
  if (name == "constant") return LrShape::kConstant;
  if (name == "linear") return LrShape::kLinear;
  if (name == "cosine") return LrShape::kCosine;
  throw UserError(
      fmt::format("learning-rate schedule: expected constant, linear or cosine, got '{}'", name));
}

double LrSchedule::rate(int iteration) const {
  if (iteration <= warmup) return peak * iteration / warmup;
  const double done =
      std::min(1.0, static_cast<double>(iteration - 1 - warmup) / std::max(1, iters - warmup));
  switch (shape) {
    case LrShape::kLinear:
      return peak * (1.0 - done);
    case LrShape::kCosine:
      return peak * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
    case LrShape::kConstant:
      break;
  }
  return peak;
}

}  // namespace graft::llm
