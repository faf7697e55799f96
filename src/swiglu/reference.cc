#include "swiglu/reference.h"

#include <cmath>

#include "backend/element.h"

namespace graft::reference {

namespace {
double sigmoid(double t) { return 1 / (1 + std::exp(-t)); }
}  // namespace

void swiglu_forward(const SwigluForward& params) {
  for (std::int64_t m = 0; m < params.gate.dim(0); ++m) {
    for (std::int64_t n = 0; n < params.gate.dim(1); ++n) {
      const double gate = load_element(params.gate, m, n);
      const double up = load_element(params.up, m, n);
      store_element(params.y, m, n, static_cast<float>(gate * sigmoid(gate) * up));
    }
  }
}

void swiglu_backward(const SwigluBackward& params) {
  for (std::int64_t m = 0; m < params.gate.dim(0); ++m) {
    for (std::int64_t n = 0; n < params.gate.dim(1); ++n) {
      const double dy = load_element(params.dy, m, n);
      const double gate = load_element(params.gate, m, n);
      const double up = load_element(params.up, m, n);
      const double s = sigmoid(gate);
      if (params.dgate.present()) {
        const double dsilu = s * (1 + gate * (1 - s));
        store_element(params.dgate, m, n, static_cast<float>(dy * up * dsilu));
      }
      if (params.dup.present()) {
        store_element(params.dup, m, n, static_cast<float>(dy * gate * s));
      }
    }
  }
}

}  // namespace graft::reference
