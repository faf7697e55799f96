#include "backend/metal/limits.h"

#include <algorithm>
#include <limits>
#include <string>

namespace graft::metal {

Support is_floating(DType dtype) {
  if (dtype != DType::kInt32) return {};
  return Support::no(std::string("no Metal kernel takes dtype ") + name_of(dtype));
}

Support sizes_fit(std::initializer_list<std::int64_t> sizes) {
  if (std::max(sizes) <= std::numeric_limits<int>::max()) return {};
  return Support::no("Metal kernels take sizes below 2^31");
}

Support is_dense(const char* tensor, const ConstTensorView& view) {
  std::int64_t stride = 1;
  for (int axis = view.rank() - 1; axis >= 0 && view.size() > 0; --axis) {
    if (view.dim(axis) != 1 && view.stride(axis) != stride) {
      return Support::no(std::string(tensor) + ": Metal kernels take no gaps between rows");
    }
    stride *= view.dim(axis);
  }
  return {};
}

}  // namespace graft::metal
