#pragma once

#include <cstdint>
#include <initializer_list>

#include "graft/supports.h"

namespace graft::metal {

inline constexpr int kLanes = 32;  // of a simdgroup

// Yes if it is float32, float16 or bfloat16.
Support is_floating(DType dtype);

// Yes if all of them fit an int.
Support sizes_fit(std::initializer_list<std::int64_t> sizes);

// Yes if it is absent, or row-major without gaps. "No" names the tensor.
Support is_dense(const char* tensor, const ConstTensorView& view);

}  // namespace graft::metal
