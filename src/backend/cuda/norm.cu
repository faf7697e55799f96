// A norm reads each row once and writes it once (bfloat16: 4 bytes an element forward, 6 backward;
// a residual adds 4, a gradient of it 2). Sums over rows are made twice: a block keeps those of its
// own rows in registers, and a second small kernel adds up one partial sum a block.
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
  float mean = 0, mean_rest = 0, rstd = 1, shift = 0;  // shift = −mean_rest · rstd

  __device__ float normal(float s) const { return fmaf(s - mean, rstd, shift); }
};

// 1/√(v + eps), rounded right; variance or mean square v.
__device__ float rstd_of(float v, float eps) { return __frsqrt_rn(v + eps); }

// From what all threads of a row have of it, `share` = 1 / n: visit(f) calls f(s) for each of this
// thread's values. The variance is that of deviations from a mean that is right to float32's last
// digits or so; what it is off by is taken out of both: var = Σd²/n − (Σd/n)², the second term
// tiny.
template <bool Centered, class Team, class Visit>
__device__ Moments moments_of(Team& team, float share, float eps, Visit visit) {
  Moments moments;
  if constexpr (Centered) {
    float sum[1] = {0};
    visit([&](float s) { sum[0] += s; });
    team.reduce(sum, Add());
    const float mean = sum[0] * share;
    float of_deviations[2] = {0, 0};
    visit([&](float s) {
      const float d = s - mean;
      of_deviations[0] += d, of_deviations[1] = fmaf(d, d, of_deviations[1]);
    });
    team.reduce(of_deviations, Add());
    const float rest = of_deviations[0] * share;
    const float variance = of_deviations[1] * share - rest * rest;
    const float rstd = rstd_of(variance < 0 ? 0 : variance, eps);  // NaN stays NaN
    moments = {mean, rest, rstd, -rest * rstd};
  } else {
    float squares[1] = {0};
    visit([&](float s) { squares[0] = fmaf(s, s, squares[0]); });
    team.reduce(squares, Add());
    moments.rstd = rstd_of(squares[0] * share, eps);
  }
  return moments;
}

template <class T>
struct ForwardArgs {
  Rows<const T> x, residual;
  Vector weight, bias;
  float eps, share;  // share = 1 / columns
  Rows<T> y, sum;
  float *mean, *rstd;

  __device__ void keep(std::int64_t row, const Moments& moments) const {
    if (mean != nullptr) mean[row] = moments.mean + moments.mean_rest;
    if (rstd != nullptr) rstd[row] = moments.rstd;
  }
};

// The same of a thread's packs; its columns say where the row has ended.
template <class T, bool Centered, class Team, class Columns, class Args, int Packs>
__device__ Moments moments_of_packs(Team& team, const Columns& columns, const Args& args,
                                    Pack<T, kPackSize<T>> (&s)[Packs]) {
  return moments_of<Centered>(team, args.share, args.eps, [&](auto each) {
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (!columns.has(k)) continue;
      float values[kPackSize<T>];
      unpack(s[k], values);
#pragma unroll
      for (int e = 0; e < kPackSize<T>; ++e) each(values[e]);
      keep_packed(s[k]);
    }
  });
}

template <class T, bool Centered, int Packs>
__global__ void __launch_bounds__(kHandThreads, kHandBlocks)
    norm_rows(RowPlan plan, std::int64_t rows, int columns, ForwardArgs<T> p) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  Team<false> team(plan, exchange);
  const RowInHand<T, Packs> hand(plan, team, columns);
  if (hand.row() >= rows) return;
  constexpr int kPack = kPackSize<T>;
  Pack<T, kPack> s[Packs];
  hand.load(p.x, 0, s);
  team.begin();
  if (p.residual.data != nullptr) {
    Pack<T, kPack> residual[Packs];
    hand.load(p.residual, 0, residual);
    T* const sum = hand.mine(p.sum);
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      float a[kPack], b[kPack];
      unpack(s[k], a), unpack(residual[k], b);
#pragma unroll
      for (int e = 0; e < kPack; ++e) a[e] += b[e];
      s[k] = packed<T>(a);
      if (hand.has(k)) store_pack(s[k], sum + k * hand.kApart);
    }
  }
  const Moments moments = moments_of_packs<T, Centered>(team, hand, p, s);
  if (team.member() == 0 && team.rank() == 0) p.keep(hand.row(), moments);
  T* const y = hand.mine(p.y);
  const auto finish = [&](auto load) {
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (!hand.has(k)) continue;
      float values[kPack], weight[kPack], bias[kPack];
      load(k, weight, bias);
      unpack(s[k], values);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        values[e] = Centered ? fmaf(moments.normal(values[e]), weight[e], bias[e])
                             : values[e] * moments.rstd * weight[e];
      }
      store(values, y + k * hand.kApart);
    }
  };
  if (p.weight.template is<T>() && (!Centered || p.bias.template is<T>())) {
    const T* const weights = static_cast<const T*>(p.weight.data) + hand.column(0);
    const T* const biases = static_cast<const T*>(p.bias.data) + hand.column(0);
    finish([&](int k, float(&weight)[kPack], float(&bias)[kPack]) {
      unpack(load_pack<T, kPack>(weights + k * hand.kApart), weight);
      if constexpr (Centered) unpack(load_pack<T, kPack>(biases + k * hand.kApart), bias);
    });
  } else {
    finish([&](int k, float(&weight)[kPack], float(&bias)[kPack]) {
      p.weight.load(hand.column(k), 1.0f, weight);
      if constexpr (Centered) p.bias.load(hand.column(k), 0.0f, bias);
    });
  }
}

// Also without y, for mean and rstd alone.
template <class T, bool Centered>
__global__ void __launch_bounds__(kRowThreads, 1)
    norm_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns, ForwardArgs<T> p) {
  __shared__ Exchange exchange;
  Team<false> team(plan, exchange);
  team.begin();
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* s = p.x.row(row);
    if (p.residual.data != nullptr) {
      // Its elements are read again by the threads that wrote them.
      const T* const residual = p.residual.row(row);
      T* const sum = p.sum.row(row);
      for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
        sum[i] = from_float<T>(to_float(s[i]) + to_float(residual[i]));
      }
      s = sum;
    }
    const Moments moments = moments_of<Centered>(team, p.share, p.eps, [&](auto each) {
      for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) each(to_float(s[i]));
    });
    if (threadIdx.x == 0) p.keep(row, moments);
    if (p.y.data == nullptr) continue;
    T* const y = p.y.row(row);
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      y[i] =
          from_float<T>(moments.normal(to_float(s[i])) * p.weight.at(i, 1.0f) + p.bias.at(i, 0.0f));
    }
  }
}

template <class T>
struct BackwardArgs {
  Rows<const T> dy, s, dsum;
  Vector weight;
  float eps, share;          // share = 1 / columns
  const float *mean, *rstd;  // rstd null: computed again
  Rows<T> ds;
  // Partial sums over rows, [which][cluster][columns]; null if nobody wants them.
  float* partial;

  __device__ Moments moments(std::int64_t row) const {
    Moments moments;
    moments.mean = mean == nullptr ? 0.0f : mean[row];
    moments.rstd = rstd[row];
    return moments;
  }
};

// x̂ of s.
template <bool Centered, int N>
__device__ void normalize(const Moments& moments, float (&s)[N]) {
#pragma unroll
  for (int e = 0; e < N; ++e) s[e] = Centered ? moments.normal(s[e]) : s[e] * moments.rstd;
}

// What the gradients of a row have in common: ds = rstd · g + pull · x̂ + level.
struct Pulls {
  float rstd, pull, level;

  // From the sums over a row of g ∘ x̂ and, if centered, of g.
  template <int N>
  __device__ Pulls(const Moments& moments, const float (&dots)[N], float share)
      : rstd(moments.rstd),
        pull(-moments.rstd * (dots[0] * share)),
        level(N > 1 ? -moments.rstd * (dots[N - 1] * share) : 0.0f) {}

  __device__ float of(float g, float normal) const {
    return fmaf(g, rstd, fmaf(normal, pull, level));
  }
};

// ds alone, where nobody wants sums over rows.
template <class T, bool Centered>
__global__ void __launch_bounds__(kHandThreads, kHandBlocks)
    norm_backward_row(RowPlan plan, std::int64_t rows, int columns, BackwardArgs<T> p) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  Team<false> team(plan, exchange);
  constexpr int kPack = kPackSize<T>, Packs = kFewPacks;
  const RowInHand<T, Packs> hand(plan, team, columns);
  if (hand.row() >= rows) return;
  Pack<T, kPack> packs[2][Packs];
  hand.load(p.dy, 0, packs[0]);
  hand.load(p.s, 0, packs[1]);
  Moments moments;
  if (p.rstd != nullptr) moments = p.moments(hand.row());
  team.begin();
  if (p.rstd == nullptr) moments = moments_of_packs<T, Centered>(team, hand, p, packs[1]);
  const auto finish = [&](auto load) {
    float dots[Centered ? 2 : 1] = {};  // of g and x̂, and of g alone
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (!hand.has(k)) continue;
      float dy[kPack], normal[kPack], weight[kPack];
      load(k, weight);
      unpack(packs[0][k], dy), unpack(packs[1][k], normal);
      normalize<Centered>(moments, normal);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const float g = dy[e] * weight[e];
        dots[0] = fmaf(g, normal[e], dots[0]);
        if constexpr (Centered) dots[1] += g;
      }
      keep_packed(packs[0][k]), keep_packed(packs[1][k]);
    }
    team.reduce(dots, Add());
    const Pulls pulls(moments, dots, p.share);
    T* const to = hand.mine(p.ds);
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (!hand.has(k)) continue;
      float dy[kPack], normal[kPack], weight[kPack];
      load(k, weight);
      unpack(packs[0][k], dy), unpack(packs[1][k], normal);
      normalize<Centered>(moments, normal);
#pragma unroll
      for (int e = 0; e < kPack; ++e) dy[e] = pulls.of(dy[e] * weight[e], normal[e]);
      if (p.dsum.data != nullptr) {
        unpack(load_pack<T, kPack>(hand.mine(p.dsum) + k * hand.kApart), normal);
#pragma unroll
        for (int e = 0; e < kPack; ++e) dy[e] += normal[e];
      }
      store(dy, to + k * hand.kApart);
    }
  };
  if (p.weight.template is<T>()) {
    const T* const weights = static_cast<const T*>(p.weight.data) + hand.column(0);
    finish([&](int k, float(&weight)[kPack]) {
      unpack(load_pack<T, kPack>(weights + k * hand.kApart), weight);
    });
  } else {
    finish([&](int k, float(&weight)[kPack]) { p.weight.load(hand.column(k), 1.0f, weight); });
  }
}

// dy, s and, in RMS norm, dsum.
constexpr int backward_inputs(bool centered) { return centered ? 2 : 3; }

template <class T>
struct FlowArgs {
  FlowRows<const T> inputs[3];
  FlowRows<T> ds;
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

template <class T, bool Centered, bool Given>
__global__ void __launch_bounds__(kFlowThreads, 1)
    norm_backward_rows(RowPlan plan, std::int64_t rows, int columns, BackwardArgs<T> p,
                       FlowArgs<T> all) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  Team<true> team(plan, exchange);
  constexpr int kPack = kPackSize<T>, kPacks = kFlowPacks, kInputs = backward_inputs(Centered);
  RowFlow<T, kInputs> flow(plan, team, rows, columns, all.inputs);
  team.begin();
  float weight[kPacks][kPack] = {}, sums[kPacks][kPack] = {}, bias_sums[kPacks][kPack] = {};
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (flow.has(k)) p.weight.load(flow.column(k), 1.0f, weight[k]);
  }
  const int step = plan.blocks / plan.cluster * plan.groups;
  std::int64_t row = flow.first();
  T* to = flow.mine(all.ds);
  Moments moments, next;
  if (Given && flow.count() > 0) next = p.moments(row);
  for (int left = flow.count(); left > 0; --left) {
    Pack<T, kPack> packs[kInputs][kPacks];
    flow.take(packs);
    if constexpr (Given) {
      moments = next;
      // A row ahead: a block has nothing to do while it waits for them.
      row += step;
      if (left > 1) next = p.moments(row);
    } else {
      moments = moments_of_packs<T, Centered>(team, flow, p, packs[1]);
    }
    // Where the row has ended dy and the weight are zero, and so is what they add.
    float dots[Centered ? 2 : 1] = {};  // of g and x̂, and of g alone
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      float dy[kPack], normal[kPack];
      unpack(packs[0][k], dy), unpack(packs[1][k], normal);
      normalize<Centered>(moments, normal);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        sums[k][e] = fmaf(dy[e], normal[e], sums[k][e]);
        if constexpr (Centered) bias_sums[k][e] += dy[e];
        const float g = dy[e] * weight[k][e];
        dots[0] = fmaf(g, normal[e], dots[0]);
        if constexpr (Centered) dots[1] += g;
      }
      keep_packed(packs[0][k]), keep_packed(packs[1][k]);
    }
    if (all.ds.data == nullptr) continue;
    team.reduce(dots, Add());
    const Pulls pulls(moments, dots, p.share);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!flow.has(k)) continue;
      float dy[kPack], normal[kPack];
      unpack(packs[0][k], dy), unpack(packs[1][k], normal);
      normalize<Centered>(moments, normal);
#pragma unroll
      for (int e = 0; e < kPack; ++e) dy[e] = pulls.of(dy[e] * weight[k][e], normal[e]);
      if constexpr (kInputs > 2) {
        if (all.inputs[2].data != nullptr) {
          unpack(packs[2][k], normal);
#pragma unroll
          for (int e = 0; e < kPack; ++e) dy[e] += normal[e];
        }
      }
      store(dy, to + k * flow.kApart);
    }
    to += all.ds.hop;
  }
  if (p.partial == nullptr) return;
  wait_copies<0>();
  extern __shared__ __align__(16) std::byte rows_in_shared_memory[];
  auto* const shared = reinterpret_cast<float*>(rows_in_shared_memory);
  float* const partial =
      p.partial + static_cast<std::int64_t>(static_cast<int>(blockIdx.x) / plan.cluster) * columns;
  add_up_groups(sums, shared, plan, team, flow, partial);
  if constexpr (Centered) {
    add_up_groups(bias_sums, shared, plan, team, flow,
                  partial + static_cast<std::int64_t>(plan.clusters()) * columns);
  }
}

template <class T, bool Centered>
__global__ void __launch_bounds__(kRowThreads, 1)
    norm_backward_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns,
                           BackwardArgs<T> p) {
  __shared__ Exchange exchange;
  Team<false> team(plan, exchange);
  team.begin();
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T *const dy = p.dy.row(row), *const s = p.s.row(row);
    T* const ds = p.ds.row(row);
    const Moments moments = p.moments(row);
    float dots[2] = {0, 0};
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      const float g = to_float(dy[i]) * p.weight.at(i, 1.0f);
      dots[0] += g * moments.normal(to_float(s[i])), dots[1] += g;
    }
    team.reduce(dots, Add());
    const float mean_dot = dots[0] * p.share, mean_g = Centered ? dots[1] * p.share : 0.0f;
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      const float g = to_float(dy[i]) * p.weight.at(i, 1.0f);
      float value = moments.rstd * (g - mean_g - moments.normal(to_float(s[i])) * mean_dot);
      if (p.dsum.data != nullptr) value += to_float(p.dsum.row(row)[i]);
      ds[i] = from_float<T>(value);
    }
  }
}

constexpr int kColumns =
    32;  // a block of column kernels has so many, and so many threads for each:
constexpr int kShares = 16;

// Partial sums of the columns over `share` rows, like those of norm_backward_rows.
template <class T>
__global__ void __launch_bounds__(kColumns* kShares)
    norm_columns(std::int64_t rows, std::int64_t columns, std::int64_t share, BackwardArgs<T> p) {
  __shared__ float all[2][kShares][kColumns];
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const std::int64_t first = blockIdx.y * share;
  const std::int64_t last = first + share < rows ? first + share : rows;
  float sums[2] = {0, 0};
  if (column < columns) {
    for (std::int64_t row = first + threadIdx.y; row < last; row += kShares) {
      const float dy = to_float(p.dy.row(row)[column]);
      sums[0] += dy * p.moments(row).normal(to_float(p.s.row(row)[column])), sums[1] += dy;
    }
  }
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

template <class Body>
void with_norm(DType dtype, bool centered, Body&& body) {
  with_type(dtype, [&]<class T>(std::type_identity<T> type) {
    centered ? body(type, std::true_type()) : body(type, std::false_type());
  });
}

// How a backward call runs, and what it takes in its workspace.
struct BackwardPlan {
  bool sums = false;       // dweight or dbias is wanted
  bool flows = false;      // the rows' plan is that of norm_backward_rows
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
  if (!plan.sums) plan.rows = plan_rows(device, work, kFewPacks);
  // Also where several blocks would share a row: it takes them long to meet for each row anew.
  plan.flows = plan.sums || plan.rows.cluster > 1;
  if (plan.flows) plan.rows = plan_flow(device, work, backward_inputs(p.centered));
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
  if (!plan.rows.fits && !p.rstd.present()) {
    plan.moments_bytes = aligned(2 * static_cast<std::size_t>(rows) * sizeof(float));
  }
  return plan;
}

float share_of(std::int64_t columns) { return 1.0f / static_cast<float>(columns); }

unsigned column_blocks(std::int64_t columns) {
  return static_cast<unsigned>((columns + kColumns - 1) / kColumns);
}

}  // namespace

void norm_forward(Context& context, const NormForward& p) {
  Call call(p.op, context);
  call.reaches("x", p.x), call.reaches("residual", p.residual);
  call.reaches("weight", p.weight), call.reaches("bias", p.bias);
  call.reaches("y", p.y), call.reaches("sum", p.sum);
  call.reaches("mean", p.mean), call.reaches("rstd", p.rstd);
  const std::int64_t rows = p.x.dim(0), columns = p.x.dim(1);
  if (rows == 0) return;
  const RowPlan plan = plan_rows(
      call.facts(), {.rows = rows,
                     .columns = columns,
                     .element_bytes = size_of(p.x.dtype()),
                     .in_packs = in_packs({p.x, p.residual, p.weight, p.bias, p.y, p.sum})});
  with_norm(p.x.dtype(), p.centered, [&]<class T>(std::type_identity<T>, auto centered) {
    const ForwardArgs<T> args{rows_of<T>(p.x),
                              rows_of<T>(p.residual),
                              vector_of(p.weight),
                              vector_of(p.bias),
                              p.eps,
                              share_of(columns),
                              rows_of<T>(p.y),
                              rows_of<T>(p.sum),
                              p.mean.mutable_data_as<float>(),
                              p.rstd.mutable_data_as<float>()};
    if (plan.fits) {
      const auto kernel = plan.packs == kManyPacks ? norm_rows<T, centered, kManyPacks>
                                                   : norm_rows<T, centered, kFewPacks>;
      launch_rows(call, plan, kernel, rows, static_cast<int>(columns), args);
    } else {
      launch_rows(call, any_rows_plan(rows, columns), norm_any_rows<T, centered>, rows, columns,
                  args);
    }
  });
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

  with_norm(p.dy.dtype(), p.centered, [&]<class T>(std::type_identity<T>, auto centered) {
    BackwardArgs<T> args{rows_of<T>(p.dy),
                         rows_of<T>(p.s),
                         rows_of<T>(p.dsum),
                         vector_of(p.weight),
                         p.eps,
                         share_of(columns),
                         p.mean.data_as<float>(),
                         p.rstd.data_as<float>(),
                         rows_of<T>(p.ds),
                         partial};
    if (plan.rows.fits) {
      if (!plan.sums && !p.ds.present()) return;
      if (!plan.flows) {
        const auto kernel = norm_backward_row<T, centered>;
        return launch_rows(call, plan.rows, kernel, rows, static_cast<int>(columns), args);
      }
      const auto kernel = p.rstd.present() ? norm_backward_rows<T, centered, true>
                                           : norm_backward_rows<T, centered, false>;
      const RowPlan running = side_by_side(plan.rows, kernel);
      const FlowArgs<T> flow{
          {flow_rows(args.dy, running), flow_rows(args.s, running), flow_rows(args.dsum, running)},
          flow_rows(args.ds, running)};
      launch_rows(call, running, kernel, rows, static_cast<int>(columns), args, flow);
      return add_up(running.clusters());
    }
    const RowPlan any = any_rows_plan(rows, columns);
    if (!p.rstd.present()) {
      auto* const moments = reinterpret_cast<float*>(workspace + plan.partial_bytes);
      ForwardArgs<T> forward{};
      forward.x = args.s, forward.eps = p.eps, forward.share = args.share;
      if (p.centered) forward.mean = moments;
      forward.rstd = moments + rows;
      launch_rows(call, any, norm_any_rows<T, centered>, rows, columns, forward);
      args.mean = forward.mean, args.rstd = forward.rstd;
    }
    if (plan.sums) {  // before ds, which may be written where dy or s is
      const Launch columns_too{
          .grid = {column_blocks(columns), static_cast<unsigned>(plan.partial)},
          .block = {kColumns, kShares}};
      call.launch(columns_too, norm_columns<T>, rows, columns, plan.share, args);
      add_up(plan.partial);
    }
    if (p.ds.present()) {
      launch_rows(call, any, norm_backward_any_rows<T, centered>, rows, columns, args);
    }
  });
}

}  // namespace graft::cuda
