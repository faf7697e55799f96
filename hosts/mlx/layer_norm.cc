#include "graft/mlx/layer_norm.h"

#include <mlx/fast.h>

#include <cmath>
#include <string>

#include "graft/layer_norm.h"
#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/metal_layer_norm.h"
#include "graft/mlx/detail/primitive.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx {
namespace {

using Optional = std::optional<mx::array>;

constexpr const char* kOp = "layer_norm";

void check_affine(const char* name, const Optional& vector, const mx::array& x) {
  if (!vector) return;
  detail::expect_shape(kOp, name, *vector, {x.shape(-1)});
  detail::expect_floating(kOp, name, *vector);
}

Support supported(const mx::array& x, const Optional& weight, const Optional& bias, float eps,
                  mx::Stream s) {
  if (auto support = detail::allowed(s); !support) return support;
  detail::Arrays inputs{x};
  if (weight) inputs.push_back(*weight);
  if (bias) inputs.push_back(*bias);
  if (auto support = detail::dtypes_known(inputs, inputs.size()); !support) return support;
  LayerNormForward params;
  params.x = detail::rows_only(x.shape(), x.dtype());
  if (weight) params.weight = detail::shape_only(weight->dtype(), {x.shape(-1)});
  if (bias) params.bias = detail::shape_only(bias->dtype(), {x.shape(-1)});
  params.eps = eps;
  params.y = detail::rows_only(x.shape(), x.dtype());
  return graft::supports(params);
}

// A weight of a wider dtype than x would make y as wide.
mx::array composed_norm(const detail::LayerNormCall& call, mx::Stream s) {
  const auto y = mx::fast::layer_norm(call.x, call.weight, call.bias, call.eps, s);
  return mx::astype(y, call.x.dtype(), s);
}

}  // namespace

mx::array layer_norm(const mx::array& x, const Optional& weight, const Optional& bias, float eps,
                     mx::StreamOrDevice device) {
  if (x.ndim() == 0) detail::reject(kOp, "x", "at least one dimension", "a scalar");
  detail::expect_floating(kOp, "x", x);
  check_affine("weight", weight, x);
  check_affine("bias", bias, x);
  if (!(std::isfinite(eps) && eps >= 0.0f)) {
    detail::reject(kOp, "eps", "a number of at least 0", std::to_string(eps));
  }
  const mx::Stream s = mx::to_stream(device);
  const detail::LayerNormCall call{x, weight, bias, eps};
  const bool metal = detail::on_metal(s);
  const Support support =
      metal ? detail::layer_norm_on_metal(call) : supported(x, weight, bias, eps, s);
  if (metal && support) {
    const auto composed = [s](const detail::LayerNormCall& c) { return composed_norm(c, s); };
    return detail::metal_layer_norm(call, composed, {kOp}, s);
  }
  // Elsewhere composed whatever the answer is, until there is a kernel to answer yes.
  return detail::counted(composed_norm(call, s), {kOp}, Pass::kForward, support.reason, s);
}

}  // namespace graft::mlx
