#include "backend/check.h"

#include <cstdlib>

namespace graft::check {

void Op::fail(const char* tensor, const std::string& message, ErrorCode code) const {
  throw Error(code, "[" + name_ + "] " + tensor + ": " + message);
}

void Op::present(const ConstTensorView& view, const char* tensor) const {
  require(view.present(), tensor, "missing");
  require(view.data() != nullptr || view.size() == 0, tensor, "data is null");
}

void Op::rank(const ConstTensorView& view, const char* tensor, int expected) const {
  present(view, tensor);
  require(view.rank() == expected, tensor,
          "expected " + std::to_string(expected) + " dimensions, got " + view.shape_string());
}

void Op::shape(const ConstTensorView& view, const char* tensor,
               std::initializer_list<std::int64_t> expected) const {
  present(view, tensor);
  const ConstTensorView wanted(nullptr, DType::kFloat32, expected);
  bool equal = view.rank() == wanted.rank();
  for (int axis = 0; equal && axis < view.rank(); ++axis)
    equal = view.dim(axis) == wanted.dim(axis);
  require(equal, tensor, "expected " + wanted.shape_string() + ", got " + view.shape_string());
}

void Op::dtype(const ConstTensorView& view, const char* tensor, DType expected) const {
  require(view.dtype() == expected, tensor,
          std::string("expected ") + name_of(expected) + ", got " + name_of(view.dtype()));
}

void Op::dense_rows(const ConstTensorView& view, const char* tensor) const {
  const int last = view.rank() - 1;
  require(view.dim(last) <= 1 || view.stride(last) == 1, tensor,
          "expected elements of a row to follow each other (stride 1), got stride " +
              std::to_string(view.stride(last)));
  require(view.rank() == 1 || view.dim(0) <= 1 || view.stride(0) >= view.dim(last), tensor,
          "rows overlap: row stride " + std::to_string(view.stride(0)) + " is below " +
              std::to_string(view.dim(last)));
}

void Op::writable(const ConstTensorView& view, const char* tensor) const {
  if (view.size() == 0) return;
  // Enough for matrices: the axis with the smaller step must fit inside one step of the other.
  bool distinct = true;
  for (int axis = 0; axis < view.rank(); ++axis) {
    if (view.dim(axis) > 1 && view.stride(axis) == 0) distinct = false;
  }
  if (view.rank() == 2 && view.dim(0) > 1 && view.dim(1) > 1) {
    const std::int64_t s0 = std::abs(view.stride(0)), s1 = std::abs(view.stride(1));
    distinct = distinct && (s0 <= s1 ? s0 * (view.dim(0) - 1) < s1 : s1 * (view.dim(1) - 1) < s0);
  }
  require(distinct, tensor, "elements overlap in memory; give an output with distinct elements");
}

void Op::same_device(std::initializer_list<ConstTensorView> views) const {
  const ConstTensorView* first = nullptr;
  for (const ConstTensorView& view : views) {
    if (!view.present()) continue;
    if (first == nullptr) first = &view;
    if (!(view.device() == first->device())) {
      fail("device", std::string("tensors are on ") + name_of(first->device().type) + " and on " +
                         name_of(view.device().type) + "; put them all on one");
    }
  }
}

void Op::supported(const Support& support) const {
  if (!support) throw Error(ErrorCode::kUnsupported, "[" + name_ + "] " + support.reason);
}

Support float_on_cpu(const ConstTensorView& view, const char* tensor) {
  if (!view.present() || view.dtype() == DType::kFloat32 || view.dtype() == DType::kBFloat16) {
    return {};
  }
  return Support::no(std::string(tensor) + ": " + name_of(view.dtype()) +
                     " has no CPU kernel; use float32 or bfloat16");
}

Support all_of(std::initializer_list<Support> parts) {
  for (const Support& part : parts) {
    if (!part) return part;
  }
  return {};
}

}  // namespace graft::check
