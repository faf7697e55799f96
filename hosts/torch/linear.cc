#include "graft/linear.h"

#include "place.h"

// The ops graft::linear_*.

namespace graft::pytorch {
namespace {

Tensor linear_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      bool pack) {
  return guarded([&] {
    const Rows rows(x, "x");
    LinearForward params;
    params.x = rows.view();
    params.weight = weight_of(weight, rows.view().dtype(), pack, false);
    params.bias = view_of(bias, "bias");
    const std::int64_t out_features = params.weight.out_features();
    const Tensor y = new_rows(x, out_features);
    params.y = matrix(y, rows.count(), out_features);
    linear_forward(context_of(x), params);
    return y;
  });
}

Tensor linear_backward(const Tensor& dy, const Tensor& weight, bool pack) {
  return guarded([&] {
    const Rows rows(dy, "dy");
    LinearBackward params;
    params.dy = rows.view();
    params.weight = weight_of(weight, rows.view().dtype(), pack, true);
    const std::int64_t in_features = params.weight.in_features();
    const Tensor dx = new_rows(dy, in_features);
    params.dx = matrix(dx, rows.count(), in_features);
    linear_backward(context_of(dy), params);
    return dx;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(graft, GRAFT_TORCH_DEVICE, m) {
  m.impl("linear_forward", TORCH_BOX(&linear_forward));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
}

}  // namespace graft::pytorch
