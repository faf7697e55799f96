#include "layer_norm/reference.h"

#include <cmath>
#include <vector>

#include "backend/element.h"

namespace graft::reference {

namespace {

struct Moments {
  double mean, rstd;
};

Moments moments_of(const ConstTensorView& x, std::int64_t row, double eps) {
  const auto count = static_cast<double>(x.dim(1));
  double sum = 0;
  for (std::int64_t n = 0; n < x.dim(1); ++n) sum += double{load_element(x, row, n)};
  const double mean = sum / count;
  double squares = 0;
  for (std::int64_t n = 0; n < x.dim(1); ++n) {
    const double deviation = double{load_element(x, row, n)} - mean;
    squares += deviation * deviation;
  }
  return {mean, 1 / std::sqrt(squares / count + eps)};
}

// Element n of a weight or a bias, or what stands for it where there is none.
double element_or(const ConstTensorView& vector, std::int64_t n, double otherwise) {
  return vector.present() ? double{load_element(vector, n * vector.stride(0))} : otherwise;
}

}  // namespace

void layer_norm_forward(const LayerNormForward& params) {
  for (std::int64_t m = 0; m < params.x.dim(0); ++m) {
    const auto [mean, rstd] = moments_of(params.x, m, double{params.eps});
    if (params.mean.present()) store_element(params.mean, m, static_cast<float>(mean));
    if (params.rstd.present()) store_element(params.rstd, m, static_cast<float>(rstd));
    for (std::int64_t n = 0; n < params.x.dim(1); ++n) {
      const double normal = (double{load_element(params.x, m, n)} - mean) * rstd;
      const double y = normal * element_or(params.weight, n, 1) + element_or(params.bias, n, 0);
      store_element(params.y, m, n, static_cast<float>(y));
    }
  }
}

void layer_norm_backward(const LayerNormBackward& params) {
  const std::int64_t count = params.dy.dim(1);
  std::vector<double> dweight(static_cast<std::size_t>(count)), dbias(dweight);
  for (std::int64_t m = 0; m < params.dy.dim(0); ++m) {
    const auto [mean, rstd] = moments_of(params.x, m, double{params.eps});
    double mean_g = 0, mean_gx = 0;  // of g, and of g ∘ x̂
    for (std::int64_t n = 0; n < count; ++n) {
      const double dy = load_element(params.dy, m, n);
      const double normal = (double{load_element(params.x, m, n)} - mean) * rstd;
      const double g = dy * element_or(params.weight, n, 1);
      mean_g += g / static_cast<double>(count);
      mean_gx += g * normal / static_cast<double>(count);
      dweight[static_cast<std::size_t>(n)] += dy * normal;
      dbias[static_cast<std::size_t>(n)] += dy;
    }
    for (std::int64_t n = 0; n < count && params.dx.present(); ++n) {
      const double normal = (double{load_element(params.x, m, n)} - mean) * rstd;
      const double g = double{load_element(params.dy, m, n)} * element_or(params.weight, n, 1);
      const double dx = rstd * (g - mean_g - normal * mean_gx);
      store_element(params.dx, m, n, static_cast<float>(dx));
    }
  }
  for (std::int64_t n = 0; n < count; ++n) {
    const auto i = static_cast<std::size_t>(n);
    if (params.dweight.present()) store_element(params.dweight, n, static_cast<float>(dweight[i]));
    if (params.dbias.present()) store_element(params.dbias, n, static_cast<float>(dbias[i]));
  }
}

}  // namespace graft::reference
