// Dropout (graft/lora.h): which elements are kept, as bits, and what masks with them.
//
// Philox in lanes of 64 bits, a counter each: a 32-bit multiply gives both halves of its product
// where they are wanted, so a round is two multiplies, two shifts and two exclusive ors, and what
// is above a word's 32 bits is never looked at. At the end
//
//     lane of counter n:  [ c0 | c1 ]  and  [ c2 | c3 ]      two words each
//     a block of 128:     [ c0 | c1 | c2 | c3 ]              its eight fields of 16 bits, in order
//
// and a comparison gives a byte a counter. Cost: 6 operations a round for kLanes / 2 counters, or
// about 0.3 cycles an element with 512 bits (Zen 4) where whole floats of a mask would be 4 bytes
// to write and read again.
#if defined(GRAFT_CPU_DROPOUT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_DROPOUT_INL_H_
#undef GRAFT_CPU_DROPOUT_INL_H_
#else
#define GRAFT_CPU_DROPOUT_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "backend/cpu/memory-inl.h"
#include "backend/cpu/vectors-inl.h"
#include "backend/philox.h"
#include "graft/lora.h"
#include "product/cpu/kernels.h"
#include "product/cpu/shape-inl.h"
#include "weight/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

#if HWY_TARGET != HWY_SCALAR
using D16 = hn::Repartition<std::uint16_t, D>;
using D64 = hn::Repartition<std::uint64_t, D>;
using V64 = hn::Vec<D64>;

// Counters of a vector. Vectors that are made together hide each other's latencies, as many as the
// registers hold.
constexpr int kCounters = kLanes / 2;
constexpr int kPhiloxVectors = HWY_TARGET == HWY_AVX2 ? 2 : 4;
static_assert(kCounters <= kKeptSlack);

// The keys of the rounds, in every lane: made once a call, and read from memory where registers are
// too few.
struct Keys {
  explicit Keys(std::uint64_t seed) {
    const DU du;
    auto low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      hn::Store(hn::Set(du, low), du, k0[round]);
      hn::Store(hn::Set(du, high), du, k1[round]);
      low += kPhiloxW0;
      high += kPhiloxW1;
    }
  }
  static V64 of(const std::uint32_t* key) { return hn::BitCast(D64(), hn::Load(DU(), key)); }

  HWY_ALIGN std::uint32_t k0[kPhiloxRounds][kLanes];
  HWY_ALIGN std::uint32_t k1[kPhiloxRounds][kLanes];
};

HWY_INLINE V64 MulWord(V64 word, std::uint32_t factor) {
  const DU du;
  return hn::MulEven(hn::BitCast(du, word), hn::Set(du, factor));
}

// [word of `even` | word of `odd`] in each lane.
HWY_INLINE V64 BothWords(V64 even, V64 odd) {
  const DU du;
  return hn::BitCast(D64(),
                     hn::OddEven(hn::BitCast(du, hn::ShiftLeft<32>(odd)), hn::BitCast(du, even)));
}

// Bits of fields that are not below the threshold, to as many bytes as there are fields / 8.
HWY_INLINE void StoreKept(V64 fields, std::uint32_t threshold, std::uint8_t* bits) {
  const D16 d;
  const auto f = hn::BitCast(d, fields);
  const auto t = hn::Set(d, static_cast<std::uint16_t>(threshold));
  hn::StoreMaskBits(d, hn::Eq(hn::Max(f, t), f), bits);
}

// A byte for each of Vectors · kCounters counters.
template <int Vectors>
HWY_INLINE void KeepVectors(std::uint64_t counter, const Keys& keys, std::uint32_t threshold,
                            std::uint8_t* bits) {
  const D64 d;
  // Lanes 2b and 2b + 1 end in block b of two vectors: the first holds the lower counters.
  constexpr int kHalfBits = kCounters == 8 ? 2 : kCounters == 4 ? 1 : 0;
  const V64 lane = hn::Iota(d, 0);
  const V64 order =
      hn::Add(hn::ShiftRight<1>(lane), hn::ShiftLeft<kHalfBits>(hn::And(lane, hn::Set(d, 1))));

  // The first round, in which c2 and c3 are zero.
  V64 c0[Vectors], c1[Vectors], c2[Vectors], c3[Vectors];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) {
    const V64 n = hn::Add(hn::Set(d, counter + static_cast<std::uint64_t>(v * kCounters)), order);
    c3[v] = MulWord(n, kPhiloxM0);
    c0[v] = hn::Xor(hn::ShiftRight<32>(n), Keys::of(keys.k0[0]));
    c2[v] = hn::Xor(hn::ShiftRight<32>(c3[v]), Keys::of(keys.k1[0]));
    c1[v] = hn::Zero(d);
  }
#pragma GCC unroll 16
  for (int round = 1; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      const V64 p0 = MulWord(c0[v], kPhiloxM0);
      const V64 p1 = MulWord(c2[v], kPhiloxM1);
      c0[v] = hn::Xor3(hn::ShiftRight<32>(p1), c1[v], Keys::of(keys.k0[round]));
      c2[v] = hn::Xor3(hn::ShiftRight<32>(p0), c3[v], Keys::of(keys.k1[round]));
      c1[v] = p1;
      c3[v] = p0;
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) {
    const V64 c01 = BothWords(c0[v], c1[v]), c23 = BothWords(c2[v], c3[v]);
    std::uint8_t* const to = bits + v * kCounters;
    StoreKept(hn::InterleaveLower(d, c01, c23), threshold, to);
    StoreKept(hn::InterleaveUpper(d, c01, c23), threshold, to + kCounters / 2);
  }
}
#endif

inline void DropoutBits(const Dropout& dropout, std::uint64_t first, std::int64_t count,
                        std::uint8_t* bits) {
  const std::uint64_t counter = dropout.offset + first;
  const std::uint32_t threshold = dropout.threshold();
  std::int64_t i = 0;
#if HWY_TARGET == HWY_SCALAR
  for (; i < count; ++i) {
    const auto words = philox(counter + static_cast<std::uint64_t>(i), dropout.seed);
    unsigned byte = 0;
    for (unsigned f = 0; f < 8; ++f) byte |= (philox_field(words, f) >= threshold ? 1u : 0u) << f;
    bits[i] = static_cast<std::uint8_t>(byte);
  }
#else
  const Keys keys(dropout.seed);
  constexpr int kTogether = kPhiloxVectors * kCounters;
  for (; i + kTogether <= count; i += kTogether) {
    KeepVectors<kPhiloxVectors>(counter + static_cast<std::uint64_t>(i), keys, threshold, bits + i);
  }
  for (; i < count; i += kCounters) {
    KeepVectors<1>(counter + static_cast<std::uint64_t>(i), keys, threshold, bits + i);
  }
#endif
}

// Bit `first` + i of a word, in lane i of a vector.
HWY_INLINE VU LaneBits(int first) {
  const DU du;
  return hn::Shl(hn::Set(du, 1), hn::Iota(du, static_cast<std::uint32_t>(first)));
}

HWY_INLINE V KeepLanes(VU word, VU lane_bits, V value) {
  return hn::IfThenElseZero(hn::RebindMask(D(), hn::TestBit(word, lane_bits)), value);
}

// Masks a panel of floats, [step][kStride]: bit s of a word is step s of a row, a lane.
HWY_INLINE void DropFloats(const float* HWY_RESTRICT x, VU word, std::int64_t steps,
                           float* HWY_RESTRICT out) {
  VU bit = hn::Set(DU(), 1);
  for (std::int64_t s = 0; s < steps; ++s, bit = hn::Add(bit, bit)) {
    hn::StoreU(KeepLanes(word, bit, hn::LoadU(D(), x + s * kStride)), D(), out + s * kStride);
  }
}

#if HWY_TARGET != HWY_SCALAR
// The same of pairs: bits 2s and 2s + 1 are the halves of step s.
HWY_INLINE void DropPairs(const std::uint32_t* HWY_RESTRICT x, VU word, std::int64_t steps,
                          std::uint32_t* HWY_RESTRICT out) {
  const DU du;
  const D16 d16;
  const VU low = hn::And(word, hn::Set(du, 0xffff)), high = hn::ShiftRight<16>(word);
  const VU halves[2] = {hn::Or(low, hn::ShiftLeft<16>(low)), hn::Or(high, hn::ShiftLeft<16>(high))};
  for (int half = 0; half < 2; ++half) {
    const auto both = hn::BitCast(d16, halves[half]);
    VU bits = hn::Set(du, 0x00020001);
    for (std::int64_t s = 8 * half; s < std::min<std::int64_t>(steps, 8 * half + 8);
         ++s, bits = hn::ShiftLeft<2>(bits)) {
      const auto kept = hn::TestBit(both, hn::BitCast(d16, bits));
      const auto pair = hn::BitCast(d16, hn::LoadU(du, x + s * kStride));
      hn::StoreU(hn::BitCast(du, hn::IfThenElseZero(kept, pair)), du, out + s * kStride);
    }
  }
}
#endif

template <class Multiply>
void DropPanel(const void* panel, int rows, std::int64_t k, const Kept& kept, void* dropped) {
  constexpr bool kPairs = Multiply::kPerStep == 2 && Multiply::kXPerStep == 1;
  constexpr std::int64_t kWordSteps = kPairs ? 16 : 32;
  using X = typename Multiply::X;
  const std::int64_t steps =
      (k + Multiply::kPerStep - 1) / Multiply::kPerStep * Multiply::kXPerStep;
  const X* x = static_cast<const X*>(panel);
  X* out = static_cast<X*>(dropped);
  HWY_ALIGN std::uint32_t words[kStride] = {};
  for (std::int64_t first = 0, col = 0; first < steps; first += kWordSteps, col += 32) {
    for (int i = 0; i < rows; ++i) words[i] = kept.word(i, col);
    const std::int64_t count = std::min(kWordSteps, steps - first);
    for (int r0 = 0; r0 < kStride; r0 += kLanes) {
      const VU word = hn::Load(DU(), words + r0);
      const std::int64_t at = first * kStride + r0;
      if constexpr (kPairs) {
        DropPairs(x + at, word, count, out + at);
      } else {
        DropFloats(x + at, word, count, out + at);
      }
    }
  }
}

// The whole pairs of vectors of out = kept row or 0; returns the columns done.
template <class T>
HWY_INLINE std::int64_t DropVectors(const T* HWY_RESTRICT row, const Kept& kept, std::int64_t i,
                                    std::int64_t cols, float* HWY_RESTRICT out) {
  const D d;
  const VU first = LaneBits(0), second = LaneBits(kLanes);
  std::int64_t j = 0;
  for (; j + kWidth <= cols; j += kWidth) {
    const VU word = hn::Set(DU(), kept.word(i, j));
    hn::StoreU(KeepLanes(word, first, Load(row + j)), d, out + j);
    hn::StoreU(KeepLanes(word, second, Load(row + j + kLanes)), d, out + j + kLanes);
  }
  return j;
}

inline void DropRows(const Source& x, std::int64_t rows, std::int64_t cols, const Kept& kept,
                     float* out) {
  for (std::int64_t i = 0; i < rows; ++i, out += cols) {
    const Source row = x.at(i, 0);
    std::int64_t j = 0;
    if (row.col_stride == 1 && kept.some()) {
      j = row.dtype == DType::kFloat32
              ? DropVectors(static_cast<const float*>(row.data), kept, i, cols, out)
              : DropVectors(static_cast<const hwy::bfloat16_t*>(row.data), kept, i, cols, out);
    }
    for (; j < cols; ++j) {
      out[j] = kept.some() && (kept.word(i, j) & 1) == 0 ? 0.0f : LoadOne(row, 0, j);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
