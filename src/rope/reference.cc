#include "rope/reference.h"

#include "backend/element.h"
#include "backend/rotary_reference.h"

namespace graft::reference {

void rope(const Rope& params) {
  const ConstTensorView& x = params.x;
  const TensorView& y = params.y;
  for (std::int64_t b = 0; b < x.dim(0); ++b) {
    for (std::int64_t t = 0; t < x.dim(1); ++t) {
      for (std::int64_t h = 0; h < x.dim(2); ++h) {
        std::vector<double> row;
        for (std::int64_t e = 0; e < x.dim(3); ++e) {
          row.push_back(load_element(
              x, b * x.stride(0) + t * x.stride(1) + h * x.stride(2) + e * x.stride(3)));
        }
        turn(row, params.rotary, params.rotary.position + t, params.inverse);
        for (std::int64_t e = 0; e < x.dim(3); ++e) {
          store_element(y, b * y.stride(0) + t * y.stride(1) + h * y.stride(2) + e * y.stride(3),
                        static_cast<float>(row[static_cast<std::size_t>(e)]));
        }
      }
    }
  }
}

}  // namespace graft::reference
