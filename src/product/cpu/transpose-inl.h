// Small float matrices on their way out: h and the gradients of A and B lie by rank inside, and by
// row or column where the caller wants them.
#if defined(GRAFT_CPU_TRANSPOSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_TRANSPOSE_INL_H_
#undef GRAFT_CPU_TRANSPOSE_INL_H_
#else
#define GRAFT_CPU_TRANSPOSE_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "backend/cpu/vectors-inl.h"
#include "product/cpu/kernels.h"
#include "weight/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// to [cols][to_stride] = scaling · from [rows][from_stride], transposed.
inline void Transpose(const float* from, std::int64_t from_stride, std::int64_t rows,
                      std::int64_t cols, float scaling, float* HWY_RESTRICT to,
                      std::int64_t to_stride) {
  const D8 d;
  const V8 factor = hn::Set(d, scaling);
  std::int64_t j = 0;
  for (; j + kLanesOf<D8> <= rows; j += kLanesOf<D8>) {
    const Source group{from + j * from_stride, DType::kFloat32, from_stride, 1, 0};
    const auto store = [=](std::int64_t col, int, const auto& v) {
      for (int t = 0; t < 4; ++t) {
        hn::StoreU(hn::Mul(factor, v[t]), d, to + (col + t) * to_stride + j);
      }
    };
    std::int64_t col = TransposeRows(d, group, kLanesOf<D8>, cols, kLanesOf<D8>, store);
    for (; col < cols; ++col) {
      for (std::int64_t i = j; i < j + kLanesOf<D8>; ++i) {
        to[col * to_stride + i] = scaling * from[i * from_stride + col];
      }
    }
  }
  for (; j < rows; ++j) {
    for (std::int64_t col = 0; col < cols; ++col) {
      to[col * to_stride + j] = scaling * from[j * from_stride + col];
    }
  }
}

// to += from, `count` floats each.
inline void Add(const float* HWY_RESTRICT from, std::int64_t count, float* HWY_RESTRICT to) {
  const D d;
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(hn::Add(hn::LoadU(d, to + i), hn::LoadU(d, from + i)), d, to + i);
  }
  for (; i < count; ++i) to[i] += from[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
