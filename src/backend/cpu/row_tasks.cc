#include "backend/cpu/row_tasks.h"

#include "backend/cpu/rows.h"

namespace graft::cpu {

void RowGroups::add(const Context& context, const float* partials, std::int64_t stride,
                    const TensorView& sum) const {
  constexpr std::int64_t kColumns = 512;  // of a task
  const RowKernels& kernels = row_kernels();
  float* const to = sum.mutable_data_as<float>();
  const std::int64_t features = sum.dim(0);
  parallel_for(context, (features + kColumns - 1) / kColumns, [&](std::int64_t task) {
    const std::int64_t first = task * kColumns;
    const std::int64_t columns = std::min(kColumns, features - first);
    std::fill_n(to + first, columns, 0.0f);
    for (std::int64_t group = 0; group < count; ++group) {
      kernels.add(partials + group * stride + first, 1.0f, columns, to + first);
    }
  });
}

void load_padded(const ConstTensorView& vector, float otherwise, std::int64_t count, float* to) {
  if (vector.present()) {
    row_kernels().load(vector.data(), vector.dtype(), count, to);
  } else {
    std::fill_n(to, count, otherwise);
  }
  std::fill_n(to + count, padded(count) - count, 0.0f);
}

}  // namespace graft::cpu
