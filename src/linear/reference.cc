#include "linear/reference.h"

#include "backend/element.h"

namespace graft::reference {

void linear_forward(const LinearForward& params) {
  const ConstTensorView& w = params.weight.view();
  for (std::int64_t m = 0; m < params.x.dim(0); ++m) {
    for (std::int64_t n = 0; n < w.dim(0); ++n) {
      double sum = params.bias.present() ? load_element(params.bias, n * params.bias.stride(0)) : 0;
      for (std::int64_t k = 0; k < w.dim(1); ++k) {
        sum += static_cast<double>(load_element(params.x, m, k)) * load_element(w, n, k);
      }
      store_element(params.y, m, n, static_cast<float>(sum));
    }
  }
}

void linear_backward(const LinearBackward& params) {
  const ConstTensorView& w = params.weight.view();
  for (std::int64_t m = 0; m < params.dy.dim(0); ++m) {
    for (std::int64_t k = 0; k < w.dim(1); ++k) {
      double sum = 0;
      for (std::int64_t n = 0; n < w.dim(0); ++n) {
        sum += static_cast<double>(load_element(params.dy, m, n)) * load_element(w, n, k);
      }
      store_element(params.dx, m, k, static_cast<float>(sum));
    }
  }
}

}  // namespace graft::reference
