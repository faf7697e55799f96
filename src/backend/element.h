#pragma once

#include "backend/bfloat16.h"
#include "backend/float16.h"
#include "graft/tensor_view.h"

// One element at a time, through any strides: for references, packing of rare layouts, and tests.

namespace graft {

inline float load_element(const ConstTensorView& view, std::int64_t offset) {
  switch (view.dtype()) {
    case DType::kBFloat16:
      return from_bfloat16(view.data_as<std::uint16_t>()[offset]);
    case DType::kFloat16:
      return from_float16(view.data_as<std::uint16_t>()[offset]);
    default:
      return view.data_as<float>()[offset];
  }
}

inline float load_element(const ConstTensorView& view, std::int64_t row, std::int64_t col) {
  return load_element(view, row * view.stride(0) + col * view.stride(1));
}

inline void store_element(const TensorView& view, std::int64_t offset, float value) {
  switch (view.dtype()) {
    case DType::kBFloat16:
      view.mutable_data_as<std::uint16_t>()[offset] = to_bfloat16(value);
      break;
    case DType::kFloat16:
      view.mutable_data_as<std::uint16_t>()[offset] = to_float16(value);
      break;
    default:
      view.mutable_data_as<float>()[offset] = value;
  }
}

inline void store_element(const TensorView& view, std::int64_t row, std::int64_t col, float value) {
  store_element(view, row * view.stride(0) + col * view.stride(1), value);
}

}  // namespace graft
