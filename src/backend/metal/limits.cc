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

}  // namespace graft::metal
