// What the machine can do at most: register-only multiply-adds, and plain loops over memory.
#include "benchmarks/graft_bench/peak.h"

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchmarks/graft_bench/peak.cc"
#include "hwy/foreach_target.h"
//
#include <cstddef>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace graft::bench {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Twelve chains hide the multiply-add's latency (4 or 5 cycles, two a cycle at most). Returns the
// operations done.
HWY_ATTR double MultiplyAdds(std::int64_t steps, float seed, float* result) {
  const hn::ScalableTag<float> d;
  const auto scale = hn::Set(d, 0.5f);
  const auto add = hn::Set(d, seed);
  auto a0 = add, a1 = add, a2 = add, a3 = add, a4 = add, a5 = add;
  auto a6 = add, a7 = add, a8 = add, a9 = add, a10 = add, a11 = add;
  for (std::int64_t i = 0; i < steps; ++i) {
    a0 = hn::MulAdd(a0, scale, add);
    a1 = hn::MulAdd(a1, scale, add);
    a2 = hn::MulAdd(a2, scale, add);
    a3 = hn::MulAdd(a3, scale, add);
    a4 = hn::MulAdd(a4, scale, add);
    a5 = hn::MulAdd(a5, scale, add);
    a6 = hn::MulAdd(a6, scale, add);
    a7 = hn::MulAdd(a7, scale, add);
    a8 = hn::MulAdd(a8, scale, add);
    a9 = hn::MulAdd(a9, scale, add);
    a10 = hn::MulAdd(a10, scale, add);
    a11 = hn::MulAdd(a11, scale, add);
  }
  const auto left = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(a4, a5));
  const auto right = hn::Add(hn::Add(hn::Add(a6, a7), hn::Add(a8, a9)), hn::Add(a10, a11));
  *result = hn::GetLane(hn::Add(left, right));
  return 2.0 * 12.0 * static_cast<double>(steps) * static_cast<double>(hn::Lanes(d));
}

// The loops over memory: `count` floats, a multiple of 1024. Four streams, each asking for what
// comes a page on, keep more lines under way than a core's prefetcher does by itself.
constexpr std::int64_t kAhead = 1024;

HWY_ATTR float Sum(const float* from, std::int64_t count) {
  const hn::ScalableTag<float> d;
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t stream = count / 4;
  for (std::int64_t i = 0; i < stream; i += lanes) {
    const float* const at = from + i;
    for (int j = 0; j < 4; ++j) hwy::Prefetch(at + j * stream + kAhead);
    s0 = hn::Add(s0, hn::LoadU(d, at));
    s1 = hn::Add(s1, hn::LoadU(d, at + stream));
    s2 = hn::Add(s2, hn::LoadU(d, at + 2 * stream));
    s3 = hn::Add(s3, hn::LoadU(d, at + 3 * stream));
  }
  return hn::GetLane(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
}

HWY_ATTR float Fill(float* to, std::int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto value = hn::Set(d, 0.5f);
  for (std::int64_t i = 0; i < count; i += lanes) hn::StoreU(value, d, to + i);
  return 0.5f;
}

// One half to the other.
HWY_ATTR float Copy(float* block, std::int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  float* const to = block + count / 2;
  for (std::int64_t i = 0; i < count / 2; i += lanes) {
    hwy::Prefetch(block + i + kAhead);
    hn::StoreU(hn::LoadU(d, block + i), d, to + i);
  }
  return *to;
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "graft/supports.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define GRAFT_BENCH_BF16_DOT 1
#endif

namespace graft::bench {
namespace {

HWY_EXPORT(MultiplyAdds);
HWY_EXPORT(Sum);
HWY_EXPORT(Fill);
HWY_EXPORT(Copy);

using Clock = std::chrono::steady_clock;
std::atomic<float> sink{0.0f};  // keeps results alive

// Runs `work(thread)`, which returns how much it did, on all threads at once; the most a second out
// of several tries.
template <class Work>
double best_rate(int threads, const Work& work) {
  double best = 0.0;
  for (int attempt = 0; attempt < 3; ++attempt) {
    std::atomic<int> waiting{threads};
    std::vector<double> done(static_cast<std::size_t>(threads));
    std::vector<Clock::time_point> begin(done.size());
    std::vector<Clock::time_point> end(done.size());
    const auto one = [&](std::size_t thread) {
      waiting.fetch_sub(1);
      while (waiting.load() > 0) std::this_thread::yield();
      begin[thread] = Clock::now();
      done[thread] = work(thread);
      end[thread] = Clock::now();
    };
    std::vector<std::thread> others;
    for (std::size_t i = 1; i < done.size(); ++i) others.emplace_back(one, i);
    one(0);
    for (std::thread& other : others) other.join();
    double total = 0.0;
    for (const double amount : done) total += amount;
    const std::chrono::duration<double> seconds =
        *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
    best = std::max(best, total / seconds.count());
  }
  return best;
}

#if GRAFT_BENCH_BF16_DOT
// One vdpbf16ps is 32 multiplications and additions.
__attribute__((target("avx512f,avx512bf16"))) double bf16_dots(std::int64_t steps, float seed,
                                                               float* result) {
  const __m512 start = _mm512_set1_ps(seed);
  const __m512bh left = _mm512_cvtne2ps_pbh(start, start);
  const __m512bh right = left;
  __m512 a0 = start, a1 = start, a2 = start, a3 = start, a4 = start, a5 = start;
  __m512 a6 = start, a7 = start, a8 = start, a9 = start, a10 = start, a11 = start;
  for (std::int64_t i = 0; i < steps; ++i) {
    a0 = _mm512_dpbf16_ps(a0, left, right);
    a1 = _mm512_dpbf16_ps(a1, left, right);
    a2 = _mm512_dpbf16_ps(a2, left, right);
    a3 = _mm512_dpbf16_ps(a3, left, right);
    a4 = _mm512_dpbf16_ps(a4, left, right);
    a5 = _mm512_dpbf16_ps(a5, left, right);
    a6 = _mm512_dpbf16_ps(a6, left, right);
    a7 = _mm512_dpbf16_ps(a7, left, right);
    a8 = _mm512_dpbf16_ps(a8, left, right);
    a9 = _mm512_dpbf16_ps(a9, left, right);
    a10 = _mm512_dpbf16_ps(a10, left, right);
    a11 = _mm512_dpbf16_ps(a11, left, right);
  }
  const __m512 low = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(a0, a1), _mm512_add_ps(a2, a3)),
                                   _mm512_add_ps(a4, a5));
  const __m512 high = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(a6, a7), _mm512_add_ps(a8, a9)),
                                    _mm512_add_ps(a10, a11));
  *result = _mm512_cvtss_f32(_mm512_add_ps(low, high));
  return 2.0 * 12.0 * 32.0 * static_cast<double>(steps);
}
#endif

// About 4 ms a try.
constexpr std::int64_t kSteps = 800'000;

template <class Chains>
double peak(int threads, const Chains& chains) {
  return best_rate(threads,
                   [&](std::size_t) {
                     float result = 0.0f;
                     const double done = chains(kSteps, 0.001f, &result);
                     sink.store(result);
                     return done;
                   }) /
         1e9;
}

}  // namespace

double peak_gflops_f32(int threads) {
  (void)cpu_isa();  // settles what Highway dispatches to
  return peak(threads, [](std::int64_t steps, float seed, float* result) {
    return HWY_DYNAMIC_DISPATCH(MultiplyAdds)(steps, seed, result);
  });
}

double peak_gflops_bf16(int threads) {
#if GRAFT_BENCH_BF16_DOT
  if (std::string(cpu_isa()) == "avx512_bf16") return peak(threads, bf16_dots);
#endif
  (void)threads;
  return 0.0;
}

double moved_gbs(int threads, double bytes) {
  (void)cpu_isa();
  constexpr std::int64_t kBlock = 1024, kLeastFloats = std::int64_t{1} << 22;
  const auto each = static_cast<std::int64_t>(bytes / 4.0 / threads);
  const std::int64_t count = std::max<std::int64_t>(1, each / kBlock) * kBlock;
  std::vector<std::vector<float>> parts(static_cast<std::size_t>(threads),
                                        std::vector<float>(static_cast<std::size_t>(count)));
  const std::int64_t rounds = std::max<std::int64_t>(1, kLeastFloats / count);
  const auto rate_of = [&](const auto& loop) {
    return best_rate(threads, [&](std::size_t thread) {
      float result = 0.0f;
      for (std::int64_t i = 0; i < rounds; ++i) result += loop(parts[thread].data());
      sink.store(result);
      return 4.0 * static_cast<double>(count * rounds);
    });
  };
  const double read = rate_of([&](float* part) { return HWY_DYNAMIC_DISPATCH(Sum)(part, count); });
  const double written =
      rate_of([&](float* part) { return HWY_DYNAMIC_DISPATCH(Fill)(part, count); });
  const double copied =
      rate_of([&](float* part) { return HWY_DYNAMIC_DISPATCH(Copy)(part, count); });
  return std::max({read, written, copied}) / 1e9;
}

}  // namespace graft::bench

#endif  // HWY_ONCE
