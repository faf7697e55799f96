#include "graft/mlx/softmax.h"

#include <cmath>
#include <string>

#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/metal_softmax.h"
#include "graft/mlx/detail/primitive.h"
#include "graft/mlx/detail/views.h"
#include "graft/softmax.h"

namespace graft::mlx {
namespace {

constexpr const char* kOp = "softmax";

Support supported(const mx::array& x, float scale, mx::Stream s) {
  if (auto support = detail::allowed(s); !support) return support;
  if (auto support = detail::dtypes_known({x}, 1); !support) return support;
  const TensorView matrix = detail::rows_only(x.shape(), x.dtype());
  return graft::supports(SoftmaxForward{matrix, scale, matrix});
}

mx::array composed_softmax(const mx::array& x, float scale, mx::Stream s) {
  if (scale == 1.0f) return mx::softmax(x, -1, true, s);
  // The factor makes the product float32, as it is in the kernels.
  const auto z = mx::multiply(x, mx::array(scale), s);
  return mx::astype(mx::softmax(z, -1, true, s), x.dtype(), s);
}

}  // namespace

mx::array softmax(const mx::array& x, float scale, mx::StreamOrDevice device) {
  if (x.ndim() == 0) detail::reject(kOp, "x", "at least one dimension", "a scalar");
  detail::expect_floating(kOp, "x", x);
  if (!(std::isfinite(scale) && scale > 0.0f)) {
    detail::reject(kOp, "scale", "a positive number", std::to_string(scale));
  }
  const mx::Stream s = mx::to_stream(device);
  const bool metal = detail::on_metal(s);
  const Support support = metal ? detail::softmax_on_metal(x) : supported(x, scale, s);
  if (metal && support) {
    const auto composed = [scale, s](const detail::Arrays& in) {
      return detail::Arrays{composed_softmax(in[0], scale, s)};
    };
    return detail::metal_softmax(x, scale, composed, {kOp}, s);
  }
  // Elsewhere composed whatever the answer is, until there is a kernel to answer yes.
  return detail::counted(composed_softmax(x, scale, s), {kOp}, Pass::kForward, support.reason, s);
}

}  // namespace graft::mlx
