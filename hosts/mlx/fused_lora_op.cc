#include "graft/mlx/fused_lora_op.h"

#include <utility>

#include "graft/mlx/detail/lora_primitive.h"
#include "graft/mlx/lora.h"

namespace graft::mlx {

FusedLoRAOp::FusedLoRAOp(mx::array a, mx::array b, float scaling)
    : a_(std::move(a)), b_(std::move(b)), scaling_(scaling) {
  detail::expect_pair("lora_delta", a_, b_);
}

mx::array FusedLoRAOp::operator()(const mx::array& x, mx::StreamOrDevice s) const {
  return lora_forward_fused(x, a_, b_, scaling_, s);
}

}  // namespace graft::mlx
