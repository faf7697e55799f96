// Softmax reads each row once and writes it once (bfloat16: 4 bytes an element forward, 6
// backward): a row lies in the registers of the threads that share it while its maximum and its sum
// are found. Rows that can't be moved in packs of 16 bytes, or are too long, are read again for
// each of the three passes, out of the second-level cache.

#include <algorithm>
#include <cmath>

#include "backend/cuda/call.h"
#include "backend/cuda/rows.cuh"
#include "backend/table.h"
#include "graft/softmax.h"

namespace graft::cuda {
namespace {

// e^(scale · (x − largest)). A tiny scale would make differences that matter overflow, were they
// not made small before; at others `before` is 1.
struct Power {
  float before, after, after_in_powers_of_2;

  explicit Power(float scale)
      : before(scale < 1e-30f ? 0x1p-64f : 1.0f),
        after(scale / before),
        after_in_powers_of_2(std::min(1.442695041f * after, 3e38f)) {}

  /// Of x and the largest after `before` is in them. float32 wants its last digits, which a product
  /// with log2(e) rounds.
  template <class T>
  __device__ float of(float x, float largest) const {
    if constexpr (std::is_same_v<T, float>) return expf((x - largest) * after);
    return power_of_2((x - largest) * after_in_powers_of_2);
  }
};

template <class T, int Packs>
__global__ void __launch_bounds__(kHandThreads, kHandBlocks)
    softmax_rows(RowPlan plan, std::int64_t rows, int columns, Rows<const T> x, Power power,
                 Rows<T> y) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  Team<false> team(plan, exchange);
  const RowInHand<T, Packs> hand(plan, team, columns);
  if (hand.row() >= rows) return;
  constexpr int kPack = kPackSize<T>;
  Pack<T, kPack> packs[Packs];
  hand.load(x, -INFINITY, packs);
  team.begin();
  float z[Packs][kPack], largest[1] = {-INFINITY}, sum[1] = {0};
#pragma unroll
  for (int k = 0; k < Packs; ++k) unpack(packs[k], z[k]);
  if (power.before != 1) {
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
#pragma unroll
      for (int e = 0; e < kPack; ++e) z[k][e] *= power.before;
    }
  }
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) largest[0] = fmaxf(largest[0], z[k][e]);
  }
  team.reduce(largest, Largest());
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
    if (!hand.has(k)) continue;
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      sum[0] += z[k][e] = power.template of<T>(z[k][e], largest[0]);
    }
  }
  team.reduce(sum, Add());
  const float share = 1.0f / sum[0];
  T* const to = hand.mine(y);
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
    if (!hand.has(k)) continue;
#pragma unroll
    for (int e = 0; e < kPack; ++e) z[k][e] *= share;
    store(z[k], to + k * hand.kApart);
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, 1)
    softmax_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns, Rows<const T> x,
                     Power power, Rows<T> y) {
  __shared__ Exchange exchange;
  Team<false> team(plan, exchange);
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* const from = x.row(row);
    T* const to = y.row(row);
    float largest[1] = {-INFINITY}, sum[1] = {0};
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      largest[0] = fmaxf(largest[0], to_float(from[i]) * power.before);
    }
    team.reduce(largest, Largest());
    const auto power_of = [&](T value) {
      return power.template of<T>(to_float(value) * power.before, largest[0]);
    };
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      sum[0] += power_of(from[i]);
    }
    team.reduce(sum, Add());
    const float share = 1.0f / sum[0];
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      to[i] = from_float<T>(power_of(from[i]) * share);
    }
  }
}

template <class T, int Packs>
__global__ void __launch_bounds__(kHandThreads, kHandBlocks)
    softmax_backward_rows(RowPlan plan, std::int64_t rows, int columns, Rows<const T> dy,
                          Rows<const T> y, float scale, Rows<T> dx) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  Team<false> team(plan, exchange);
  const RowInHand<T, Packs> hand(plan, team, columns);
  if (hand.row() >= rows) return;
  constexpr int kPack = kPackSize<T>;
  Pack<T, kPack> g[Packs], p[Packs];
  hand.load(dy, 0, g);
  hand.load(y, 0, p);
  team.begin();
  float dot[1] = {0};
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
    float gs[kPack], ps[kPack];
    unpack(g[k], gs), unpack(p[k], ps);
#pragma unroll
    for (int e = 0; e < kPack; ++e) dot[0] += gs[e] * ps[e];
    keep_packed(g[k]), keep_packed(p[k]);
  }
  team.reduce(dot, Add());
  T* const to = hand.mine(dx);
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
    if (!hand.has(k)) continue;
    float gs[kPack], ps[kPack];
    unpack(g[k], gs), unpack(p[k], ps);
#pragma unroll
    for (int e = 0; e < kPack; ++e) gs[e] = ps[e] * scale * (gs[e] - dot[0]);
    store(gs, to + k * hand.kApart);
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, 1)
    softmax_backward_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns,
                              Rows<const T> dy, Rows<const T> y, float scale, Rows<T> dx) {
  __shared__ Exchange exchange;
  Team<false> team(plan, exchange);
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T *const g = dy.row(row), *const p = y.row(row);
    T* const to = dx.row(row);
    float dot[1] = {0};
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      dot[0] += to_float(g[i]) * to_float(p[i]);
    }
    team.reduce(dot, Add());
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      to[i] = from_float<T>(to_float(p[i]) * scale * (to_float(g[i]) - dot[0]));
    }
  }
}

}  // namespace

Support supports(const SoftmaxForward& p) { return floats_on_cuda("x", p.x); }
Support supports(const SoftmaxBackward& p) { return floats_on_cuda("dy", p.dy); }

std::size_t scratch_bytes(const SoftmaxForward&, int) { return 0; }
std::size_t scratch_bytes(const SoftmaxBackward&, int) { return 0; }

void softmax_forward(Context& context, const SoftmaxForward& p) {
  Call call("softmax", context);
  call.reaches("x", p.x), call.reaches("y", p.y);
  const std::int64_t rows = p.x.dim(0), columns = p.x.dim(1);
  if (p.x.size() == 0) return;
  const RowPlan plan = plan_rows(call.facts(), {.rows = rows,
                                                .columns = columns,
                                                .element_bytes = size_of(p.x.dtype()),
                                                .in_packs = in_packs({p.x, p.y})});
  with_type(p.x.dtype(), [&]<class T>(std::type_identity<T>) {
    const auto x = rows_of<T>(p.x);
    const auto y = rows_of<T>(p.y);
    if (plan.fits) {
      const auto kernel =
          plan.packs == kManyPacks ? softmax_rows<T, kManyPacks> : softmax_rows<T, kFewPacks>;
      launch_rows(call, plan, kernel, rows, static_cast<int>(columns), x, Power(p.scale), y);
    } else {
      launch_rows(call, any_rows_plan(rows, columns), softmax_any_rows<T>, rows, columns, x,
                  Power(p.scale), y);
    }
  });
}

void softmax_backward(Context& context, const SoftmaxBackward& p) {
  Call call("softmax_backward", context);
  call.reaches("dy", p.dy), call.reaches("y", p.y), call.reaches("dx", p.dx);
  const std::int64_t rows = p.dy.dim(0), columns = p.dy.dim(1);
  if (p.dy.size() == 0) return;
  const RowPlan plan = plan_rows(call.facts(), {.rows = rows,
                                                .columns = columns,
                                                .element_bytes = size_of(p.dy.dtype()),
                                                .in_packs = in_packs({p.dy, p.y, p.dx})});
  with_type(p.dy.dtype(), [&]<class T>(std::type_identity<T>) {
    const auto dy = rows_of<T>(p.dy), y = rows_of<T>(p.y);
    const auto dx = rows_of<T>(p.dx);
    if (plan.fits) {
      const auto kernel = plan.packs == kManyPacks ? softmax_backward_rows<T, kManyPacks>
                                                   : softmax_backward_rows<T, kFewPacks>;
      launch_rows(call, plan, kernel, rows, static_cast<int>(columns), dy, y, p.scale, dx);
    } else {
      launch_rows(call, any_rows_plan(rows, columns), softmax_backward_any_rows<T>, rows, columns,
                  dy, y, p.scale, dx);
    }
  });
}

}  // namespace graft::cuda
