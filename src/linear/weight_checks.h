#pragma once

#include "checks.h"
#include "graft/packed_weight.h"
#include "product/cpu/product.h"

// Checks that the operations on a base weight share.

namespace graft {

/// A weight is given, lies on `device`, and if packed, serves `direction` on the instruction set in
/// use.
void check_weight(const Check& check, const BaseWeight& weight, Device device,
                  cpu::Direction direction);

/// An output whose rows are written whole: dense rows, on `device`.
void check_rows_output(const Check& check, const char* tensor, const TensorView& view,
                       Device device);

Support weight_on_cpu(const BaseWeight& weight);

}  // namespace graft
