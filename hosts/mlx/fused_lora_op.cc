#include "graft/mlx/fused_lora_op.h"

#include <utility>

#include "graft/mlx/detail/views.h"
#include "graft/mlx/lora.h"

namespace graft::mlx {

FusedLoRAOp::FusedLoRAOp(mx::array a, mx::array b, float scaling)
    : a_(std::move(a)), b_(std::move(b)), scaling_(scaling) {
  detail::expect_matrix("lora_delta", "a", a_);
  detail::expect_matrix("lora_delta", "b", b_);
  detail::expect_shape("lora_delta", "b", b_, {a_.shape(1), b_.shape(1)});
}

mx::array FusedLoRAOp::operator()(const mx::array& x, mx::StreamOrDevice s) const {
  return lora_forward_fused(x, a_, b_, scaling_, s);
}

}  // namespace graft::mlx
