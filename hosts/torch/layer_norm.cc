#include "graft/layer_norm.h"

#include <tuple>

#include "place.h"

// The ops graft::layer_norm_*.

namespace graft::pytorch {
namespace {

using Maybe = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& x, const Maybe& weight,
                                                      const Maybe& bias, double eps) {
  return guarded([&] {
    const Rows rows(x, "x", true);
    const Dense scale(weight, "weight");
    const Dense shift(bias, "bias");
    const Tensor y = new_rows(x, rows.features());
    const Tensor mean = new_floats(x, {rows.count()});
    const Tensor rstd = new_floats(x, {rows.count()});
    layer_norm_forward(context_of(x), {.x = rows.view(),
                                       .weight = scale.view(),
                                       .bias = shift.view(),
                                       .eps = static_cast<float>(eps),
                                       .y = matrix(y, rows.count(), rows.features()),
                                       .mean = vector(mean),
                                       .rstd = vector(rstd)});
    return std::tuple(y, mean, rstd);
  });
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dy, const Tensor& x,
                                                       const Maybe& weight, const Tensor& mean,
                                                       const Tensor& rstd, double eps, bool need_dx,
                                                       bool need_dweight, bool need_dbias) {
  return guarded([&] {
    const Rows dy_rows(dy, "dy", true);
    const Rows x_rows(x, "x", true);
    const Dense scale(weight, "weight");
    const Dense saved_mean(mean, "mean");
    const Dense saved_rstd(rstd, "rstd");
    LayerNormBackward params;
    params.dy = dy_rows.view();
    params.x = x_rows.view();
    params.weight = scale.view();
    params.eps = static_cast<float>(eps);
    params.mean = saved_mean.view();
    params.rstd = saved_rstd.view();
    const Tensor dx = need_dx ? new_rows(x, x_rows.features()) : no_tensor();
    const Tensor dweight = need_dweight ? new_floats(x, {x_rows.features()}) : no_tensor();
    const Tensor dbias = need_dbias ? new_floats(x, {x_rows.features()}) : no_tensor();
    if (need_dx) params.dx = matrix(dx, x_rows.count(), x_rows.features());
    if (need_dweight) params.dweight = vector(dweight);
    if (need_dbias) params.dbias = vector(dbias);
    layer_norm_backward(context_of(x), params);
    return std::tuple(dx, dweight, dbias);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(graft, GRAFT_TORCH_DEVICE, m) {
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
}

}  // namespace graft::pytorch
