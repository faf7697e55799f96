// Passes over a row for kernels that compute in float32: sums over it, and writing it.
#if defined(GRAFT_CPU_ROW_PASSES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_ROW_PASSES_INL_H_
#undef GRAFT_CPU_ROW_PASSES_INL_H_
#else
#define GRAFT_CPU_ROW_PASSES_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backend/cpu/isa.h"
#include "backend/cpu/memory-inl.h"
#include "graft/tensor_view.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// How a pass reads and writes one vector of a row: all of its lanes, or those that are left.
struct AllLanes {
  template <class T>
  HWY_INLINE V load(const T* from) const {
    return Load(from);
  }
  template <class T>
  HWY_INLINE void store(V value, T* to) const {
    Store(value, to);
  }
  HWY_INLINE V keep(V value, V) const { return value; }
};

struct FirstLanes {
  std::int64_t count;

  // Zero in the other lanes.
  template <class T>
  HWY_INLINE V load(const T* from) const {
    return LoadPart(from, count);
  }
  template <class T>
  HWY_INLINE void store(V value, T* to) const {
    StorePart(value, to, count);
  }
  // `other` in the other lanes.
  HWY_INLINE V keep(V value, V other) const {
    return hn::IfThenElse(hn::FirstN(D(), static_cast<std::size_t>(count)), value, other);
  }
};

// Sums and maxima are taken in as many chains, so that none waits for the one before.
constexpr int kChains = 4;

// Calls `body(chain, i, lanes)` for each vector of a row; only the last may be partial.
template <class Body>
HWY_INLINE void ForEachVector(std::int64_t count, const Body& body) {
  std::int64_t i = 0;
  for (; i + kChains * kLanes <= count; i += kChains * kLanes) {
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; ++chain) body(chain, i + chain * kLanes, AllLanes());
  }
  for (; i + kLanes <= count; i += kLanes) body(0, i, AllLanes());
  if (i < count) body(0, i, FirstLanes{count - i});
}

struct Sum {
  V chains[kChains];

  HWY_INLINE Sum() {
#pragma GCC unroll 8
    for (V& chain : chains) chain = hn::Zero(D());
  }
  HWY_INLINE float total() const {
    const V all = hn::Add(hn::Add(chains[0], chains[1]), hn::Add(chains[2], chains[3]));
    return hn::GetLane(hn::SumOfLanes(D(), all));
  }
};

// Asks for the line of a row to come that its vector i begins, once a line if called for every
// vector. Where rows come from memory (which is where outputs are too large to be kept) this saves
// 5 to 8 %; where they come from a cache it would cost as much.
template <bool FromMemory, class T>
HWY_INLINE void PrefetchVector(const T* row, std::int64_t i) {
  constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));
  if (FromMemory && (kLanes >= kLine || i % kLine == 0)) hwy::Prefetch(row + i);
}

// Two vectors side by side. `Stream` writes past the caches, to a multiple of what is written.
template <bool Stream>
HWY_INLINE void StorePair(V low, V high, float* to) {
  if (Stream) {
    hn::Stream(low, D(), to);
    hn::Stream(high, D(), to + kLanes);
  } else {
    Store(low, to);
    Store(high, to + kLanes);
  }
}

template <bool Stream>
HWY_INLINE void StorePair(V low, V high, hwy::bfloat16_t* to) {
#if HWY_TARGET == HWY_SCALAR
  Store(low, to);
  Store(high, to + kLanes);
#else
  const hn::Repartition<std::uint16_t, D> halves;
  const auto both = hn::ConcatOdd(halves, hn::BitCast(halves, RoundUpperHalf(D(), high)),
                                  hn::BitCast(halves, RoundUpperHalf(D(), low)));
  auto* const bits = reinterpret_cast<std::uint16_t*>(to);
  Stream ? hn::Stream(both, halves, bits) : hn::StoreU(both, halves, bits);
#endif
}

#if HWY_TARGET == HWY_AVX3
// bfloat16 where the CPU rounds pairs of vectors itself (AVX-512 BF16, which Highway 1.0 does not
// have): one instruction in place of some sixteen. It flushes subnormals to zero.
struct ConvertedBfloat16 {
  std::uint16_t bits;
};

HWY_INLINE V Load(const ConvertedBfloat16* from) {
  return Load(reinterpret_cast<const hwy::bfloat16_t*>(from));
}

HWY_INLINE void Store(V value, ConvertedBfloat16* to) {
  Store(value, reinterpret_cast<hwy::bfloat16_t*>(to));
}

template <bool Stream>
HWY_INLINE void StorePair(V low, V high, ConvertedBfloat16* to) {
  const hn::Repartition<std::uint16_t, D> halves;
  hn::Vec<decltype(halves)> both;
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both.raw) : "v"(high.raw), "v"(low.raw));
  auto* const bits = reinterpret_cast<std::uint16_t*>(to);
  Stream ? hn::Stream(both, halves, bits) : hn::StoreU(both, halves, bits);
}
#endif

// Calls `run(std::bool_constant<stream>(), T())` with the type that T is in memory.
template <class Run>
void WithRowTypes(DType dtype, bool stream, const Run& run) {
  const auto with_type = [&](auto streams) {
    if (dtype == DType::kFloat32) return run(streams, float());
#if HWY_TARGET == HWY_AVX3
    if (use_bf16_dot()) return run(streams, ConvertedBfloat16());
#endif
    run(streams, hwy::bfloat16_t());
  };
  stream ? with_type(std::true_type()) : with_type(std::false_type());
}

// to[i] = value(i, lanes) for a whole row. `Stream` writes past the caches: call hwy::FlushStream()
// when all is written.
template <bool Stream, class T, class Value>
HWY_INLINE void WriteRow(T* to, std::int64_t count, const Value& value) {
  std::int64_t i = 0;
  if (Stream) {  // two vectors at an address that is a multiple of their size
    constexpr std::uintptr_t kBytes = 2 * kLanes * sizeof(T);
    const auto past = reinterpret_cast<std::uintptr_t>(to) % kBytes;
    const auto head =
        std::min(count, static_cast<std::int64_t>((kBytes - past) % kBytes / sizeof(T)));
    while (i < head) {
      const FirstLanes lanes{std::min<std::int64_t>(kLanes, head - i)};
      lanes.store(value(i, lanes), to + i);
      i += lanes.count;
    }
  }
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    const V low = value(i, AllLanes()), high = value(i + kLanes, AllLanes());
    StorePair<Stream>(low, high, to + i);
  }
  for (; i + kLanes <= count; i += kLanes) Store(value(i, AllLanes()), to + i);
  if (i < count) StorePart(value(i, FirstLanes{count - i}), to + i, count - i);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
