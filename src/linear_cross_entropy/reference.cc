#include "linear_cross_entropy/reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/element.h"

namespace graft::reference {

void linear_cross_entropy(const LinearCrossEntropy& params) {
  const ConstTensorView& w = params.weight.view();
  const std::int64_t features = w.dim(1), vocabulary = w.dim(0);
  std::vector<double> p(static_cast<std::size_t>(vocabulary));
  for (std::int64_t m = 0; m < params.x.dim(0); ++m) {
    const std::int32_t target =
        params.targets.data_as<std::int32_t>()[m * params.targets.stride(0)];
    const bool ignored = target == params.ignore_index;
    double loss = 0;
    if (!ignored) {
      for (std::int64_t v = 0; v < vocabulary; ++v) {
        double z = 0;
        for (std::int64_t k = 0; k < features; ++k) {
          z += static_cast<double>(load_element(params.x, m, k)) * load_element(w, v, k);
        }
        p[static_cast<std::size_t>(v)] = z;
      }
      const double target_logit = p[static_cast<std::size_t>(target)];
      const double max = *std::max_element(p.begin(), p.end());
      double sum = 0;
      for (double& z : p) sum += z = std::exp(z - max);
      for (double& z : p) z /= sum;
      p[static_cast<std::size_t>(target)] -= 1;
      loss = max + std::log(sum) - target_logit;
    }
    store_element(params.losses, m * params.losses.stride(0), static_cast<float>(loss));
    if (!params.dx.present()) continue;
    for (std::int64_t k = 0; k < features; ++k) {
      double sum = 0;
      for (std::int64_t v = 0; v < vocabulary && !ignored; ++v) {
        sum += p[static_cast<std::size_t>(v)] * load_element(w, v, k);
      }
      store_element(params.dx, m, k, static_cast<float>(sum));
    }
  }
}

}  // namespace graft::reference
