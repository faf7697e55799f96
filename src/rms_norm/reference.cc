#include "rms_norm/reference.h"

#include <cmath>
#include <vector>

#include "backend/element.h"

namespace graft::reference {

namespace {

double rstd_of(const ConstTensorView& s, std::int64_t row, double eps) {
  double squares = 0;
  for (std::int64_t n = 0; n < s.dim(1); ++n) {
    const double value = load_element(s, row, n);
    squares += value * value;
  }
  return 1 / std::sqrt(squares / static_cast<double>(s.dim(1)) + eps);
}

double weight_at(const ConstTensorView& weight, std::int64_t n) {
  return load_element(weight, n * weight.stride(0));
}

}  // namespace

void rms_norm_forward(const RmsNormForward& params) {
  for (std::int64_t m = 0; m < params.x.dim(0); ++m) {
    ConstTensorView s = params.x;
    if (params.residual.present()) {
      for (std::int64_t n = 0; n < s.dim(1); ++n) {
        store_element(params.sum, m, n,
                      load_element(params.x, m, n) + load_element(params.residual, m, n));
      }
      s = params.sum;
    }
    const double rstd = rstd_of(s, m, params.eps);
    if (params.rstd.present()) store_element(params.rstd, m, static_cast<float>(rstd));
    for (std::int64_t n = 0; n < s.dim(1); ++n) {
      store_element(params.y, m, n,
                    static_cast<float>(load_element(s, m, n) * rstd * weight_at(params.weight, n)));
    }
  }
}

void rms_norm_backward(const RmsNormBackward& params) {
  const std::int64_t count = params.dy.dim(1);
  std::vector<double> dweight(static_cast<std::size_t>(count));
  for (std::int64_t m = 0; m < params.dy.dim(0); ++m) {
    const double rstd = rstd_of(params.s, m, params.eps);
    double mean = 0;
    for (std::int64_t n = 0; n < count; ++n) {
      const double dy = load_element(params.dy, m, n), s = load_element(params.s, m, n);
      mean += dy * weight_at(params.weight, n) * s / static_cast<double>(count);
      dweight[static_cast<std::size_t>(n)] += dy * s * rstd;
    }
    for (std::int64_t n = 0; n < count && params.ds.present(); ++n) {
      const double dy = load_element(params.dy, m, n), s = load_element(params.s, m, n);
      double ds = rstd * (dy * weight_at(params.weight, n) - s * rstd * rstd * mean);
      if (params.dsum.present()) ds += load_element(params.dsum, m, n);
      store_element(params.ds, m, n, static_cast<float>(ds));
    }
  }
  for (std::int64_t n = 0; n < count && params.dweight.present(); ++n) {
    store_element(params.dweight, n, static_cast<float>(dweight[static_cast<std::size_t>(n)]));
  }
}

}  // namespace graft::reference
