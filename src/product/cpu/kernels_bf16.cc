// The kernels on AVX-512 BF16 (vdpbf16ps), which Highway 1.0 does not have. One target only; behind
// use_bf16_dot(), which asks the CPU.

#include "backend/cpu/targets.h"
#include "product/cpu/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "product/cpu/kernels_bf16.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#if HWY_ARCH_X86
#include <immintrin.h>
#endif

#if HWY_TARGET == HWY_AVX3
// The compiler never makes these instructions by itself, so what is shared with kernels.cc is the
// same code in both.
#pragma GCC push_options
#pragma GCC target("avx512bf16")
#endif
#include "product/cpu/multiply-inl.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
#pragma GCC target("avx512bf16")
namespace graft::cpu {
namespace HWY_NAMESPACE {
namespace {

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

// Pairs of two rows, rounded where they are float32.
HWY_INLINE __m512i PairRows(const float* row, const float* next) {
  return PairByConvert::Pair(Load(row), Load(next)).raw;
}
HWY_INLINE __m512i PairRows(const hwy::bfloat16_t* row, const hwy::bfloat16_t* next) {
  HWY_ALIGN static constexpr std::uint16_t kInterleave[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
  const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(next));
  return _mm512_permutex2var_epi16(_mm512_castsi256_si512(even), _mm512_load_si512(kInterleave),
                                   _mm512_castsi256_si512(odd));
}

struct MultiplyDot {
  static constexpr int kPerStep = 2;
  static constexpr int kXPerStep = 1;
  using X = std::uint32_t;
  using W = std::uint32_t;

  // acc += x · w over one pair a lane.
  static HWY_INLINE V DotAdd(__m512i x, __m512i w, V acc) {
    return V{_mm512_dpbf16_ps(acc.raw, (__m512bh)x, (__m512bh)w)};
  }

  template <int Rows>
  static HWY_INLINE void Step(const std::uint32_t* HWY_RESTRICT x,
                              const std::uint32_t* HWY_RESTRICT w, V (&acc)[Rows][2]) {
    const __m512i w0 = _mm512_loadu_si512(w);
    const __m512i w1 = _mm512_loadu_si512(w + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const __m512i xi = _mm512_set1_epi32(static_cast<int>(x[i]));
      acc[i][0] = DotAdd(xi, w0, acc[i][0]);
      acc[i][1] = DotAdd(xi, w1, acc[i][1]);
    }
  }

  static constexpr int kShrinkChains = 2;
  template <int Vectors>
  static HWY_INLINE void ShrinkStep(const std::uint32_t* HWY_RESTRICT x, std::int64_t x_stride,
                                    const std::uint32_t* HWY_RESTRICT a,
                                    V (&acc)[kShrink][Vectors]) {
    __m512i xv[Vectors];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) xv[v] = _mm512_loadu_si512(x + v * x_stride);
#pragma GCC unroll 16
    for (int j = 0; j < kShrink; ++j) {
      const __m512i aj = _mm512_set1_epi32(static_cast<int>(a[j]));
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) acc[j][v] = DotAdd(xv[v], aj, acc[j][v]);
    }
  }

  static HWY_INLINE void ShrinkWideStep(const std::uint32_t* HWY_RESTRICT x,
                                        const std::uint32_t* HWY_RESTRICT a, V (&acc)[kRows]) {
    const __m512i columns = _mm512_loadu_si512(a);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      acc[i] = DotAdd(_mm512_set1_epi32(static_cast<int>(x[i])), columns, acc[i]);
    }
  }

  // Outer products take two rows at a time, as pairs.
  static constexpr int kRowsPerOuterStep = 2;
  using C = std::uint32_t;
  template <int Coefficients>
  static HWY_INLINE void PackCoefficients(const float* c, const float* next,
                                          std::uint32_t* packed) {
    PackPairStep<PairByConvert>(c, next, Coefficients, Coefficients, packed);
  }

  template <int Coefficients, int Vectors, class T>
  static HWY_INLINE void OuterStep(const T* HWY_RESTRICT row, const T* HWY_RESTRICT next,
                                   const std::uint32_t* HWY_RESTRICT coefficients,
                                   V (&acc)[Coefficients][Vectors]) {
    __m512i x[Vectors];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) x[v] = PairRows(row + v * kLanes, next + v * kLanes);
#pragma GCC unroll 16
    for (int j = 0; j < Coefficients; ++j) {
      const __m512i cj = _mm512_set1_epi32(static_cast<int>(coefficients[j]));
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) acc[j][v] = DotAdd(cj, x[v], acc[j][v]);
    }
  }

  static void PackX(const Source& x, int rows, std::int64_t k, int stride, void* panel) {
    PackPairs<PairByConvert>(x, rows, k, stride, panel);
  }
  static void PackW(const Source& w, int cols, std::int64_t k, int stride, void* panel) {
    PackPairs<PairByConvert>(w, cols, k, stride, panel);
  }
};

}  // namespace

const Kernels* DotKernels() { return MakeKernels<MultiplyDot>(); }

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();
#pragma GCC pop_options

#endif  // HWY_TARGET == HWY_AVX3

#if HWY_ONCE
namespace graft::cpu {

#if HWY_TARGETS & HWY_AVX3
namespace N_AVX3 {
const Kernels* DotKernels();
}
const Kernels& bf16_dot_kernels() { return *N_AVX3::DotKernels(); }
#else
// Never called: use_bf16_dot() says no where there is no AVX-512.
const Kernels& bf16_dot_kernels() { return kernels_for(DType::kFloat32); }
#endif

}  // namespace graft::cpu
#endif
