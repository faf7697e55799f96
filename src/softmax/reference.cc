#include "softmax/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/element.h"

namespace graft::reference {

void softmax_forward(const SoftmaxForward& params) {
  const std::int64_t count = params.x.dim(1);
  for (std::int64_t m = 0; m < params.x.dim(0); ++m) {
    const auto z = [&](std::int64_t n) {
      return double{params.scale} * double{load_element(params.x, m, n)};
    };
    double largest = -std::numeric_limits<double>::infinity();
    for (std::int64_t n = 0; n < count; ++n) largest = std::max(largest, z(n));
    double sum = 0;
    for (std::int64_t n = 0; n < count; ++n) sum += std::exp(z(n) - largest);
    for (std::int64_t n = 0; n < count; ++n) {
      store_element(params.y, m, n, static_cast<float>(std::exp(z(n) - largest) / sum));
    }
  }
}

void softmax_backward(const SoftmaxBackward& params) {
  const std::int64_t count = params.dy.dim(1);
  for (std::int64_t m = 0; m < params.dy.dim(0); ++m) {
    double dot = 0;
    for (std::int64_t n = 0; n < count; ++n) {
      dot += double{load_element(params.dy, m, n)} * double{load_element(params.y, m, n)};
    }
    for (std::int64_t n = 0; n < count; ++n) {
      const double dy = load_element(params.dy, m, n), y = load_element(params.y, m, n);
      store_element(params.dx, m, n, static_cast<float>(double{params.scale} * y * (dy - dot)));
    }
  }
}

}  // namespace graft::reference
