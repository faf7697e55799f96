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
#include "weight/cpu/convert_pairs-inl.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
#pragma GCC target("avx512bf16")
namespace graft::cpu {
namespace HWY_NAMESPACE {
namespace {

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
  static constexpr PanelFormat kPanels = kPairPanels<PairByConvert>;
  static constexpr int kPerStep = kPanels.k_per_step;
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
