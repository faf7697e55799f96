// Packing of rows and columns into panels (formats: kernels.h).
#if defined(GRAFT_CPU_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_PACK_INL_H_
#undef GRAFT_CPU_PACK_INL_H_
#else
#define GRAFT_CPU_PACK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "backend/bfloat16.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// Four steps of kLanes rows, lanes along rows: out[t] lane i = row i at k + t.
template <class Load4>
HWY_INLINE void LoadTransposed(const Load4& load, V (&out)[4]) {
#if HWY_TARGET == HWY_SCALAR
  for (int t = 0; t < 4; ++t) out[t] = hn::Set(D(), load.At(0, t));
#else
  // Vector j holds rows j, j + 4, j + 8, ... in its 128-bit blocks, four steps each; transposing
  // 4 × 4 inside the blocks then leaves the rows in order.
  V v[4];
  for (int j = 0; j < 4; ++j) v[j] = load.Blocks(j);
  const D d;
  const hn::Repartition<double, D> d64;
  const V t0 = hn::InterleaveLower(d, v[0], v[1]);
  const V t1 = hn::InterleaveUpper(d, v[0], v[1]);
  const V t2 = hn::InterleaveLower(d, v[2], v[3]);
  const V t3 = hn::InterleaveUpper(d, v[2], v[3]);
  const auto b0 = hn::BitCast(d64, t0), b1 = hn::BitCast(d64, t1);
  const auto b2 = hn::BitCast(d64, t2), b3 = hn::BitCast(d64, t3);
  out[0] = hn::BitCast(d, hn::InterleaveLower(d64, b0, b2));
  out[1] = hn::BitCast(d, hn::InterleaveUpper(d64, b0, b2));
  out[2] = hn::BitCast(d, hn::InterleaveLower(d64, b1, b3));
  out[3] = hn::BitCast(d, hn::InterleaveUpper(d64, b1, b3));
#endif
}

// Rows of 32-bit units, floats or pairs of bfloat16, read through one pointer a row. Pairs may be
// aligned to two bytes only, so everything is loaded as bytes.
struct LoadRows32 {
  const std::uint8_t* const* rows;
  std::int64_t k;  // in units

  HWY_INLINE float At(int row, int t) const {
    float unit;
    std::memcpy(&unit, rows[row] + (k + t) * 4, sizeof(unit));
    return unit;
  }
#if HWY_TARGET != HWY_SCALAR
  HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> Four(int row) const {
    const hn::FixedTag<float, 4> d4;
    const hn::Repartition<std::uint8_t, decltype(d4)> bytes;
    return hn::BitCast(d4, hn::LoadU(bytes, rows[row] + k * 4));
  }
  HWY_INLINE V Blocks(int j) const {
#if HWY_TARGET == HWY_AVX3
    const hn::FixedTag<float, 8> d8;
    return hn::Combine(D(), hn::Combine(d8, Four(j + 12), Four(j + 8)),
                       hn::Combine(d8, Four(j + 4), Four(j)));
#elif HWY_TARGET == HWY_AVX2
    return hn::Combine(D(), Four(j + 4), Four(j));
#else
    return Four(j);
#endif
  }
#endif
};

// Where kLanes rows of x from row r0 on begin; past the last of `rows`, that row again.
struct RowPointers {
  RowPointers(const Source& x, int rows, int r0) {
    const auto* const base = static_cast<const std::uint8_t*>(x.data);
    const std::int64_t row_bytes = x.row_stride * (x.dtype == DType::kFloat32 ? 4 : 2);
    for (int i = 0; i < kLanes; ++i) row[i] = base + std::min(r0 + i, rows - 1) * row_bytes;
  }
  const std::uint8_t* row[kLanes < 4 ? 4 : kLanes];
};

HWY_INLINE float LoadOne(const Source& s, std::int64_t row, std::int64_t col) {
  const std::int64_t offset = row * s.row_stride + col * s.col_stride;
  return s.dtype == DType::kBFloat16
             ? from_bfloat16(static_cast<const std::uint16_t*>(s.data)[offset])
             : static_cast<const float*>(s.data)[offset];
}

// float panel [k][stride]; `Round` rounds to bfloat16 and pads k to even with zeros.
template <bool Round>
void PackFloats(const Source& x, int rows, std::int64_t k, int stride, void* panel) {
  const D d;
  float* HWY_RESTRICT out = static_cast<float*>(panel);
  std::int64_t done = 0;
  if (rows > 0 && x.col_stride == 1 && stride % kLanes == 0) {
    const DU du;
    const bool wide = x.dtype == DType::kFloat32;
    const std::int64_t unit = wide ? 4 : 8;  // steps of k a block
    const std::int64_t whole = k / unit * unit;
    for (int r0 = 0; r0 < stride; r0 += kLanes) {
      const RowPointers pointers(x, rows, r0);
      for (std::int64_t s = 0; s < whole; s += unit) {
        V v[4];
        LoadTransposed(LoadRows32{pointers.row, wide ? s : s / 2}, v);
        for (int t = 0; wide && t < 4; ++t) {
          if (Round) v[t] = hn::BitCast(d, RoundToUpperHalf(v[t]));
          hn::StoreU(v[t], d, out + (s + t) * stride + r0);
        }
        for (int t = 0; !wide && t < 4; ++t) {
          const VU pair = hn::BitCast(du, v[t]);
          float* HWY_RESTRICT to = out + (s + 2 * t) * stride + r0;
          hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(pair)), d, to);
          hn::StoreU(hn::BitCast(d, hn::And(pair, hn::Set(du, 0xffff0000u))), d, to + stride);
        }
      }
    }
    done = whole;
  } else if (x.dtype == DType::kFloat32 && x.row_stride == 1) {
    const bool vectors = rows == stride && stride % kLanes == 0;
    for (std::int64_t s = 0; s < k; ++s) {
      const float* HWY_RESTRICT from = static_cast<const float*>(x.data) + s * x.col_stride;
      float* HWY_RESTRICT to = out + s * stride;
      for (int i = 0; vectors && i < stride; i += kLanes) {
        V v = hn::LoadU(d, from + i);
        if (Round) v = hn::BitCast(d, RoundToUpperHalf(v));
        hn::StoreU(v, d, to + i);
      }
      for (int i = 0; !vectors && i < stride; ++i) {
        const float value = i < rows ? from[i] : 0.0f;
        to[i] = Round ? from_bfloat16(to_bfloat16(value)) : value;
      }
    }
    done = k;
  }
  for (std::int64_t s = done; s < k; ++s) {
    for (int i = 0; i < stride; ++i) {
      const float value = i < rows ? LoadOne(x, i, s) : 0.0f;
      out[s * stride + i] = Round ? from_bfloat16(to_bfloat16(value)) : value;
    }
  }
  if (Round && k % 2 == 1) std::fill_n(out + k * stride, stride, 0.0f);
}

struct PairByRounding {
  template <class Floats>
  static HWY_INLINE auto PairOf(Floats d, hn::Vec<Floats> even, hn::Vec<Floats> odd) {
    return hn::Or(hn::ShiftRight<16>(RoundToUpperHalf(d, even)), RoundToUpperHalf(d, odd));
  }
  static HWY_INLINE VU Pair(V even, V odd) { return PairOf(D(), even, odd); }
};

// Pairs panel [⌈k/2⌉][stride] of (bf16 at k, bf16 at k + 1), zero past the end.
template <class Convert>
void PackPairs(const Source& x, int rows, std::int64_t k, int stride, void* panel) {
  const DU du;
  std::uint32_t* HWY_RESTRICT out = static_cast<std::uint32_t*>(panel);
  std::int64_t done = 0;  // steps of k that are packed, even
  if (rows > 0 && x.col_stride == 1 && stride % kLanes == 0) {
    const bool wide = x.dtype == DType::kFloat32;
    const std::int64_t unit = wide ? 4 : 8;  // steps of k a block
    const std::int64_t whole = k / unit * unit;
    for (int r0 = 0; r0 < stride; r0 += kLanes) {
      const RowPointers pointers(x, rows, r0);
      for (std::int64_t s = 0; s < whole; s += unit) {
        V v[4];
        LoadTransposed(LoadRows32{pointers.row, wide ? s : s / 2}, v);
        if (wide) {
          std::uint32_t* to = out + s / 2 * stride + r0;
          hn::StoreU(Convert::Pair(v[0], v[1]), du, to);
          hn::StoreU(Convert::Pair(v[2], v[3]), du, to + stride);
        } else {
          for (int t = 0; t < 4; ++t) {
            hn::StoreU(hn::BitCast(du, v[t]), du, out + (s / 2 + t) * stride + r0);
          }
        }
      }
    }
    done = whole;
  } else if (x.row_stride == 1 && x.dtype == DType::kFloat32) {
    const D d;
    const bool vectors = rows == stride && stride % kLanes == 0;
    for (std::int64_t s = 0; s + 1 < k; s += 2) {
      const float* HWY_RESTRICT even = static_cast<const float*>(x.data) + s * x.col_stride;
      const float* HWY_RESTRICT odd = even + x.col_stride;
      std::uint32_t* HWY_RESTRICT to = out + s / 2 * stride;
      for (int i = 0; vectors && i < stride; i += kLanes) {
        hn::StoreU(Convert::Pair(hn::LoadU(d, even + i), hn::LoadU(d, odd + i)), du, to + i);
      }
      if (vectors) continue;
      int i = 0;
#if HWY_TARGET == HWY_AVX3
      // Columns of A come in groups of eight, half a vector.
      const hn::FixedTag<float, 8> d8;
      for (; i + 8 <= rows; i += 8) {
        hn::StoreU(PairByRounding::PairOf(d8, hn::LoadU(d8, even + i), hn::LoadU(d8, odd + i)),
                   hn::RebindToUnsigned<decltype(d8)>(), to + i);
      }
#endif
      for (; i < stride; ++i) {
        to[i] = i < rows
                    ? to_bfloat16(even[i]) | static_cast<std::uint32_t>(to_bfloat16(odd[i])) << 16
                    : 0;
      }
    }
    done = k / 2 * 2;
  }
  for (std::int64_t s = done; s < k; s += 2) {
    for (int i = 0; i < stride; ++i) {
      const std::uint32_t even = i < rows ? to_bfloat16(LoadOne(x, i, s)) : 0;
      const std::uint32_t odd = i < rows && s + 1 < k ? to_bfloat16(LoadOne(x, i, s + 1)) : 0;
      out[s / 2 * stride + i] = even | odd << 16;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
