// Softmax reads each row once and writes it once (bfloat16: 4 bytes an element forward, 6
// backward): a row lies in the registers of the threads that share it while its maximum and its sum
// are found. Rows that can't be moved in packs of 16 bytes, or are too long, are read
// again for each of the three passes, out of the second-level cache.

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

struct ForwardArgs {
  Matrix x;
  Power power;
  Matrix y;
};

template <class T, int Packs>
__device__ void softmax_of_row(const RowPlan& plan, std::int64_t rows, int columns,
                               const ForwardArgs& p, Exchange& exchange) {
  constexpr int kPack = kPackSize<T>;
  Team<false> team(plan, exchange);
  const RowInHand<T, Packs> hand(plan, team, columns);
  if (hand.row() >= rows) return;
  Pack<T, kPack> packs[Packs];
  hand.load(p.x, -INFINITY, packs);
  team.begin();
  float z[Packs][kPack], largest[1] = {-INFINITY}, sum[1] = {0};
#pragma unroll
  for (int k = 0; k < Packs; ++k) unpack(packs[k], z[k]);
  if (p.power.before != 1) {
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
#pragma unroll
      for (int e = 0; e < kPack; ++e) z[k][e] *= p.power.before;
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
      sum[0] += z[k][e] = p.power.template of<T>(z[k][e], largest[0]);
    }
  }
  team.reduce(sum, Add());
  const float share = 1.0f / sum[0];
  T* const y = hand.mine(p.y);
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
    if (!hand.has(k)) continue;
#pragma unroll
    for (int e = 0; e < kPack; ++e) z[k][e] *= share;
    store(z[k], y + k * hand.kApart);
  }
}

// The same of 16 bits where registers have no room for all of a row's floats: what is kept are the
// packs, and powers are made twice.
template <class T>
__device__ void softmax_of_long_row(const RowPlan& plan, std::int64_t rows, int columns,
                                    const ForwardArgs& p, Exchange& exchange) {
  constexpr int kPack = kPackSize<T>, kPacks = kLongPacks;
  Team<false> team(plan, exchange);
  const RowInHand<T, kPacks> hand(plan, team, columns);
  if (hand.row() >= rows) return;
  Pack<T, kPack> packs[kPacks];
  hand.load(p.x, -INFINITY, packs);
  team.begin();
#pragma unroll
  for (int k = 0; k < kPacks; ++k) keep_packed(packs[k]);
  const auto visit = [&](auto each) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!hand.has(k)) continue;
      float z[kPack];
      unpack(packs[k], z);
#pragma unroll
      for (int e = 0; e < kPack; ++e) z[e] *= p.power.before;
      each(k, z);
      keep_packed(packs[k]);
    }
  };
  float largest[1] = {-INFINITY}, sum[1] = {0};
  visit([&](int, const float(&z)[kPack]) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) largest[0] = fmaxf(largest[0], z[e]);
  });
  team.reduce(largest, Largest());
  visit([&](int, const float(&z)[kPack]) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) sum[0] += p.power.template of<T>(z[e], largest[0]);
  });
  team.reduce(sum, Add());
  const float share = 1.0f / sum[0];
  T* const y = hand.mine(p.y);
  visit([&](int k, float(&z)[kPack]) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) z[e] = p.power.template of<T>(z[e], largest[0]) * share;
    store(z, y + k * hand.kApart);
  });
}

template <int Packs>
__global__ void __launch_bounds__(kHandThreads, kHandBlocks)
    softmax_rows(const __grid_constant__ RowPlan plan, std::int64_t rows, int columns, DType dtype,
                 const __grid_constant__ ForwardArgs p) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  let_next_kernel_start();
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    if constexpr (Packs <= kHandPacks) {
      softmax_of_row<T, Packs>(plan, rows, columns, p, exchange);
    } else if constexpr (sizeof(T) == 2) {
      softmax_of_long_row<T>(plan, rows, columns, p, exchange);
    }
  });
}

__global__ void __launch_bounds__(kRowThreads, 1)
    softmax_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns, DType dtype,
                     ForwardArgs p) {
  __shared__ Exchange exchange;
  Team<false> team(plan, exchange);
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
      const T* const from = p.x.row<const T>(row);
      T* const to = p.y.row<T>(row);
      float largest[1] = {-INFINITY}, sum[1] = {0};
      for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
        largest[0] = fmaxf(largest[0], to_float(from[i]) * p.power.before);
      }
      team.reduce(largest, Largest());
      const auto power_of = [&](T value) {
        return p.power.template of<T>(to_float(value) * p.power.before, largest[0]);
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
  });
}

// dx = scale · y ∘ (dy − Σ dy ∘ y)
struct BackwardArgs {
  Matrix dy, y;
  float scale;
  Matrix dx;
};

template <class T, int Packs>
__device__ void softmax_backward_of_row(const RowPlan& plan, std::int64_t rows, int columns,
                                        const BackwardArgs& p, Exchange& exchange) {
  constexpr int kPack = kPackSize<T>;
  Team<false> team(plan, exchange);
  const RowInHand<T, Packs> hand(plan, team, columns);
  if (hand.row() >= rows) return;
  Pack<T, kPack> dys[Packs], ys[Packs];
  hand.load(p.dy, 0, dys);
  hand.load(p.y, 0, ys);
  team.begin();
  float dot[1] = {0};
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
    float dy[kPack], y[kPack];
    unpack(dys[k], dy), unpack(ys[k], y);
#pragma unroll
    for (int e = 0; e < kPack; ++e) dot[0] += dy[e] * y[e];
    keep_packed(dys[k]), keep_packed(ys[k]);
  }
  team.reduce(dot, Add());
  T* const dx = hand.mine(p.dx);
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
    if (!hand.has(k)) continue;
    float dy[kPack], y[kPack];
    unpack(dys[k], dy), unpack(ys[k], y);
#pragma unroll
    for (int e = 0; e < kPack; ++e) dy[e] = y[e] * p.scale * (dy[e] - dot[0]);
    store(dy, dx + k * hand.kApart);
  }
}

template <int Packs>
__global__ void __launch_bounds__(kHandThreads, kHandBlocks)
    softmax_backward_rows(const __grid_constant__ RowPlan plan, std::int64_t rows, int columns,
                          DType dtype, const __grid_constant__ BackwardArgs p) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  let_next_kernel_start();
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    softmax_backward_of_row<T, Packs>(plan, rows, columns, p, exchange);
  });
}

__global__ void __launch_bounds__(kRowThreads, 1)
    softmax_backward_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns, DType dtype,
                              BackwardArgs p) {
  __shared__ Exchange exchange;
  Team<false> team(plan, exchange);
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
      const T* const dy = p.dy.row<const T>(row);
      const T* const y = p.y.row<const T>(row);
      T* const dx = p.dx.row<T>(row);
      float dot[1] = {0};
      for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
        dot[0] += to_float(dy[i]) * to_float(y[i]);
      }
      team.reduce(dot, Add());
      for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
        dx[i] = from_float<T>(to_float(y[i]) * p.scale * (to_float(dy[i]) - dot[0]));
      }
    }
  });
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
  const RowPlan plan = plan_rows(call.facts(),
                                 {.rows = rows,
                                  .columns = columns,
                                  .element_bytes = size_of(p.x.dtype()),
                                  .in_packs = in_packs({p.x, p.y})},
                                 p.x.dtype() == DType::kFloat32 ? kHandPacks : kLongPacks);
  const ForwardArgs args{matrix_of(p.x), Power(p.scale), matrix_of(p.y)};
  if (plan.fits) {
    const auto kernel = plan.packs > kHandPacks  ? softmax_rows<kLongPacks>
                        : plan.packs > kFewPacks ? softmax_rows<kHandPacks>
                                                 : softmax_rows<kFewPacks>;
    launch_rows(call, plan, kernel, rows, static_cast<int>(columns), p.x.dtype(), args);
  } else {
    launch_rows(call, any_rows_plan(rows, columns), softmax_any_rows, rows, columns, p.x.dtype(),
                args);
  }
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
  const BackwardArgs args{matrix_of(p.dy), matrix_of(p.y), p.scale, matrix_of(p.dx)};
  if (plan.fits) {
    const auto kernel = plan.packs > kFewPacks ? softmax_backward_rows<kHandPacks>
                                               : softmax_backward_rows<kFewPacks>;
    launch_rows(call, plan, kernel, rows, static_cast<int>(columns), p.dy.dtype(), args);
  } else {
    launch_rows(call, any_rows_plan(rows, columns), softmax_backward_any_rows, rows, columns,
                p.dy.dtype(), args);
  }
}

}  // namespace graft::cuda
