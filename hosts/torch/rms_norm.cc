#include "graft/rms_norm.h"

#include <tuple>

#include "place.h"

// The ops graft::rms_norm_*: of x, or of x + residual.

namespace graft::pytorch {
namespace {

using Maybe = std::optional<Tensor>;

// The kernels always scale: by ones where no weight is given.
Tensor ones_or(const Maybe& weight, const Tensor& x, std::int64_t features) {
  if (weight) return *weight;
  Tensor ones = new_floats(x, {features});
  return torch::stable::fill_(ones, 1.0);
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_forward(const Tensor& x, const Maybe& residual,
                                                    const Maybe& weight, double eps) {
  return guarded([&] {
    const Rows rows(x, "x", true);
    const Dense scale(ones_or(weight, x, rows.features()), "weight");
    RmsNormForward params;
    params.x = rows.view();
    params.weight = scale.view();
    params.eps = static_cast<float>(eps);
    const Tensor y = new_rows(x, rows.features());
    params.y = matrix(y, rows.count(), rows.features());
    const Tensor sum = residual ? new_rows(x, rows.features()) : no_tensor();
    std::optional<Rows> residual_rows;
    if (residual) {
      residual_rows.emplace(*residual, "residual", true);
      params.residual = residual_rows->view();
      params.sum = matrix(sum, rows.count(), rows.features());
    }
    const Tensor rstd = new_floats(x, {rows.count()});
    params.rstd = vector(rstd);
    rms_norm_forward(context_of(x), params);
    return std::tuple(y, sum, rstd);
  });
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& s, const Maybe& weight,
                                             const Tensor& rstd, const Maybe& dsum, double eps,
                                             bool need_ds, bool need_dweight) {
  return guarded([&] {
    const Rows dy_rows(dy, "dy", true);
    const Rows s_rows(s, "s", true);
    const Dense scale(ones_or(weight, s, s_rows.features()), "weight");
    const Dense saved(rstd, "rstd");
    RmsNormBackward params;
    params.dy = dy_rows.view();
    params.s = s_rows.view();
    params.weight = scale.view();
    params.eps = static_cast<float>(eps);
    params.rstd = saved.view();
    std::optional<Rows> dsum_rows;
    if (dsum) params.dsum = dsum_rows.emplace(*dsum, "dsum", true).view();
    const Tensor ds = need_ds ? new_rows(s, s_rows.features()) : no_tensor();
    const Tensor dweight = need_dweight ? new_floats(s, {s_rows.features()}) : no_tensor();
    if (need_ds) params.ds = matrix(ds, s_rows.count(), s_rows.features());
    if (need_dweight) params.dweight = vector(dweight);
    rms_norm_backward(context_of(s), params);
    return std::tuple(ds, dweight);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(graft, GRAFT_TORCH_DEVICE, m) {
  m.impl("rms_norm_forward", TORCH_BOX(&rms_norm_forward));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}

}  // namespace graft::pytorch
