// Pairs of bfloat16 made by AVX-512 BF16's conversion, which Highway 1.0 does not have: for sources
// that are compiled for it, where HWY_TARGET is HWY_AVX3.
#if defined(GRAFT_CPU_CONVERT_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_CONVERT_PAIRS_INL_H_
#undef GRAFT_CPU_CONVERT_PAIRS_INL_H_
#else
#define GRAFT_CPU_CONVERT_PAIRS_INL_H_
#endif

#include <cstdint>

#include "weight/cpu/pack-inl.h"

#if HWY_TARGET == HWY_AVX3
#include <immintrin.h>

HWY_BEFORE_NAMESPACE();
#pragma GCC target("avx512bf16")
namespace graft::cpu {
namespace HWY_NAMESPACE {

// Rounds two vectors to bfloat16 pairs; like the dot product, it flushes subnormals to zero.
struct PairByConvert {
  static HWY_INLINE VU Pair(V even, V odd) {
    HWY_ALIGN static constexpr std::uint16_t kInterleave[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd.raw, even.raw);
    return VU{_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both)};
  }

  static HWY_INLINE VU8 Pair(V8 even, V8 odd) {
    HWY_ALIGN static constexpr std::uint16_t kInterleave[16] = {0, 8,  1, 9,  2, 10, 3, 11,
                                                                4, 12, 5, 13, 6, 14, 7, 15};
    const __m256i both = (__m256i)_mm256_cvtne2ps_pbh(odd.raw, even.raw);
    return VU8{_mm256_permutexvar_epi16(
        _mm256_load_si256(reinterpret_cast<const __m256i*>(kInterleave)), both)};
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();
#endif

#endif  // Highway's toggle
