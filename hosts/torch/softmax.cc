#include "graft/softmax.h"

#include "place.h"

// The ops graft::softmax_*.

namespace graft::pytorch {
namespace {

Tensor softmax_forward(const Tensor& x, double scale) {
  return guarded([&] {
    const Rows rows(x, "x", true);
    const Tensor y = new_rows(x, rows.features());
    softmax_forward(context_of(x), {.x = rows.view(),
                                    .scale = static_cast<float>(scale),
                                    .y = matrix(y, rows.count(), rows.features())});
    return y;
  });
}

Tensor softmax_backward(const Tensor& dy, const Tensor& y, double scale) {
  return guarded([&] {
    const Rows dy_rows(dy, "dy", true);
    const Rows y_rows(y, "y", true);
    const Tensor dx = new_rows(y, y_rows.features());
    softmax_backward(context_of(y), {.dy = dy_rows.view(),
                                     .y = y_rows.view(),
                                     .scale = static_cast<float>(scale),
                                     .dx = matrix(dx, y_rows.count(), y_rows.features())});
    return dx;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(graft, GRAFT_TORCH_DEVICE, m) {
  m.impl("softmax_forward", TORCH_BOX(&softmax_forward));
  m.impl("softmax_backward", TORCH_BOX(&softmax_backward));
}

}  // namespace graft::pytorch
