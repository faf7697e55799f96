// Packing of rows and columns into panels (formats: panels.h).
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
#include "backend/cpu/vectors-inl.h"
#include "weight/cpu/panels.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// Columns of a panel: what two vectors hold, which every register tile is wide.
constexpr int kWidth = 2 * kLanes;

// Eight lanes or a vector, whichever is less: columns of A come in groups of eight.
using D8 = hn::CappedTag<float, 8>;
using V8 = hn::Vec<D8>;
using VU8 = hn::Vec<hn::RebindToUnsigned<D8>>;

template <class Floats>
constexpr int kLanesOf = static_cast<int>(hn::MaxLanes(Floats()));

// Where a vector's worth of rows of x from row r0 on begin; past the last of `rows`, that row
// again.
struct RowPointers {
  RowPointers(const Source& x, int rows, int r0, int lanes) {
    const auto* const base = static_cast<const std::uint8_t*>(x.data);
    const std::int64_t row_bytes = x.row_bytes();
    for (int i = 0; i < lanes; ++i) row[i] = base + std::min(r0 + i, rows - 1) * row_bytes;
  }
  const std::uint8_t* row[kLanes < 4 ? 4 : kLanes];
};

// Where a line of memory begins at `byte` of a row, asks for the one that lies `ahead` of it.
HWY_INLINE void FetchAhead(const RowPointers& rows, int count, std::int64_t byte,
                           std::int64_t ahead) {
  constexpr std::int64_t kLine = 64;
  constexpr int kRead = 0, kSecondLevel = 2;
  if (ahead == 0 || byte % kLine != 0) return;
  for (int i = 0; i < count; ++i) {
    __builtin_prefetch(rows.row[i] + byte + ahead, kRead, kSecondLevel);
  }
}

#if HWY_TARGET != HWY_SCALAR
// Four 32-bit units of a row, floats or pairs of bfloat16, from unit k on. Pairs may be aligned to
// two bytes only, so everything is loaded as bytes.
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> LoadUnits(const std::uint8_t* row, std::int64_t k) {
  const hn::FixedTag<float, 4> d4;
  const hn::Repartition<std::uint8_t, decltype(d4)> bytes;
  return hn::BitCast(d4, hn::LoadU(bytes, row + k * 4));
}

// Those of rows j, j + 4, j + 8, ... in the 128-bit blocks of one vector.
template <class Floats>
HWY_INLINE hn::Vec<Floats> LoadBlocks(Floats d, const RowPointers& rows, int j, std::int64_t k) {
  if constexpr (kLanesOf<Floats> == 4) {
    return LoadUnits(rows.row[j], k);
  } else {
    const auto low = LoadUnits(rows.row[j], k), second = LoadUnits(rows.row[j + 4], k);
    if constexpr (kLanesOf<Floats> == 8) {
      return hn::Combine(d, second, low);
    } else {
      const hn::Half<Floats> d8;
      return hn::Combine(
          d, hn::Combine(d8, LoadUnits(rows.row[j + 12], k), LoadUnits(rows.row[j + 8], k)),
          hn::Combine(d8, second, low));
    }
  }
}
#endif

// Four units of a vector's worth of rows, lanes along rows: out[t] lane i = row i at unit k + t.
template <class Floats>
HWY_INLINE void LoadTransposed(Floats d, const RowPointers& rows, std::int64_t k,
                               hn::Vec<Floats> (&out)[4]) {
#if HWY_TARGET == HWY_SCALAR
  for (int t = 0; t < 4; ++t) {
    float unit;
    std::memcpy(&unit, rows.row[0] + (k + t) * 4, sizeof(unit));
    out[t] = hn::Set(d, unit);
  }
#else
  // Transposing 4 × 4 inside the blocks leaves the rows in order.
  const auto v0 = LoadBlocks(d, rows, 0, k), v1 = LoadBlocks(d, rows, 1, k);
  const auto v2 = LoadBlocks(d, rows, 2, k), v3 = LoadBlocks(d, rows, 3, k);
  const hn::Repartition<double, Floats> d64;
  const auto b0 = hn::BitCast(d64, hn::InterleaveLower(d, v0, v1));
  const auto b1 = hn::BitCast(d64, hn::InterleaveUpper(d, v0, v1));
  const auto b2 = hn::BitCast(d64, hn::InterleaveLower(d, v2, v3));
  const auto b3 = hn::BitCast(d64, hn::InterleaveUpper(d, v2, v3));
  out[0] = hn::BitCast(d, hn::InterleaveLower(d64, b0, b2));
  out[1] = hn::BitCast(d, hn::InterleaveUpper(d64, b0, b2));
  out[2] = hn::BitCast(d, hn::InterleaveLower(d64, b1, b3));
  out[3] = hn::BitCast(d, hn::InterleaveUpper(d64, b1, b3));
#endif
}

HWY_INLINE float LoadOne(const Source& s, std::int64_t row, std::int64_t col) {
  const std::int64_t offset = row * s.row_stride + col * s.col_stride;
  return s.dtype == DType::kBFloat16
             ? from_bfloat16(static_cast<const std::uint16_t*>(s.data)[offset])
             : static_cast<const float*>(s.data)[offset];
}

HWY_INLINE V8 Load8(const float* from) { return hn::LoadU(D8(), from); }
HWY_INLINE V8 Load8(const std::uint16_t* from) {
  const hn::RebindToUnsigned<D8> du;
  const auto half = hn::LoadU(hn::Rebind<std::uint16_t, D8>(), from);
  return hn::BitCast(D8(), hn::ShiftLeft<16>(hn::PromoteTo(du, half)));
}

template <bool Round>
HWY_INLINE float Rounded(float value) {
  return Round ? from_bfloat16(to_bfloat16(value)) : value;
}
template <bool Round>
HWY_INLINE float Rounded(std::uint16_t bits) {
  return from_bfloat16(bits);
}

// One step of a float panel from `rows` values side by side, zero from there to `stride`.
template <bool Round, class T>
HWY_INLINE void PackStep(const T* HWY_RESTRICT from, int rows, int stride, float* HWY_RESTRICT to) {
  const D8 d;
  int i = 0;
  for (; i + kLanesOf<D8> <= rows; i += kLanesOf<D8>) {
    V8 v = Load8(from + i);
    if (Round) v = hn::BitCast(d, RoundToUpperHalf(d, v));
    hn::StoreU(v, d, to + i);
  }
  for (; i < rows; ++i) to[i] = Rounded<Round>(from[i]);
  for (; i < stride; ++i) to[i] = 0.0f;
}

// Transposes rows of dense values, a vector's worth of rows and four units at a time, and hands
// each block of four vectors to `store(s, r0, v)`: s its first step of k, r0 its first row. Returns
// the steps done: whole blocks, four steps of float32 or eight of bfloat16.
template <class Floats, class StoreBlock>
HWY_INLINE std::int64_t TransposeRows(Floats d, const Source& x, int rows, std::int64_t k,
                                      int stride, const StoreBlock& store) {
  const bool wide = x.dtype == DType::kFloat32;
  const std::int64_t unit = wide ? 4 : 8;  // steps a block
  const std::int64_t whole = k / unit * unit;
  for (int r0 = 0; r0 < stride; r0 += kLanesOf<Floats>) {
    const RowPointers pointers(x, rows, r0, kLanesOf<Floats>);
    for (std::int64_t s = 0; s < whole; s += unit) {
      FetchAhead(pointers, kLanesOf<Floats>, wide ? s * 4 : s * 2, x.ahead);
      hn::Vec<Floats> v[4];
      LoadTransposed(d, pointers, wide ? s : s / 2, v);
      store(s, r0, v);
    }
  }
  return whole;
}

// The whole blocks of steps of a float panel, from rows of dense values; returns the steps done.
template <bool Round, class Floats>
HWY_INLINE std::int64_t PackFloatRows(Floats d, const Source& x, int rows, std::int64_t k,
                                      int stride, float* HWY_RESTRICT out) {
  const hn::RebindToUnsigned<Floats> du;
  const bool wide = x.dtype == DType::kFloat32;
  return TransposeRows(d, x, rows, k, stride, [=](std::int64_t s, int r0, const auto& v) {
    for (int t = 0; wide && t < 4; ++t) {
      const auto value = Round ? hn::BitCast(d, RoundToUpperHalf(d, v[t])) : v[t];
      hn::StoreU(value, d, out + (s + t) * stride + r0);
    }
    for (int t = 0; !wide && t < 4; ++t) {
      const auto pair = hn::BitCast(du, v[t]);
      float* to = out + (s + 2 * t) * stride + r0;
      hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(pair)), d, to);
      hn::StoreU(hn::BitCast(d, hn::And(pair, hn::Set(du, 0xffff0000u))), d, to + stride);
    }
  });
}

// float panel [k][stride]; `Round` rounds to bfloat16 and pads k to even with zeros.
template <bool Round>
void PackFloats(const Source& x, int rows, std::int64_t k, int stride, void* panel) {
  float* HWY_RESTRICT out = static_cast<float*>(panel);
  std::int64_t done = 0;
  if (rows > 0 && x.col_stride == 1 && stride % kLanesOf<D8> == 0) {
    done = stride % kLanes == 0 ? PackFloatRows<Round>(D(), x, rows, k, stride, out)
                                : PackFloatRows<Round>(D8(), x, rows, k, stride, out);
  } else if (x.row_stride == 1) {
    for (; done < k; ++done) {
      const std::int64_t at = done * x.col_stride;
      float* const to = out + done * stride;
      if (x.dtype == DType::kFloat32) {
        PackStep<Round>(static_cast<const float*>(x.data) + at, rows, stride, to);
      } else {
        PackStep<Round>(static_cast<const std::uint16_t*>(x.data) + at, rows, stride, to);
      }
    }
  }
  for (std::int64_t s = done; s < k; ++s) {
    for (int i = 0; i < stride; ++i) {
      out[s * stride + i] = i < rows ? Rounded<Round>(LoadOne(x, i, s)) : 0.0f;
    }
  }
  if (Round && k % 2 == 1) std::fill_n(out + k * stride, stride, 0.0f);
}

struct PairByRounding {
  template <class Floats>
  static HWY_INLINE auto Pair(Floats even, Floats odd) {
    const hn::DFromV<Floats> d;
    return hn::Or(hn::ShiftRight<16>(RoundToUpperHalf(d, even)), RoundToUpperHalf(d, odd));
  }
};

// One step of a panel of pairs from `rows` values side by side at k and k + 1, zero from there to
// `stride`.
template <class Convert>
HWY_INLINE void PackPairStep(const float* HWY_RESTRICT even, const float* HWY_RESTRICT odd,
                             int rows, int stride, std::uint32_t* HWY_RESTRICT to) {
  const D d;
  const D8 d8;
  int i = 0;
  for (; i + kLanes <= rows; i += kLanes) {
    hn::StoreU(Convert::Pair(hn::LoadU(d, even + i), hn::LoadU(d, odd + i)), DU(), to + i);
  }
  for (; i + kLanesOf<D8> <= rows; i += kLanesOf<D8>) {
    hn::StoreU(Convert::Pair(hn::LoadU(d8, even + i), hn::LoadU(d8, odd + i)),
               hn::RebindToUnsigned<D8>(), to + i);
  }
  for (; i < rows; ++i) {
    to[i] = to_bfloat16(even[i]) | static_cast<std::uint32_t>(to_bfloat16(odd[i])) << 16;
  }
  for (; i < stride; ++i) to[i] = 0;
}
template <class Convert>
HWY_INLINE void PackPairStep(const std::uint16_t* HWY_RESTRICT even,
                             const std::uint16_t* HWY_RESTRICT odd, int rows, int stride,
                             std::uint32_t* HWY_RESTRICT to) {
  int i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<std::uint16_t, 8> d;
  std::uint16_t* HWY_RESTRICT halves = reinterpret_cast<std::uint16_t*>(to);
  for (; i + 8 <= rows; i += 8) {
    const auto e = hn::LoadU(d, even + i), o = hn::LoadU(d, odd + i);
    hn::StoreU(hn::InterleaveLower(d, e, o), d, halves + 2 * i);
    hn::StoreU(hn::InterleaveUpper(d, e, o), d, halves + 2 * i + 8);
  }
#endif
  for (; i < rows; ++i) to[i] = even[i] | static_cast<std::uint32_t>(odd[i]) << 16;
  for (; i < stride; ++i) to[i] = 0;
}

// The whole blocks of steps of a panel of pairs, from rows of dense values; returns the steps of k
// done, an even number.
template <class Convert, class Floats>
HWY_INLINE std::int64_t PackPairRows(Floats d, const Source& x, int rows, std::int64_t k,
                                     int stride, std::uint32_t* HWY_RESTRICT out) {
  const hn::RebindToUnsigned<Floats> du;
  const bool wide = x.dtype == DType::kFloat32;
  return TransposeRows(d, x, rows, k, stride, [=](std::int64_t s, int r0, const auto& v) {
    std::uint32_t* to = out + s / 2 * stride + r0;
    if (wide) {
      hn::StoreU(Convert::Pair(v[0], v[1]), du, to);
      hn::StoreU(Convert::Pair(v[2], v[3]), du, to + stride);
    } else {
      for (int t = 0; t < 4; ++t) hn::StoreU(hn::BitCast(du, v[t]), du, to + t * stride);
    }
  });
}

// Pairs panel [⌈k/2⌉][stride] of (bf16 at k, bf16 at k + 1), zero past the end.
template <class Convert>
void PackPairs(const Source& x, int rows, std::int64_t k, int stride, void* panel) {
  std::uint32_t* HWY_RESTRICT out = static_cast<std::uint32_t*>(panel);
  std::int64_t done = 0;  // steps of k that are packed, even
  if (rows > 0 && x.col_stride == 1 && stride % kLanesOf<D8> == 0) {
    done = stride % kLanes == 0 ? PackPairRows<Convert>(D(), x, rows, k, stride, out)
                                : PackPairRows<Convert>(D8(), x, rows, k, stride, out);
  } else if (x.row_stride == 1) {
    for (; done + 1 < k; done += 2) {
      const std::int64_t even = done * x.col_stride, odd = even + x.col_stride;
      std::uint32_t* const to = out + done / 2 * stride;
      if (x.dtype == DType::kFloat32) {
        const float* from = static_cast<const float*>(x.data);
        PackPairStep<Convert>(from + even, from + odd, rows, stride, to);
      } else {
        const std::uint16_t* from = static_cast<const std::uint16_t*>(x.data);
        PackPairStep<Convert>(from + even, from + odd, rows, stride, to);
      }
    }
  }
  for (std::int64_t s = done; s < k; s += 2) {
    for (int i = 0; i < stride; ++i) {
      const std::uint32_t even = i < rows ? to_bfloat16(LoadOne(x, i, s)) : 0;
      const std::uint32_t odd = i < rows && s + 1 < k ? to_bfloat16(LoadOne(x, i, s + 1)) : 0;
      out[s / 2 * stride + i] = even | odd << 16;
    }
  }
}

inline void PackFloatColumns(const Source& w, int cols, std::int64_t k, void* panel) {
  PackFloats<false>(w, cols, k, kWidth, panel);
}
template <class Convert>
void PackPairColumns(const Source& w, int cols, std::int64_t k, void* panel) {
  PackPairs<Convert>(w, cols, k, kWidth, panel);
}

inline constexpr PanelFormat kFloatPanels = {kWidth, 1, false, &PackFloatColumns};
template <class Convert>
inline constexpr PanelFormat kPairPanels = {kWidth, 2, true, &PackPairColumns<Convert>};

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
