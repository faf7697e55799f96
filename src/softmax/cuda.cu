// Softmax reads each row once and writes it once (bfloat16: 4 bytes an element forward, 6
// backward): a row lies in the registers of the threads that share it while its maximum and its sum
// are found. Rows that can't be moved in packs of 16 bytes, or are too long, are read again for
// each of the three passes, out of the second-level cache.

#include <cmath>

#include "backend/cuda/call.h"
#include "backend/cuda/row_flow.cuh"
#include "backend/table.h"
#include "graft/softmax.h"

namespace graft::cuda {
namespace {

constexpr int kFewPacks = 2;  // of a row in each thread, twice that in the deep form

// e^(scale · (x − largest)). A tiny scale would make differences that matter overflow, were they
// not made small before.
struct Power {
  float before, after;

  explicit Power(float scale) : before(scale < 1e-30f ? 0x1p-64f : 1.0f), after(scale / before) {}

  template <class T>
  __device__ float operator()(float x, float largest) const {
    const float t = (x * before - largest * before) * after;
    // A product with log2(e) rounds; float32 wants its last digits.
    return std::is_same_v<T, float> ? expf(t) : __expf(t);
  }
};

template <class T, bool Deep>
__global__ void __launch_bounds__(row_threads(Deep), 1)
    softmax_rows(RowPlan plan, std::int64_t rows, int columns, Rows<const T> x, Power power,
                 Rows<T> y) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  Team team(plan, exchange);
  constexpr int kPack = kPackSize<T>, kPacks = row_packs(kFewPacks, Deep);
  RowFlow<T, Deep, kFewPacks, 1> flow(plan, team, rows, columns, {x});
  for (; flow.more(); flow.go_on()) {
    Pack<T, kPack> packs[1][kPacks];
    flow.take(packs);
    float z[kPacks][kPack], largest[1] = {-INFINITY}, sum[1] = {0};
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      unpack(packs[0][k], z[k]);
      if (!flow.has(k)) continue;
#pragma unroll
      for (int e = 0; e < kPack; ++e) largest[0] = fmaxf(largest[0], z[k][e]);
    }
    team.reduce(largest, Largest());
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!flow.has(k)) continue;
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        sum[0] += z[k][e] = power.template operator()<T>(z[k][e], largest[0]);
      }
    }
    team.reduce(sum, Add());
    const float share = 1.0f / sum[0];
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!flow.has(k)) continue;
#pragma unroll
      for (int e = 0; e < kPack; ++e) z[k][e] *= share;
      store(z[k], y.row(flow.row()) + flow.column(k));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, 1)
    softmax_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns, Rows<const T> x,
                     Power power, Rows<T> y) {
  __shared__ Exchange exchange;
  Team team(plan, exchange);
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* const from = x.row(row);
    T* const to = y.row(row);
    float largest[1] = {-INFINITY}, sum[1] = {0};
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      largest[0] = fmaxf(largest[0], to_float(from[i]));
    }
    team.reduce(largest, Largest());
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      sum[0] += power.template operator()<T>(to_float(from[i]), largest[0]);
    }
    team.reduce(sum, Add());
    const float share = 1.0f / sum[0];
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      to[i] = from_float<T>(power.template operator()<T>(to_float(from[i]), largest[0]) * share);
    }
  }
}

template <class T, bool Deep>
__global__ void __launch_bounds__(row_threads(Deep), 1)
    softmax_backward_rows(RowPlan plan, std::int64_t rows, int columns, Rows<const T> dy,
                          Rows<const T> y, float scale, Rows<T> dx) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  Team team(plan, exchange);
  constexpr int kPack = kPackSize<T>, kPacks = row_packs(kFewPacks, Deep);
  RowFlow<T, Deep, kFewPacks, 2> flow(plan, team, rows, columns, {dy, y});
  for (; flow.more(); flow.go_on()) {
    Pack<T, kPack> packs[2][kPacks];
    flow.take(packs);
    float dot[1] = {0};
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        dot[0] += to_float(packs[0][k].values[e]) * to_float(packs[1][k].values[e]);
      }
    }
    team.reduce(dot, Add());
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!flow.has(k)) continue;
      float g[kPack], p[kPack];
      unpack(packs[0][k], g), unpack(packs[1][k], p);
#pragma unroll
      for (int e = 0; e < kPack; ++e) g[e] = p[e] * scale * (g[e] - dot[0]);
      store(g, dx.row(flow.row()) + flow.column(k));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, 1)
    softmax_backward_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns,
                              Rows<const T> dy, Rows<const T> y, float scale, Rows<T> dx) {
  __shared__ Exchange exchange;
  Team team(plan, exchange);
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
                                                .packs = kFewPacks,
                                                .inputs = 1,
                                                .in_packs = in_packs({p.x, p.y})});
  with_type(p.x.dtype(), [&]<class T>(std::type_identity<T>) {
    const auto x = rows_of<T>(p.x);
    const auto y = rows_of<T>(p.y);
    if (plan.fits) {
      const auto kernel = plan.deep ? softmax_rows<T, true> : softmax_rows<T, false>;
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
                                                .packs = kFewPacks,
                                                .inputs = 2,
                                                .in_packs = in_packs({p.dy, p.y, p.dx})});
  with_type(p.dy.dtype(), [&]<class T>(std::type_identity<T>) {
    const auto dy = rows_of<T>(p.dy), y = rows_of<T>(p.y);
    const auto dx = rows_of<T>(p.dx);
    if (plan.fits) {
      const auto kernel =
          plan.deep ? softmax_backward_rows<T, true> : softmax_backward_rows<T, false>;
      launch_rows(call, plan, kernel, rows, static_cast<int>(columns), dy, y, p.scale, dx);
    } else {
      launch_rows(call, any_rows_plan(rows, columns), softmax_backward_any_rows<T>, rows, columns,
                  dy, y, p.scale, dx);
    }
  });
}

}  // namespace graft::cuda
