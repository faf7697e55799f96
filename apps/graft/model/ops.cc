#include "apps/graft/model/ops.h"

#include "mlx/fast.h"
#include "mlx/ops.h"

namespace graft::app::ops {

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  return mx::fast::rms_norm(x, weight, eps);
}

mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, float scale,
                    float rope_theta) {
  const auto turn = [&](const mx::array& heads) {
    return mx::fast::rope(mx::swapaxes(heads, 1, 2), heads.shape(-1), false, rope_theta, 1.0f, 0);
  };
  const mx::array y = mx::fast::scaled_dot_product_attention(
      turn(q), turn(k), mx::swapaxes(v, 1, 2), scale, "causal");
  return mx::swapaxes(y, 1, 2);
}

}  // namespace graft::app::ops
