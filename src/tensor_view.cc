#include "graft/tensor_view.h"

#include <utility>

#include "graft/error.h"

namespace graft {

std::size_t size_of(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kInt32 ? 4 : 2;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt32:
      return "int32";
  }
  return "unknown";
}

const char* name_of(DeviceType type) {
  switch (type) {
    case DeviceType::kCpu:
      return "cpu";
    case DeviceType::kCuda:
      return "cuda";
    case DeviceType::kMetal:
      return "metal";
  }
  return "unknown";
}

ConstTensorView::ConstTensorView(const void* data, DType dtype,
                                 std::initializer_list<std::int64_t> shape, Device device)
    : ConstTensorView(data, dtype, std::span<const std::int64_t>(shape.begin(), shape.size()),
                      device) {}

ConstTensorView::ConstTensorView(const void* data, DType dtype, std::span<const std::int64_t> shape,
                                 Device device)
    : ConstTensorView(data, dtype, shape, shape, device) {
  std::int64_t stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    strides_[axis] = stride;
    stride *= shape_[axis];
  }
}

ConstTensorView::ConstTensorView(const void* data, DType dtype, std::span<const std::int64_t> shape,
                                 std::span<const std::int64_t> strides, Device device)
    : data_(data), dtype_(dtype), device_(device) {
  if (shape.size() != strides.size()) {
    throw Error(ErrorCode::kInvalidArgument, "[tensor_view] strides: expected one a dimension");
  }
  if (shape.size() > static_cast<std::size_t>(kMaxRank)) {
    throw Error(ErrorCode::kInvalidArgument, "[tensor_view] shape: expected at most 8 dimensions");
  }
  rank_ = static_cast<int>(shape.size());
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] < 0) {
      throw Error(ErrorCode::kInvalidArgument, "[tensor_view] shape: a dimension is negative");
    }
    shape_[axis] = shape[axis];
    strides_[axis] = strides[axis];
  }
}

std::int64_t ConstTensorView::size() const {
  std::int64_t count = 1;
  for (int axis = 0; axis < rank_; ++axis) count *= dim(axis);
  return count;
}

ConstTensorView ConstTensorView::transposed() const {
  if (rank_ != 2) {
    throw Error(ErrorCode::kInvalidArgument, "[tensor_view] transposed: expected a matrix");
  }
  ConstTensorView view = *this;
  std::swap(view.shape_[0], view.shape_[1]);
  std::swap(view.strides_[0], view.strides_[1]);
  return view;
}

std::string ConstTensorView::shape_string() const {
  std::string text = "(";
  for (int axis = 0; axis < rank_; ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(dim(axis));
  }
  return text + ")";
}

}  // namespace graft
