#include <algorithm>
#include <string>

#include "backend/cuda/mma.cuh"
#include "backend/cuda/philox.cuh"
#include "product/cuda/ampere.h"
#include "product/cuda/ampere_operand.cuh"
#include "product/cuda/ampere_shrink.cuh"
#include "product/cuda/few_rows.h"

// Two kernels. `row_shrink` makes s·h, a rank and up to four rows a block. The product does not
// wait for it: on sm_90 and later it starts as soon as row_shrink has begun, and waits only when it
// has summed over all of W's rows. (row_shrink lets it start after its own wait, so that whatever
// wrote x and W is done.) On earlier GPUs one follows the other.
//
//   1 row       a warp an output, y[n] = x · W[n]: a dot product; float32 multiply-adds keep up.
//   2..16 rows  yᵀ = W · xᵀ by mma.sync: W's rows are the 16 of the matrix unit, x's the 8. A block
//               has 16 outputs; its 8 warps share K in turns of 32, and their sums are added in
//               order. Operands come straight from memory, k permuted alike in both (see
//               ampere_shrink.cuh).

namespace graft::cuda {
using namespace ampere;

namespace {

struct FewArgs {
  Operand x, w;  ///< (M, K), (N, K); both can be copied.
  std::int64_t n = 0, k = 0;
  int m = 0, rank = 0;
  const float* scaled = nullptr;  ///< s·h (M, rank)
  Operand expand;                 ///< E as (N, rank)
  DropoutArgs mask;               ///< On what the pair adds.
  const void* bias = nullptr;
  std::int64_t bias_stride = 0;
  DType bias_dtype = DType::kFloat32;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  bool y_float = false, accumulate = false;
};

struct RowShrinkArgs {
  Operand x;       ///< (M, K); can be copied.
  Operand shrink;  ///< S as (rank, K)
  std::int64_t k = 0;
  int m = 0, rank = 0;
  float scaling = 1.0f;
  DropoutArgs dropout;
  float* h = nullptr;       ///< (M, rank), unscaled; null: not wanted.
  float* scaled = nullptr;  ///< s·h (M, rank)
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

/// Elements k to k + 7 of row i, zeros from `depth` on, which is whole eights.
template <class T, bool kStreamed>
__device__ __forceinline__ uint4 load8(const Operand& from, std::int64_t i, std::int64_t k,
                                       std::int64_t depth) {
  if (k >= depth) return {0, 0, 0, 0};
  const T* at = static_cast<const T*>(from.data) + i * from.outer + k;
  return kStreamed ? load_streamed(at) : __ldg(reinterpret_cast<const uint4*>(at));
}

// 4096 of K at once.
constexpr int kRowShrinkRows = 4, kRowShrinkThreads = 512;

template <class T>
__global__ void __launch_bounds__(kRowShrinkThreads)
    row_shrink(const __grid_constant__ RowShrinkArgs a) {
  wait_for_kernel_before();
  let_next_kernel_start();
  const int rank = static_cast<int>(blockIdx.x),
            row0 = static_cast<int>(blockIdx.y) * kRowShrinkRows;
  const Masks masks = a.dropout.any() ? a.dropout.masks() : Masks{};
  float sums[kRowShrinkRows] = {};
  for (std::int64_t k = 8 * threadIdx.x; k < a.k; k += 8 * kRowShrinkThreads) {
    Eight<T> s;
    s.bits = a.shrink.copies   ? load8<T, true>(a.shrink, rank, k, a.k)
             : a.shrink.floats ? floats8<T>(a.shrink, rank, k)
                               : gather8<T>(a.shrink, rank, k, a.k);
#pragma unroll
    for (int r = 0; r < kRowShrinkRows; ++r) {
      if (row0 + r >= a.m) break;
      Eight<T> x;
      x.bits =
          a.x.copies ? load8<T, false>(a.x, row0 + r, k, a.k) : gather8<T>(a.x, row0 + r, k, a.k);
      if (a.dropout.any()) {
        x.bits = drop8<T>(x.bits, static_cast<std::uint64_t>((row0 + r) * a.k + k), masks);
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) sums[r] += to_float(x.values[e]) * to_float(s.values[e]);
    }
  }
  __shared__ float of_warps[kRowShrinkThreads / 32][kRowShrinkRows];
#pragma unroll
  for (int r = 0; r < kRowShrinkRows; ++r) {
    const float sum = warp_sum(sums[r]);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32][r] = sum;
  }
  __syncthreads();
  const int r = static_cast<int>(threadIdx.x);
  if (r >= kRowShrinkRows || row0 + r >= a.m) return;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kRowShrinkThreads / 32; ++w) sum += of_warps[w][r];
  if (a.dropout.any()) sum *= masks.scale;
  if (a.h != nullptr) a.h[(row0 + r) * a.rank + rank] = sum;
  if (a.scaled != nullptr) a.scaled[(row0 + r) * a.rank + rank] = a.scaling * sum;
}

/// bias, y += and the rounding of element (row, n) of y.
template <class T>
__device__ __forceinline__ void store_few(const FewArgs& a, int row, std::int64_t n, float value) {
  if (a.bias != nullptr) value += load_as_float(a.bias, a.bias_dtype, n * a.bias_stride);
  const std::int64_t at = row * a.y_stride + n;
  if (a.y_float) {
    float* y = static_cast<float*>(a.y) + at;
    *y = a.accumulate ? *y + value : value;
  } else {
    T* y = static_cast<T*>(a.y) + at;
    *y = from_float<T>(a.accumulate ? to_float(*y) + value : value);
  }
}

/// Loads of 16 bytes that a lane has in flight.
constexpr int kInFlight = 16;

template <class T>
__global__ void __launch_bounds__(256, 2) one_row(const __grid_constant__ FewArgs a) {
  if (a.rank == 0) {
    wait_for_kernel_before();
    let_next_kernel_start();
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t n = std::int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (n >= a.n) return;
  float sums[2] = {};
  for (std::int64_t k0 = 8 * lane; k0 < a.k; k0 += kInFlight * 256) {
    Eight<T> w[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) w[i].bits = load8<T, true>(a.w, n, k0 + i * 256, a.k);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      Eight<T> x;
      x.bits = load8<T, false>(a.x, 0, k0 + i * 256, a.k);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        sums[e % 2] += to_float(w[i].values[e]) * to_float(x.values[e]);
      }
    }
  }
  float sum = sums[0] + sums[1];
  if (a.rank > 0) {
    // The pair is more of the same sum: lane r takes rank r. What is read of E does not wait.
    float expand[kMaxLoraRank / 32];
#pragma unroll
    for (int i = 0; i < kMaxLoraRank / 32; ++i) {
      const int r = 32 * i + lane;
      expand[i] = r < a.rank ? rounded<T>(load_as_float(a.expand.data, a.expand.dtype,
                                                        n * a.expand.outer + r * a.expand.inner))
                             : 0.0f;
    }
    wait_for_kernel_before();
    let_next_kernel_start();
    float pair = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaxLoraRank / 32; ++i) {
      const int r = 32 * i + lane;
      if (r < a.rank) pair += expand[i] * __ldcg(a.scaled + r);
    }
    if (a.mask.any()) {
      const Masks masks = a.mask.masks();
      pair *= masks.keeps(static_cast<std::uint64_t>(n)) ? masks.scale : 0.0f;
    }
    sum += pair;
  }
  sum = warp_sum(sum);
  if (lane == 0) store_few<T>(a, 0, n, sum);
}

/// Outputs of a block, and the ranks of E that it keeps in shared memory at once.
constexpr int kFewOutputs = 16;

template <class T, int Tiles>
__global__ void __launch_bounds__(256, 2) few_rows(const __grid_constant__ FewArgs a) {
  constexpr int kRows = 8 * Tiles, kUnroll = 8 / Tiles;
  __shared__ float sums[8][kFewOutputs][kRows];
  __shared__ float expand[kFewOutputs][kMaxLoraRank + 1];
  __shared__ float scaled[kRows * kMaxLoraRank];
  if (a.rank == 0) {
    wait_for_kernel_before();
    let_next_kernel_start();
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, q = lane % 4;
  const std::int64_t n0 = std::int64_t{blockIdx.x} * kFewOutputs;
  for (int i = static_cast<int>(threadIdx.x); i < kFewOutputs * a.rank; i += 256) {
    const bool along_rank = a.expand.inner == 1;
    const int r = along_rank ? i % a.rank : i / kFewOutputs;
    const int n = along_rank ? i / a.rank : i % kFewOutputs;
    expand[n][r] = n0 + n < a.n
                       ? rounded<T>(load_as_float(a.expand.data, a.expand.dtype,
                                                  (n0 + n) * a.expand.outer + r * a.expand.inner))
                       : 0.0f;
  }
  float acc[Tiles][4] = {};
  const auto multiply = [&](const uint4(&w)[2], const uint4(&x)[Tiles]) {
    const std::uint32_t first[4] = {w[0].x, w[1].x, w[0].y, w[1].y};
    const std::uint32_t second[4] = {w[0].z, w[1].z, w[0].w, w[1].w};
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
      const std::uint32_t x0[2] = {x[t].x, x[t].y}, x1[2] = {x[t].z, x[t].w};
      mma<T>(acc[t], first, x0);
      mma<T>(acc[t], second, x1);
    }
  };
  for (std::int64_t turn = warp * 32 + 8 * q; turn < a.k + 8 * q; turn += 8 * kUnroll * 32) {
    uint4 w[kUnroll][2], x[kUnroll][Tiles];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t k = turn + u * 8 * 32;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t n = n0 + 8 * half + g;
        w[u][half] = n < a.n ? load8<T, true>(a.w, n, k, a.k) : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t k = turn + u * 8 * 32;
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
        x[u][t] = 8 * t + g < a.m ? load8<T, false>(a.x, 8 * t + g, k, a.k) : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) multiply(w[u], x[u]);
  }
#pragma unroll
  for (int t = 0; t < Tiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[warp][g + e / 2 * 8][8 * t + 2 * q + e % 2] = acc[t][e];
  }
  if (a.rank > 0) {
    wait_for_kernel_before();
    let_next_kernel_start();
    for (int i = static_cast<int>(threadIdx.x); i < a.m * a.rank; i += 256) {
      scaled[i] = __ldcg(a.scaled + i);
    }
  }
  __syncthreads();
  const Masks masks = a.mask.any() ? a.mask.masks() : Masks{};
  for (int i = static_cast<int>(threadIdx.x); i < kFewOutputs * a.m; i += 256) {
    const int n = i % kFewOutputs, row = i / kFewOutputs;
    if (n0 + n >= a.n) continue;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; ++w) sum += sums[w][n][row];
    float pair = 0.0f;
    for (int r = 0; r < a.rank; ++r) pair += scaled[row * a.rank + r] * expand[n][r];
    if (a.mask.any()) {
      pair *= masks.keeps(static_cast<std::uint64_t>(row * a.n + n0 + n)) ? masks.scale : 0.0f;
    }
    store_few<T>(a, row, n0 + n, sum + pair);
  }
}

template <class T>
void run_typed(const Call& call, const Term& term, std::byte* workspace) {
  const bool overlaps = call.facts().major >= 9;
  FewArgs args;
  args.x = operand_of(term.x, 0, 1, term.multiply);
  args.w = operand_of(term.w, 1, 0, term.multiply);
  args.m = static_cast<int>(term.x.dim(0));
  args.k = term.x.dim(1);
  args.n = term.y.dim(1);
  const LowRank& pair = term.pair;
  if (pair.present()) {
    args.rank = static_cast<int>(pair.rank());
    args.scaled = reinterpret_cast<const float*>(workspace);
    args.expand = operand_of(pair.expand, 1, 0, term.multiply);
    args.mask = DropoutArgs(pair.output_dropout);
    RowShrinkArgs shrink;
    shrink.x = args.x;
    shrink.shrink = operand_of(pair.shrink, 1, 0, term.multiply);
    shrink.k = args.k;
    shrink.m = args.m, shrink.rank = args.rank;
    shrink.scaling = pair.scaling;
    shrink.dropout = DropoutArgs(pair.input_dropout);
    if (pair.h.present()) shrink.h = pair.h.mutable_data_as<float>();
    shrink.scaled = reinterpret_cast<float*>(workspace);
    Launch how;
    how.grid = dim3(static_cast<unsigned>(args.rank),
                    static_cast<unsigned>((args.m + kRowShrinkRows - 1) / kRowShrinkRows));
    how.block = kRowShrinkThreads;
    how.overlaps = overlaps;
    call.launch(how, row_shrink<T>, shrink);
  }
  set_output(args, term);
  const int outputs = args.m == 1 ? 8 : kFewOutputs;
  Launch how;
  how.grid = static_cast<unsigned>((args.n + outputs - 1) / outputs);
  how.overlaps = overlaps;
  void (*kernel)(FewArgs) = args.m == 1   ? one_row<T>
                            : args.m <= 8 ? few_rows<T, 1>
                                          : few_rows<T, 2>;
  call.launch(how, kernel, args);
}

}  // namespace

Support few_rows_takes(const Term& term) {
  if (term.multiply != DType::kFloat16 && term.multiply != DType::kBFloat16) {
    return Support::no(std::string("multiplies in ") + name_of(term.multiply));
  }
  if (!term.w.present() || !term.y.present()) return Support::no("no base product");
  if (!term.outer_products.empty()) return Support::no("outer products");
  const std::int64_t m = term.x.dim(0);
  if (m < 1 || m > kMostFewRows) return Support::no(std::to_string(m) + " rows");
  if (term.y.dim(1) == 0) return Support::no("no columns");
  if (!operand_of(term.x, 0, 1, term.multiply).copies) {
    return Support::no("x: expected rows of the multiply type that are aligned to 16 bytes");
  }
  if (!operand_of(term.w, 1, 0, term.multiply).copies) {
    return Support::no("w: expected rows along K, of the multiply type and aligned to 16 bytes");
  }
  if (term.y.dtype() != DType::kFloat32 && term.y.dtype() != term.multiply) {
    return Support::no(std::string("y: got ") + name_of(term.y.dtype()));
  }
  if (term.pair.rank() > kMaxLoraRank) {
    return Support::no("rank " + std::to_string(term.pair.rank()));
  }
  return {};
}

std::size_t few_rows_workspace(const Term& term) {
  return static_cast<std::size_t>(term.pair.rank() * term.x.dim(0)) * sizeof(float);
}

void run_few_rows(const Call& call, const Term& term, std::byte* workspace) {
  if (term.multiply == DType::kFloat16) {
    run_typed<__half>(call, term, workspace);
  } else {
    run_typed<__nv_bfloat16>(call, term, workspace);
  }
}

}  // namespace graft::cuda
