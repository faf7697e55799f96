#pragma once

#include <mlx/mlx.h>

#include "graft/export.h"

namespace graft::mlx {

namespace mx = ::mlx::core;

/// One adapter's contribution as a callable, made once and applied often:
/// op(x) = scaling·(x·A)·B. See lora_forward_fused.
class GRAFT_EXPORT FusedLoRAOp {
 public:
  /// A (in_features, rank), B (rank, out_features). Throws std::invalid_argument.
  FusedLoRAOp(mx::array a, mx::array b, float scaling);

  /// x (..., in_features); the result is (..., out_features).
  mx::array operator()(const mx::array& x, mx::StreamOrDevice s = {}) const;

  const mx::array& a() const { return a_; }   ///< (in_features, rank).
  const mx::array& b() const { return b_; }   ///< (rank, out_features).
  float scaling() const { return scaling_; }  ///< Multiplies A·B.
  int rank() const { return a_.shape(1); }    ///< Columns of A.

 private:
  mx::array a_;
  mx::array b_;
  float scaling_;
};

}  // namespace graft::mlx
