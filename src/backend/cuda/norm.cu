// A norm reads each row once and writes it once (bfloat16: 4 bytes an element forward, 6 backward;
// a residual adds 4, a gradient of it 2). Sums over rows are made twice: a block keeps those of its
// own rows in registers, and a second small kernel adds up one partial sum a block.
//
// RMS norm is run as a norm whose mean is 0: what that adds to it costs nothing beside memory.
//
// Rows that can't be moved in packs of 16 bytes, or are too long, are read again for each pass, out
// of the second-level cache, and columns are summed by a pass of its own.

#include <algorithm>

#include "backend/cuda/call.h"
#include "backend/cuda/norm.h"
#include "backend/cuda/row_flow.cuh"

namespace graft::cuda {
namespace {

// What a row's outputs are computed from. The mean is the sum of two numbers: of values that lie
// close together far from zero, one has no digits left for where among them it is.
struct Moments {
  float mean = 0, rest = 0, rstd = 1, shift = 0;  // shift = −rest · rstd

  __device__ float normal(float s) const { return fmaf(s - mean, rstd, shift); }
};

// x̂ of elements of T. Those of 16 bits have so few digits that one number for the mean is enough,
// and that one multiplication and addition gives x̂ of values far from zero, too.
template <class T>
struct Normal {
  float mean, rstd, shift;

  __device__ explicit Normal(const Moments& m)
      : mean(m.mean), rstd(m.rstd), shift(sizeof(T) == 4 ? m.shift : -(m.mean + m.rest) * m.rstd) {}
  __device__ float of(float s) const { return fmaf(sizeof(T) == 4 ? s - mean : s, rstd, shift); }
};

// 1/√(v + eps), rounded right; variance or mean square v.
__device__ float rstd_of(float v, float eps) { return __frsqrt_rn(v + eps); }

struct NormShape {
  std::int64_t rows;
  int few_rows;  // as many, if there are no more than plan_flow takes
  int columns;
  bool centered;
  float eps, share;  // share = 1 / columns
};

// From what all threads of a row have of it: visit(f) calls f(s) for each of this thread's values.
// A warp finds the mean e of its n values, and their squares q around it; then, without a second
// look at the values,
//
//     E = Σ n·e / Σ n        Q = Σ (q + n·(e − E)²)
//
// over warps, and once more over blocks of a cluster, loses no digits. Means are sums of two
// numbers, as in Moments, and without a mean all of them are 0.
template <class T, class SomeTeam, class Visit>
__device__ Moments moments_of(SomeTeam& team, const Columns<T>& mine, const NormShape& shape,
                              Visit visit) {
  const Add add;
  const int columns_of_warp = mine.of_warp(team.member() / 32);
  const float share_of_warp =
      columns_of_warp > 0 ? __fdividef(1.0f, static_cast<float>(columns_of_warp)) : 0;
  float values[3] = {0, 0, 0};  // mean, rest, squares
  if (shape.centered) {
    float sum[1] = {0};
    visit([&](float s) { sum[0] += s; });
    team.over_warp(sum, add);
    values[0] = sum[0] * share_of_warp;
  }
  if constexpr (sizeof(T) == 4) {
    float of_deviations[2] = {0, 0};
    visit([&](float s) {
      const float d = s - values[0];
      of_deviations[0] += d, of_deviations[1] = fmaf(d, d, of_deviations[1]);
    });
    team.over_warp(of_deviations, add);
    values[1] = shape.centered ? of_deviations[0] * share_of_warp : 0;
    values[2] = fmaf(-values[1], shape.centered ? of_deviations[0] : 0, of_deviations[1]);
  } else {
    float squares[1] = {0};
    visit([&](float s) {
      const float d = s - values[0];
      squares[0] = fmaf(d, d, squares[0]);
    });
    team.over_warp(squares, add);
    values[2] = squares[0];
  }
  if (team.has_warps()) {
    team.exchange(values, 0.0f);
    const float base = __shfl_sync(0xFFFFFFFFu, values[0], 0);  // of the first warp
    if (shape.centered) {
      const auto n = static_cast<float>(mine.of_warp(team.warp_to_hear()));
      const float mean = (values[0] - base) + values[1];
      float of_warps[1] = {n > 0 ? n * mean : 0};
      team.over_warps(of_warps, add);
      values[1] = __fdividef(of_warps[0], static_cast<float>(mine.of_block()));
      if (n > 0) values[2] = fmaf(n * (mean - values[1]), mean - values[1], values[2]);
    }
    values[0] = base;
    float squares[1] = {values[2]};
    team.over_warps(squares, add);
    values[2] = squares[0];
  }
#if __CUDA_ARCH__ >= 900
  if (team.cluster() > 1) {
    const float numbers[4] = {values[0], values[1], values[2], static_cast<float>(mine.of_block())};
    const float(&all)[8][4] = team.tell_cluster(numbers);
    values[0] = all[0][0], values[1] = values[2] = 0;
    const auto mean = [&](int i) { return (all[i][0] - values[0]) + all[i][1]; };
    if (shape.centered) {
#pragma unroll 1
      for (int i = 0; i < team.cluster(); ++i) values[1] += all[i][3] * mean(i);
      values[1] *= shape.share;
    }
#pragma unroll 1
    for (int i = 0; i < team.cluster(); ++i) {
      const float apart = mean(i) - values[1];
      values[2] += fmaf(all[i][3] * apart, apart, all[i][2]);
    }
  }
#endif
  Moments moments;
  moments.mean = values[0], moments.rest = values[1];
  const float variance = values[2] * shape.share;
  moments.rstd = rstd_of(variance < 0 ? 0 : variance, shape.eps);  // NaN stays NaN
  moments.shift = -moments.rest * moments.rstd;
  return moments;
}

struct ForwardArgs {
  Matrix inputs[2];  // x and a residual
  Vector weight, bias;
  Matrix y, sum;
  float *mean, *rstd;

  __device__ void keep(std::int64_t row, const Moments& moments) const {
    if (mean != nullptr) mean[row] = moments.mean + moments.rest;
    if (rstd != nullptr) rstd[row] = moments.rstd;
  }
};

// Also without y, for mean and rstd alone.
template <class T, int Packs>
__device__ void normalize_row(const RowPlan& plan, const NormShape& shape, const ForwardArgs& p,
                              Exchange& exchange) {
  constexpr int kPack = kPackSize<T>;
  Team<false> team(plan, exchange);
  const RowInHand<T, Packs> hand(plan, team, shape.columns);
  if (hand.row() >= shape.rows) return;
  Pack<T, kPack> s[Packs];
  hand.load(p.inputs[0], 0, s);
  team.begin();
  // Long rows have no residual, and weight and bias of T: what takes more registers goes without.
  constexpr bool kIsLong = Packs > kHandPacks;
  if (!kIsLong && p.inputs[1].data != nullptr) {
    const T* const residual = hand.mine(p.inputs[1]);
    T* const sum = hand.mine(p.sum);
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (!hand.has(k)) continue;
      float a[kPack], b[kPack];
      unpack(s[k], a), unpack(load_pack<T, kPack>(residual + k * hand.kApart), b);
#pragma unroll
      for (int e = 0; e < kPack; ++e) a[e] += b[e];
      s[k] = packed<T>(a);
      store_pack(s[k], sum + k * hand.kApart);
    }
  }
  const Moments moments = moments_of(team, hand, shape, [&](auto each) {
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (!hand.has(k)) continue;
      float values[kPack];
      if constexpr (kIsLong) {
        unpack_again(s[k], values);
      } else {
        unpack(s[k], values);
      }
#pragma unroll
      for (int e = 0; e < kPack; ++e) each(values[e]);
      if constexpr (!kIsLong) keep_packed(s[k]);
    }
  });
  if (team.member() == 0 && team.rank() == 0) p.keep(hand.row(), moments);
  if (p.y.data == nullptr) return;
  T* const y = hand.mine(p.y);
  const Normal<T> normal(moments);
  const auto finish = [&](auto load) {
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (!hand.has(k)) continue;
      float values[kPack], weight[kPack], bias[kPack];
      load(k, weight, bias);
      unpack(s[k], values);
#pragma unroll
      for (int e = 0; e < kPack; ++e) values[e] = fmaf(normal.of(values[e]), weight[e], bias[e]);
      store(values, y + k * hand.kApart);
    }
  };
  if (kIsLong ||
      (p.weight.template is<T>() && (p.bias.data == nullptr || p.bias.template is<T>()))) {
    const T* const weights = static_cast<const T*>(p.weight.data) + hand.column(0);
    const T* const biases = static_cast<const T*>(p.bias.data) + hand.column(0);
    finish([&](int k, float(&weight)[kPack], float(&bias)[kPack]) {
      unpack(load_pack<T, kPack>(weights + k * hand.kApart), weight);
      if (p.bias.data == nullptr) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) bias[e] = 0;
      } else {
        unpack(load_pack<T, kPack>(biases + k * hand.kApart), bias);
      }
    });
  } else if constexpr (!kIsLong) {
    finish([&](int k, float(&weight)[kPack], float(&bias)[kPack]) {
      p.weight.load(hand.column(k), 1.0f, weight), p.bias.load(hand.column(k), 0.0f, bias);
    });
  }
}

template <int Packs>
__global__ void __launch_bounds__(kHandThreads, kHandBlocks)
    norm_rows(const __grid_constant__ RowPlan plan, const __grid_constant__ NormShape shape,
              DType dtype, const __grid_constant__ ForwardArgs p) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  let_next_kernel_start();
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    if constexpr (Packs <= kHandPacks || std::is_same_v<T, __nv_bfloat16>) {
      normalize_row<T, Packs>(plan, shape, p, exchange);
    }
  });
}

// From a block's row, element by element, for kernels that take any rows.
template <class T>
__device__ Moments moments_of_any(Team<false>& team, std::int64_t columns, const NormShape& shape,
                                  const T* s) {
  Moments moments;
  if (shape.centered) {
    float sum[1] = {0};
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) sum[0] += to_float(s[i]);
    team.reduce(sum, Add());
    moments.mean = sum[0] * shape.share;
  }
  float of_deviations[2] = {0, 0};
  for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
    const float d = to_float(s[i]) - moments.mean;
    of_deviations[0] += d, of_deviations[1] = fmaf(d, d, of_deviations[1]);
  }
  team.reduce(of_deviations, Add());
  if (shape.centered) moments.rest = of_deviations[0] * shape.share;
  const float variance = of_deviations[1] * shape.share - moments.rest * moments.rest;
  moments.rstd = rstd_of(variance < 0 ? 0 : variance, shape.eps);  // NaN stays NaN
  moments.shift = -moments.rest * moments.rstd;
  return moments;
}

__global__ void __launch_bounds__(kRowThreads, 1)
    norm_any_rows(RowPlan plan, std::int64_t columns, NormShape shape, DType dtype, ForwardArgs p) {
  __shared__ Exchange exchange;
  Team<false> team(plan, exchange);
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    for (std::int64_t row = blockIdx.x; row < shape.rows; row += gridDim.x) {
      const T* s = p.inputs[0].row<const T>(row);
      if (p.inputs[1].data != nullptr) {
        const T* const residual = p.inputs[1].row<const T>(row);
        T* const sum = p.sum.row<T>(row);
        for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
          sum[i] = from_float<T>(to_float(s[i]) + to_float(residual[i]));
        }
        s = sum;  // a thread reads again what it wrote
      }
      const Moments moments = moments_of_any(team, columns, shape, s);
      if (threadIdx.x == 0) p.keep(row, moments);
      if (p.y.data == nullptr) continue;
      T* const y = p.y.row<T>(row);
      for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
        const float normal = moments.normal(to_float(s[i]));
        y[i] = from_float<T>(fmaf(normal, p.weight.at(i, 1.0f), p.bias.at(i, 0.0f)));
      }
    }
  });
}

struct BackwardArgs {
  Matrix inputs[2];  // dy and s
  Matrix dsum;
  Vector weight;
  const float *mean, *rstd;  // mean null: 0
  Matrix ds;
  // Partial sums over rows, [which][cluster][columns]; null if nobody wants them.
  float* partial;

  __device__ Moments moments(std::int64_t row) const {
    Moments moments;
    moments.mean = mean == nullptr ? 0.0f : mean[row];
    moments.rstd = rstd[row];
    return moments;
  }
};

// What the gradients of a row of T have in common: ds = rstd · g + pull · x̂ + level.
template <class T>
struct Pulls {
  Normal<T> normals;
  float pull, level;

  // From the sums over a row of g ∘ x̂ and of g.
  __device__ Pulls(const Moments& moments, float dot, float sum, const NormShape& shape)
      : normals(moments),
        pull(-moments.rstd * (dot * shape.share)),
        level(shape.centered ? -moments.rstd * (sum * shape.share) : 0.0f) {
    if constexpr (sizeof(T) == 2) {  // x̂ = s · rstd + shift goes into both, as in Normal
      level = fmaf(normals.shift, pull, level);
      pull *= normals.rstd;
    }
  }

  __device__ float of(float g, float s) const {
    return fmaf(g, normals.rstd, fmaf(sizeof(T) == 2 ? s : normals.of(s), pull, level));
  }
};

// Sums of a thread's columns over all rows of a block: first over the groups of the block, whose
// rows differ, in their order. `shared` has room for a pack of floats of each thread.
template <int Packs, int Pack, class Flow>
__device__ void add_up_groups(float (&sums)[Packs][Pack], float* shared, const RowPlan& plan,
                              const Team<true>& team, const Flow& flow, float* partial) {
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
    if (plan.groups > 1) {
      __syncthreads();
#pragma unroll
      for (int e = 0; e < Pack; ++e) shared[e * blockDim.x + threadIdx.x] = sums[k][e];
      __syncthreads();
      if (team.index() == 0) {
        for (int group = 1; group < plan.groups; ++group) {
#pragma unroll
          for (int e = 0; e < Pack; ++e) {
            sums[k][e] += shared[e * blockDim.x + group * plan.group + threadIdx.x];
          }
        }
      }
    }
    if (team.index() != 0 || !flow.has(k)) continue;
    store(sums[k], partial + flow.column(k));
  }
}

template <class T, bool Centered>
__device__ void pull_rows(const RowPlan& plan, const NormShape& shape, const BackwardArgs& p,
                          Exchange& exchange) {
  Team<true> team(plan, exchange);
  constexpr int kPack = kPackSize<T>, kPacks = kFlowPacks, kInputs = 2;
  RowFlow<T, kInputs> flow(plan, team, shape.few_rows, shape.columns, p.inputs);
  team.begin();
  float sums[kPacks][kPack] = {}, bias_sums[kPacks][kPack] = {};
  // A thread's weights, in shared memory behind the rows, since registers are few: four floats of
  // each thread lie side by side.
  extern __shared__ __align__(16) std::byte rows_in_shared_memory[];
  const std::uint32_t weights =
      shared_address(rows_in_shared_memory + plan.shared_bytes) - kWeightBytes + threadIdx.x * 16;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    float weight[kPack] = {};
    if (flow.has(k)) p.weight.load(flow.column(k), 1.0f, weight);
#pragma unroll
    for (int e = 0; e < kPack; e += 4) {
      put_four(weights + (k * kPack + e) / 4 * (kFlowThreads * 16), &weight[e]);
    }
  }
  const auto load_weight = [&](int k, float(&weight)[kPack]) {
#pragma unroll
    for (int e = 0; e < kPack; e += 4) {
      float four[4];
      unpack(shared_pack<float>(weights + (k * kPack + e) / 4 * (kFlowThreads * 16)), four);
#pragma unroll
      for (int i = 0; i < 4; ++i) weight[e + i] = four[i];
    }
  };
  // Two rows at a time: their sums over columns are made in one go.
  constexpr int kRows = 2, kDots = Centered ? 2 : 1;
  const int step = plan.step;
  Moments next[kRows];
  const auto look_ahead = [&](int row) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool is_row = row + r * step < shape.few_rows;
      next[r] = is_row ? p.moments(row + r * step) : Moments();
      if constexpr (!Centered) {
        if (p.dsum.data == nullptr || !is_row) continue;
#pragma unroll
        for (int k = 0; k < kPacks; ++k) {
          if (flow.has(k)) prefetch(p.dsum.row<const T>(row + r * step) + flow.column(k));
        }
      }
    }
  };
  int row = static_cast<int>(blockIdx.x) / plan.cluster * plan.groups + team.index();
  look_ahead(row);
  for (; row < shape.few_rows; row += kRows * step) {
    const bool both = row + step < shape.few_rows;
    Pack<T, kPack> packs[kRows][kInputs][kPacks];
    Moments moments[kRows];
    flow.take(packs[0]);
    if (both) {
      flow.take(packs[1]);
    } else {
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
#pragma unroll
        for (int k = 0; k < kPacks; ++k) packs[1][i][k] = {};
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) moments[r] = next[r];
    look_ahead(row + kRows * step);  // so that nobody waits for them
    // Where the row has ended dy and the weight are zero, and so is what they add.
    float dots[kRows * kDots] = {};  // of g and x̂, and of g alone, of each row
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      float weight[kPack];
      load_weight(k, weight);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Normal<T> normals(moments[r]);
        float dy[kPack], s[kPack];
        unpack(packs[r][0][k], dy), unpack(packs[r][1][k], s);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const float normal = normals.of(s[e]), g = dy[e] * weight[e];
          sums[k][e] = fmaf(dy[e], normal, sums[k][e]);
          if constexpr (Centered) bias_sums[k][e] += dy[e];
          dots[r * kDots] = fmaf(g, normal, dots[r * kDots]);
          if constexpr (Centered) dots[r * kDots + 1] += g;
        }
        keep_packed(packs[r][0][k]), keep_packed(packs[r][1][k]);
      }
    }
    if (p.ds.data == nullptr) continue;
    team.reduce(dots, Add());
    const Pulls<T> pulls[kRows] = {{moments[0], dots[0], dots[kDots - 1], shape},
                                   {moments[1], dots[kDots], dots[2 * kDots - 1], shape}};
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!flow.has(k)) continue;
      Pack<T, kPack> dsums[kRows];
      if constexpr (!Centered) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if ((r > 0 && !both) || p.dsum.data == nullptr) continue;
          dsums[r] = load_once(p.dsum.row<const T>(row + r * step) + flow.column(k));
        }
      }
      float weight[kPack];
      load_weight(k, weight);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r > 0 && !both) continue;
        float dy[kPack], s[kPack];
        unpack(packs[r][0][k], dy), unpack(packs[r][1][k], s);
#pragma unroll
        for (int e = 0; e < kPack; ++e) dy[e] = pulls[r].of(dy[e] * weight[e], s[e]);
        if constexpr (!Centered) {
          if (p.dsum.data != nullptr) {
            unpack(dsums[r], s);
#pragma unroll
            for (int e = 0; e < kPack; ++e) dy[e] += s[e];
          }
        }
        store(dy, p.ds.row<T>(row + r * step) + flow.column(k));
      }
    }
  }
  if (p.partial == nullptr) return;
  wait_copies<0>();
  auto* const shared = reinterpret_cast<float*>(rows_in_shared_memory);
  const std::int64_t cluster = static_cast<int>(blockIdx.x) / plan.cluster;
  float* const partial = p.partial + cluster * shape.columns;
  add_up_groups(sums, shared, plan, team, flow, partial);
  if constexpr (Centered) {
    add_up_groups(bias_sums, shared, plan, team, flow,
                  partial + static_cast<std::int64_t>(plan.clusters()) * shape.columns);
  }
}

template <bool Centered>
__global__ void __launch_bounds__(kFlowThreads, 1)
    norm_backward_rows(const __grid_constant__ RowPlan plan,
                       const __grid_constant__ NormShape shape, DType dtype,
                       const __grid_constant__ BackwardArgs p) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  let_next_kernel_start();
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    pull_rows<T, Centered>(plan, shape, p, exchange);
  });
}

__global__ void __launch_bounds__(kRowThreads, 1)
    norm_backward_any_rows(RowPlan plan, std::int64_t columns, NormShape shape, DType dtype,
                           BackwardArgs p) {
  __shared__ Exchange exchange;
  Team<false> team(plan, exchange);
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    for (std::int64_t row = blockIdx.x; row < shape.rows; row += gridDim.x) {
      const T* const dy = p.inputs[0].row<const T>(row);
      const T* const s = p.inputs[1].row<const T>(row);
      T* const ds = p.ds.row<T>(row);
      const Moments moments = p.moments(row);
      float dots[2] = {0, 0};
      for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
        const float g = to_float(dy[i]) * p.weight.at(i, 1.0f);
        dots[0] += g * moments.normal(to_float(s[i])), dots[1] += g;
      }
      team.reduce(dots, Add());
      const Pulls<T> pulls(moments, dots[0], dots[1], shape);
      for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
        const float g = to_float(dy[i]) * p.weight.at(i, 1.0f);
        float value = pulls.of(g, to_float(s[i]));
        if (p.dsum.data != nullptr) value += to_float(p.dsum.row<const T>(row)[i]);
        ds[i] = from_float<T>(value);
      }
    }
  });
}

constexpr int kColumns =
    32;  // a block of column kernels has so many, and so many threads for each:
constexpr int kShares = 16;

// Partial sums of the columns over `share` rows, like those of norm_backward_rows.
__global__ void __launch_bounds__(kColumns* kShares)
    norm_columns(std::int64_t rows, std::int64_t columns, std::int64_t share, DType dtype,
                 BackwardArgs p) {
  __shared__ float all[2][kShares][kColumns];
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const std::int64_t first = blockIdx.y * share;
  const std::int64_t last = first + share < rows ? first + share : rows;
  float sums[2] = {0, 0};
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    if (column >= columns) return;
    for (std::int64_t row = first + threadIdx.y; row < last; row += kShares) {
      const float dy = to_float(p.inputs[0].row<const T>(row)[column]);
      sums[0] += dy * p.moments(row).normal(to_float(p.inputs[1].row<const T>(row)[column]));
      sums[1] += dy;
    }
  });
  all[0][threadIdx.y][threadIdx.x] = sums[0], all[1][threadIdx.y][threadIdx.x] = sums[1];
  __syncthreads();
  if (threadIdx.y > 1 || column >= columns) return;
  float sum = 0;
  for (int i = 0; i < kShares; ++i) sum += all[threadIdx.y][i][threadIdx.x];
  p.partial[(static_cast<std::int64_t>(threadIdx.y) * gridDim.y + blockIdx.y) * columns + column] =
      sum;
}

// out[which][column] = Σ partial[which][i][column] over `count` of them.
__global__ void __launch_bounds__(kColumns* kShares)
    add_up_partial(const float* partial, int count, std::int64_t columns, float* dweight,
                   float* dbias) {
  __shared__ float all[kShares][kColumns];
  wait_for_kernel_before();
  let_next_kernel_start();
  float* const out = blockIdx.y == 0 ? dweight : dbias;
  if (out == nullptr) return;
  partial += static_cast<std::int64_t>(blockIdx.y) * count * columns;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int i = threadIdx.y; i < count; i += kShares) sum += partial[i * columns + column];
  }
  all[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= columns) return;
  for (int i = 1; i < kShares; ++i) sum += all[i][threadIdx.x];
  out[column] = sum;
}

// How a backward call runs, and what it takes in its workspace.
struct BackwardPlan {
  bool sums = false;       // dweight or dbias is wanted
  RowPlan rows;            // if it fits; else kernels that take any rows run
  std::int64_t share = 1;  // rows of a partial sum
  int partial = 0;         // how many
  std::size_t partial_bytes = 0;
  std::size_t moments_bytes = 0;  // of mean and rstd, where they are computed again

  std::size_t bytes() const { return partial_bytes + moments_bytes; }
};

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

BackwardPlan plan_of(const NormBackward& p, const DeviceFacts& device) {
  const std::int64_t rows = p.dy.dim(0), columns = p.dy.dim(1);
  BackwardPlan plan;
  plan.sums = p.dweight.present() || p.dbias.present();
  const RowWork work{.rows = rows,
                     .columns = columns,
                     .element_bytes = size_of(p.dy.dtype()),
                     .in_packs = in_packs({p.dy, p.s, p.dsum, p.weight, p.ds})};
  plan.rows = plan_flow(device, work, 2);
  if (plan.sums) {
    if (plan.rows.fits) {
      plan.partial = plan.rows.clusters();
    } else if (rows > 0) {
      // Enough blocks to keep memory busy, and no more partial sums than a few megabytes.
      constexpr std::int64_t kLeastShare = 64, kMostPartial = 128, kMostSums = 1 << 20;
      const std::int64_t most =
          std::clamp<std::int64_t>(kMostSums / std::max<std::int64_t>(columns, 1), 1, kMostPartial);
      plan.share = std::max(kLeastShare, (rows + most - 1) / most);
      plan.partial = static_cast<int>((rows + plan.share - 1) / plan.share);
    }
    plan.partial_bytes = aligned(2 * static_cast<std::size_t>(plan.partial) *
                                 static_cast<std::size_t>(columns) * sizeof(float));
  }
  if (!p.rstd.present()) {
    plan.moments_bytes = aligned(2 * static_cast<std::size_t>(rows) * sizeof(float));
  }
  return plan;
}

template <class Params>
NormShape shape_of(const Params& p, std::int64_t rows, std::int64_t columns) {
  return {rows,
          static_cast<int>(rows),
          static_cast<int>(columns),
          p.centered,
          p.eps,
          1.0f / static_cast<float>(columns)};
}

unsigned column_blocks(std::int64_t columns) {
  return static_cast<unsigned>((columns + kColumns - 1) / kColumns);
}

}  // namespace

namespace {

void normalize(const Call& call, const NormForward& p) {
  const std::int64_t rows = p.x.dim(0), columns = p.x.dim(1);
  // What norm_rows<kLongPacks> takes. float16 would take it more registers than there are.
  const auto is_bfloat16 = [](const ConstTensorView& view) {
    return view.present() && view.dtype() == DType::kBFloat16;
  };
  const bool may_be_long = is_bfloat16(p.x) && is_bfloat16(p.weight) && !p.residual.present() &&
                           (!p.bias.present() || is_bfloat16(p.bias));
  const RowPlan plan =
      plan_rows(call.facts(),
                {.rows = rows,
                 .columns = columns,
                 .element_bytes = size_of(p.x.dtype()),
                 .in_packs = in_packs({p.x, p.residual, p.weight, p.bias, p.y, p.sum})},
                may_be_long ? kLongPacks : kHandPacks);
  const NormShape shape = shape_of(p, rows, columns);
  const ForwardArgs args{{matrix_of(p.x), matrix_of(p.residual)},
                         vector_of(p.weight),
                         vector_of(p.bias),
                         matrix_of(p.y),
                         matrix_of(p.sum),
                         p.mean.mutable_data_as<float>(),
                         p.rstd.mutable_data_as<float>()};
  if (plan.fits) {
    const auto kernel = plan.packs > kHandPacks  ? norm_rows<kLongPacks>
                        : plan.packs > kFewPacks ? norm_rows<kHandPacks>
                                                 : norm_rows<kFewPacks>;
    launch_rows(call, plan, kernel, shape, p.x.dtype(), args);
  } else {
    launch_rows(call, any_rows_plan(rows, columns), norm_any_rows, columns, shape, p.x.dtype(),
                args);
  }
}

}  // namespace

void norm_forward(Context& context, const NormForward& p) {
  Call call(p.op, context);
  call.reaches("x", p.x), call.reaches("residual", p.residual);
  call.reaches("weight", p.weight), call.reaches("bias", p.bias);
  call.reaches("y", p.y), call.reaches("sum", p.sum);
  call.reaches("mean", p.mean), call.reaches("rstd", p.rstd);
  if (p.x.dim(0) > 0) normalize(call, p);
}

std::size_t scratch_bytes(const NormBackward& p) {
  return plan_of(p, facts_of(p.dy.device().index)).bytes();
}

void norm_backward(Context& context, const NormBackward& p) {
  Call call(p.op, context);
  call.reaches("dy", p.dy), call.reaches("s", p.s), call.reaches("weight", p.weight);
  call.reaches("mean", p.mean), call.reaches("rstd", p.rstd), call.reaches("dsum", p.dsum);
  call.reaches("ds", p.ds), call.reaches("dweight", p.dweight), call.reaches("dbias", p.dbias);
  const std::int64_t rows = p.dy.dim(0), columns = p.dy.dim(1);
  if (columns == 0) return;
  const BackwardPlan plan = plan_of(p, call.facts());
  std::byte* const workspace = call.workspace(plan.bytes());
  auto* const partial = plan.partial == 0 ? nullptr : reinterpret_cast<float*>(workspace);

  const auto add_up = [&](int count) {
    if (!plan.sums) return;
    const Launch how{.grid = {column_blocks(columns), 2},
                     .block = {kColumns, kShares},
                     .overlaps = call.facts().major >= 9};
    call.launch(how, add_up_partial, static_cast<const float*>(partial), count, columns,
                p.dweight.mutable_data_as<float>(), p.dbias.mutable_data_as<float>());
  };
  if (rows == 0) return add_up(0);

  const NormShape shape = shape_of(p, rows, columns);
  BackwardArgs args{{matrix_of(p.dy), matrix_of(p.s)},
                    matrix_of(p.dsum),
                    vector_of(p.weight),
                    p.mean.data_as<float>(),
                    p.rstd.data_as<float>(),
                    matrix_of(p.ds),
                    partial};
  if (!plan.sums && !p.ds.present()) return;
  if (!p.rstd.present()) {
    auto* const moments = reinterpret_cast<float*>(workspace + plan.partial_bytes);
    const auto of_rows = [&](float* data) {
      return TensorView(data, DType::kFloat32, {rows}, p.dy.device());
    };
    NormForward forward{};
    forward.op = p.op, forward.centered = p.centered, forward.x = p.s, forward.eps = p.eps;
    if (p.centered) forward.mean = of_rows(moments);
    forward.rstd = of_rows(moments + rows);
    normalize(call, forward);
    args.mean = forward.mean.data_as<float>(), args.rstd = forward.rstd.data_as<float>();
  }
  if (plan.rows.fits) {
    const auto kernel = p.centered ? norm_backward_rows<true> : norm_backward_rows<false>;
    const RowPlan running = side_by_side(plan.rows, kernel);
    launch_rows(call, running, kernel, shape, p.dy.dtype(), args);
    return add_up(running.clusters());
  }
  const RowPlan any = any_rows_plan(rows, columns);
  if (plan.sums) {  // before ds, which may be written where dy or s is
    const Launch columns_too{.grid = {column_blocks(columns), static_cast<unsigned>(plan.partial)},
                             .block = {kColumns, kShares}};
    call.launch(columns_too, norm_columns, rows, columns, plan.share, p.dy.dtype(), args);
    add_up(plan.partial);
  }
  if (p.ds.present()) {
    launch_rows(call, any, norm_backward_any_rows, columns, shape, p.dy.dtype(), args);
  }
}

}  // namespace graft::cuda
