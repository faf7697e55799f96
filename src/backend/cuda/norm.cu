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

constexpr int kForwardPacks = 2;   // of a row in each thread, twice that in the deep form
constexpr int kBackwardPacks = 1;  // likewise: the sums of their columns are in its registers too

// What a row's outputs are computed from. The mean is the sum of two numbers: of values that lie
// close together far from zero, one has no digits left for where among them it is.
struct Moments {
  float mean = 0, mean_rest = 0, rstd;

  __device__ float normal(float s) const { return (s - mean - mean_rest) * rstd; }
};

// 1/√(v + eps), rounded right; variance or mean square v.
__device__ float rstd_of(float v, float eps) { return __frsqrt_rn(v + eps); }

// From what all threads of a row have of it: visit(f) calls f(s) for each of this thread's values.
// The variance is that of deviations from a mean that is right to float32's last digits or so; what
// it is off by is taken out of both: var = Σd²/n − (Σd/n)², the second term tiny.
template <bool Centered, class Visit>
__device__ Moments moments_of(Team& team, float count, float eps, Visit visit) {
  Moments moments;
  if constexpr (Centered) {
    float sum[1] = {0};
    visit([&](float s) { sum[0] += s; });
    team.reduce(sum, Add());
    const float mean = sum[0] / count;
    float of_deviations[2] = {0, 0};
    visit([&](float s) {
      const float d = s - mean;
      of_deviations[0] += d, of_deviations[1] += d * d;
    });
    team.reduce(of_deviations, Add());
    const float rest = of_deviations[0] / count;
    moments = {mean, rest, 0};
    const float variance = of_deviations[1] / count - rest * rest;
    moments.rstd = rstd_of(variance < 0 ? 0 : variance, eps);  // NaN stays NaN
  } else {
    float squares[1] = {0};
    visit([&](float s) { squares[0] += s * s; });
    team.reduce(squares, Add());
    moments.rstd = rstd_of(squares[0] / count, eps);
  }
  return moments;
}

template <class T>
struct ForwardArgs {
  Rows<const T> x, residual;
  Vector weight, bias;
  float eps;
  Rows<T> y, sum;
  float *mean, *rstd;

  __device__ void keep(std::int64_t row, const Moments& moments) const {
    if (mean != nullptr) mean[row] = moments.mean + moments.mean_rest;
    if (rstd != nullptr) rstd[row] = moments.rstd;
  }
};

template <class T, bool Centered, bool Deep>
__global__ void __launch_bounds__(row_threads(Deep), 1)
    norm_rows(RowPlan plan, std::int64_t rows, int columns, ForwardArgs<T> p) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  Team team(plan, exchange);
  constexpr int kPack = kPackSize<T>, kPacks = row_packs(kForwardPacks, Deep);
  RowFlow<T, Deep, kForwardPacks, 2> flow(plan, team, rows, columns, {p.x, p.residual});
  for (; flow.more(); flow.go_on()) {
    Pack<T, kPack> packs[2][kPacks];
    flow.take(packs);
    Pack<T, kPack>(&s)[kPacks] = packs[0];
    if (p.residual.data != nullptr) {
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (!flow.has(k)) continue;
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          s[k].values[e] =
              from_float<T>(to_float(s[k].values[e]) + to_float(packs[1][k].values[e]));
        }
        store_pack(s[k], p.sum.row(flow.row()) + flow.column(k));
      }
    }
    const Moments moments =
        moments_of<Centered>(team, static_cast<float>(columns), p.eps, [&](auto each) {
#pragma unroll
          for (int k = 0; k < kPacks; ++k) {
            if (!flow.has(k)) continue;
#pragma unroll
            for (int e = 0; e < kPack; ++e) each(to_float(s[k].values[e]));
            keep_packed(s[k]);
          }
        });
    if (team.member() == 0 && team.rank() == 0) p.keep(flow.row(), moments);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!flow.has(k)) continue;
      float weight[kPack], bias[kPack], y[kPack];
      p.weight.load(flow.column(k), 1.0f, weight);
      if constexpr (Centered) p.bias.load(flow.column(k), 0.0f, bias);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        y[e] = moments.normal(to_float(s[k].values[e])) * weight[e];
        if constexpr (Centered) y[e] += bias[e];
      }
      store(y, p.y.row(flow.row()) + flow.column(k));
    }
  }
}

// Also without y, for mean and rstd alone.
template <class T, bool Centered>
__global__ void __launch_bounds__(kRowThreads, 1)
    norm_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns, ForwardArgs<T> p) {
  __shared__ Exchange exchange;
  Team team(plan, exchange);
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
    const Moments moments =
        moments_of<Centered>(team, static_cast<float>(columns), p.eps, [&](auto each) {
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
  float eps;
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

// Sums of a thread's columns over all rows of a block: first over the groups of the block, whose
// rows differ, in their order. `shared` has room for a pack of floats of each thread.
template <int Packs, int Pack, class Flow>
__device__ void add_up_groups(float (&sums)[Packs][Pack], float* shared, const RowPlan& plan,
                              const Team& team, const Flow& flow, float* partial) {
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

template <class T, bool Centered, bool Deep>
__global__ void __launch_bounds__(row_threads(Deep), 1)
    norm_backward_rows(RowPlan plan, std::int64_t rows, int columns, BackwardArgs<T> p) {
  __shared__ Exchange exchange;
  wait_for_kernel_before();
  Team team(plan, exchange);
  constexpr int kPack = kPackSize<T>, kPacks = row_packs(kBackwardPacks, Deep);
  RowFlow<T, Deep, kBackwardPacks, 3> flow(plan, team, rows, columns, {p.dy, p.s, p.dsum});
  const float count = static_cast<float>(columns);
  float weight[kPacks][kPack], sums[kPacks][kPack] = {}, bias_sums[kPacks][kPack] = {};
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (flow.has(k)) p.weight.load(flow.column(k), 1.0f, weight[k]);
  }
  Moments moments, next;
  if (p.rstd != nullptr && flow.more()) next = p.moments(flow.row());
  for (; flow.more(); flow.go_on()) {
    Pack<T, kPack> packs[3][kPacks];
    flow.take(packs);
    if (p.rstd != nullptr) {
      moments = next;
      // A row ahead: a block has nothing to do while it waits for them.
      if (flow.next_row() < rows) next = p.moments(flow.next_row());
    } else {
      moments = moments_of<Centered>(team, count, p.eps, [&](auto each) {
#pragma unroll
        for (int k = 0; k < kPacks; ++k) {
          if (!flow.has(k)) continue;
#pragma unroll
          for (int e = 0; e < kPack; ++e) each(to_float(packs[1][k].values[e]));
          keep_packed(packs[1][k]);
        }
      });
    }
    float dots[Centered ? 2 : 1] = {};  // of g and x̂, and of g alone
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!flow.has(k)) continue;
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const float dy = to_float(packs[0][k].values[e]);
        const float normal = moments.normal(to_float(packs[1][k].values[e]));
        sums[k][e] += dy * normal;
        if constexpr (Centered) bias_sums[k][e] += dy;
        const float g = dy * weight[k][e];
        dots[0] += g * normal;
        if constexpr (Centered) dots[1] += g;
      }
      keep_packed(packs[0][k]), keep_packed(packs[1][k]);
    }
    if (p.ds.data == nullptr) continue;
    team.reduce(dots, Add());
    const float mean_dot = dots[0] / count;
    float mean_g = 0;
    if constexpr (Centered) mean_g = dots[1] / count;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!flow.has(k)) continue;
      float ds[kPack];
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const float g = to_float(packs[0][k].values[e]) * weight[k][e];
        const float normal = moments.normal(to_float(packs[1][k].values[e]));
        ds[e] = moments.rstd * (g - mean_g - normal * mean_dot);
        if (p.dsum.data != nullptr) ds[e] += to_float(packs[2][k].values[e]);
      }
      store(ds, p.ds.row(flow.row()) + flow.column(k));
    }
  }
  if (p.partial == nullptr) return;
  wait_copies<0>();
  extern __shared__ __align__(16) std::byte rows_in_shared_memory[];
  auto* const shared = reinterpret_cast<float*>(rows_in_shared_memory);
  float* const partial = p.partial + static_cast<std::int64_t>(blockIdx.x / plan.cluster) * columns;
  add_up_groups(sums, shared, plan, team, flow, partial);
  if constexpr (Centered) {
    add_up_groups(bias_sums, shared, plan, team, flow,
                  partial + static_cast<std::int64_t>(plan.blocks / plan.cluster) * columns);
  }
}

template <class T, bool Centered>
__global__ void __launch_bounds__(kRowThreads, 1)
    norm_backward_any_rows(RowPlan plan, std::int64_t rows, std::int64_t columns,
                           BackwardArgs<T> p) {
  __shared__ Exchange exchange;
  Team team(plan, exchange);
  const float count = static_cast<float>(columns);
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
    const float mean_dot = dots[0] / count, mean_g = Centered ? dots[1] / count : 0.0f;
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
constexpr int kShares = 8;

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
  RowPlan rows;            // if it fits; else the rest is for the kernels that take any rows:
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
  plan.rows = plan_rows(device, {.rows = rows,
                                 .columns = columns,
                                 .element_bytes = size_of(p.dy.dtype()),
                                 .packs = kBackwardPacks,
                                 .inputs = 3,
                                 .in_packs = in_packs({p.dy, p.s, p.dsum, p.weight, p.ds})});
  if (p.dweight.present() || p.dbias.present()) {
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
                     .packs = kForwardPacks,
                     .inputs = 2,
                     .in_packs = in_packs({p.x, p.residual, p.weight, p.bias, p.y, p.sum})});
  with_norm(p.x.dtype(), p.centered, [&]<class T>(std::type_identity<T>, auto centered) {
    const ForwardArgs<T> args{rows_of<T>(p.x),
                              rows_of<T>(p.residual),
                              vector_of(p.weight),
                              vector_of(p.bias),
                              p.eps,
                              rows_of<T>(p.y),
                              rows_of<T>(p.sum),
                              p.mean.mutable_data_as<float>(),
                              p.rstd.mutable_data_as<float>()};
    if (plan.fits) {
      launch_rows(call, plan,
                  plan.deep ? norm_rows<T, centered, true> : norm_rows<T, centered, false>, rows,
                  static_cast<int>(columns), args);
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
  const bool sums = p.dweight.present() || p.dbias.present();

  const auto add_up = [&](int count) {
    if (!sums) return;
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
                         p.mean.data_as<float>(),
                         p.rstd.data_as<float>(),
                         rows_of<T>(p.ds),
                         partial};
    if (plan.rows.fits) {
      const RowPlan running = launch_rows(call, plan.rows,
                                          plan.rows.deep ? norm_backward_rows<T, centered, true>
                                                         : norm_backward_rows<T, centered, false>,
                                          rows, static_cast<int>(columns), args);
      return add_up(running.clusters());
    }
    const RowPlan any = any_rows_plan(rows, columns);
    if (!p.rstd.present()) {
      auto* const moments = reinterpret_cast<float*>(workspace + plan.partial_bytes);
      ForwardArgs<T> forward{};
      forward.x = args.s, forward.eps = p.eps;
      if (p.centered) forward.mean = moments;
      forward.rstd = moments + rows;
      launch_rows(call, any, norm_any_rows<T, centered>, rows, columns, forward);
      args.mean = forward.mean, args.rstd = forward.rstd;
    }
    if (sums) {  // before ds, which may be written where dy or s is
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
