#include "checks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdlib>

#include "graft/error.h"

namespace graft {

namespace {

std::string to_string(std::initializer_list<std::int64_t> shape) {
  return ConstTensorView(nullptr, DType::kFloat32, shape).shape_string();
}

std::string to_string(Device device) {
  return std::string(name_of(device.type)) + ":" + std::to_string(device.index);
}

std::string strides_string(const ConstTensorView& view) {
  std::string text = "(";
  for (int axis = 0; axis < view.rank(); ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(view.stride(axis));
  }
  return text + ")";
}

}  // namespace

void Check::fail(ErrorCode code, const std::string& message) const {
  throw Error(code, "[" + std::string(op_) + "] " + message);
}

void Check::rank(const char* tensor, const ConstTensorView& view, int rank) const {
  if (!view.present()) {
    fail(std::string(tensor) + ": expected " + std::to_string(rank) + " dimensions, got no tensor");
  }
  if (view.rank() != rank) {
    fail(std::string(tensor) + ": expected " + std::to_string(rank) + " dimensions, got " +
         view.shape_string());
  }
  // Metal's buffers are the host's: their views have no pointers.
  const bool pointed_to = view.data() != nullptr || view.device().type == DeviceType::kMetal;
  if (!pointed_to && view.size() > 0) {
    fail(std::string(tensor) + ": expected memory for " + view.shape_string() +
         ", got a null pointer");
  }
}

void Check::shape(const char* tensor, const ConstTensorView& view,
                  std::initializer_list<std::int64_t> shape) const {
  if (!view.present()) {
    fail(std::string(tensor) + ": expected " + to_string(shape) + ", got no tensor");
  }
  bool same = view.rank() == static_cast<int>(shape.size());
  int axis = 0;
  for (const std::int64_t dim : shape) same = same && view.dim(axis++) == dim;
  if (!same) {
    fail(std::string(tensor) + ": expected " + to_string(shape) + ", got " + view.shape_string());
  }
  rank(tensor, view, view.rank());
}

void Check::dtype(const char* tensor, const ConstTensorView& view,
                  std::initializer_list<DType> allowed) const {
  if (std::find(allowed.begin(), allowed.end(), view.dtype()) != allowed.end()) return;
  std::string expected;
  for (const DType dtype : allowed) {
    if (!expected.empty()) expected += " or ";
    expected += name_of(dtype);
  }
  fail(std::string(tensor) + ": expected " + expected + ", got " + name_of(view.dtype()));
}

void Check::floating(const char* tensor, const ConstTensorView& view) const {
  dtype(tensor, view, {DType::kFloat32, DType::kFloat16, DType::kBFloat16});
}

void Check::device(const char* tensor, const ConstTensorView& view, Device device) const {
  if (view.device() == device) return;
  fail(std::string(tensor) + ": expected device " + to_string(device) + ", got " +
       to_string(view.device()));
}

void Check::last_axis_dense(const char* tensor, const ConstTensorView& view) const {
  const int last = view.rank() - 1;
  if (view.size() == 0 || view.dim(last) == 1 || view.stride(last) == 1) return;
  fail(std::string(tensor) + ": expected stride 1 along the last axis, got strides " +
       strides_string(view));
}

void Check::dense(const char* tensor, const ConstTensorView& view) const {
  if (view.size() == 0) return;
  std::int64_t stride = 1;
  for (int axis = view.rank() - 1; axis >= 0; --axis) {
    if (view.dim(axis) != 1 && view.stride(axis) != stride) {
      fail(std::string(tensor) + ": expected a dense tensor, got strides " + strides_string(view));
    }
    stride *= view.dim(axis);
  }
}

void Check::writable(const char* tensor, const ConstTensorView& view) const {
  if (view.size() == 0) return;
  // From the smallest stride up, each step must clear all that the smaller ones can reach.
  struct Axis {
    std::int64_t stride, dim;
  };
  std::array<Axis, ConstTensorView::kMaxRank> axes;
  std::size_t count = 0;  // of those, by stride
  for (int axis = 0; axis < view.rank(); ++axis) {
    if (view.dim(axis) <= 1) continue;
    const std::int64_t stride = std::abs(view.stride(axis));
    std::size_t at = count++;
    for (; at > 0 && stride < axes[at - 1].stride; --at) axes[at] = axes[at - 1];
    axes[at] = {stride, view.dim(axis)};
  }
  std::int64_t reach = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto [stride, dim] = axes[i];
    if (stride <= reach) {
      fail(std::string(tensor) + ": expected elements apart from each other, got strides " +
           strides_string(view));
    }
    reach += stride * (dim - 1);
  }
}

void Check::matrix(const char* tensor, const ConstTensorView& view,
                   const ConstTensorView& like) const {
  shape(tensor, view, {like.dim(0), like.dim(1)});
  dtype(tensor, view, {like.dtype()});
  device(tensor, view, like.device());
  last_axis_dense(tensor, view);
}

void Check::output(const char* tensor, const ConstTensorView& view,
                   const ConstTensorView& like) const {
  matrix(tensor, view, like);
  writable(tensor, view);
}

void Check::rows_output(const char* tensor, const TensorView& view, Device at) const {
  device(tensor, view, at);
  last_axis_dense(tensor, view);
  writable(tensor, view);
}

void Check::floats(const char* tensor, const ConstTensorView& view, std::int64_t size,
                   const ConstTensorView& like) const {
  shape(tensor, view, {size});
  dtype(tensor, view, {DType::kFloat32});
  device(tensor, view, like.device());
  dense(tensor, view);
}

void Check::epsilon(float eps) const {
  if (!(std::isfinite(eps) && eps >= 0.0f)) {
    fail("eps: expected a number of at least 0, got " + std::to_string(eps));
  }
}

void Check::scale(float scale) const {
  if (!(std::isfinite(scale) && scale > 0.0f)) {
    fail("scale: expected a positive number, got " + std::to_string(scale));
  }
}

void Check::rotary(const Rotary& rotary) const {
  if (!(std::isfinite(rotary.theta) && rotary.theta > 0.0f)) {
    fail("rotary.theta: expected a positive number, got " + std::to_string(rotary.theta));
  }
  if (!(std::isfinite(rotary.scaling_factor) && rotary.scaling_factor > 0.0f)) {
    fail("rotary.scaling_factor: expected a positive number, got " +
         std::to_string(rotary.scaling_factor));
  }
  if (rotary.position < 0) {
    fail("rotary.position: expected at least 0, got " + std::to_string(rotary.position));
  }
}

void Check::place(const Context& context, Device device) const {
  if (context.device() == device) return;
  fail("context: expected one for device " + to_string(device) + ", got one for " +
       to_string(context.device()));
}

void require(const char* op, const Support& support) {
  if (!support) {
    throw Error(ErrorCode::kUnsupported, "[" + std::string(op) + "] " + support.reason);
  }
}

Support float_on_cpu(const char* tensor, const ConstTensorView& view) {
  if (!view.present() || view.dtype() == DType::kFloat32 || view.dtype() == DType::kBFloat16) {
    return {};
  }
  return Support::no(std::string(tensor) + ": " + name_of(view.dtype()) +
                     " has no CPU kernel, float32 and bfloat16 do");
}

Support dropout_by_value(const Dropout& dropout) {
  if (dropout.state == nullptr) return {};
  return Support::no("dropout: a seed and offset in device memory are for CUDA kernels");
}

Support all_of(std::initializer_list<Support> parts) {
  for (const Support& part : parts) {
    if (!part) return part;
  }
  return {};
}

}  // namespace graft
