#include <algorithm>
#include <string>

#include "backend/cuda/mma.cuh"
#include "backend/cuda/philox.cuh"
#include "product/cuda/ampere.h"
#include "product/cuda/ampere_operand.cuh"
#include "product/cuda/few_rows.h"
#include "product/cuda/few_shrink.cuh"

// few_shrink.cuh makes s·h, if there is a pair. The product does not wait for it: on sm_90 and
// later it starts as soon as few_shrink has begun, and waits only when it has summed over all of
// W's rows. (few_shrink lets it start after its own wait, so that whatever wrote x and W is done.)
// On earlier GPUs one follows the other.
//
//   1 row       a dot product, y[n] = x · W[n]: a warp an output, or four where there is a pair or
//               layers share x; float32 multiply-adds keep up.
//   2..16 rows  yᵀ = W · xᵀ by mma.sync: W's rows are the 16 of the matrix unit, x's the 8. A block
//               has 16 outputs; its 8 warps share K in turns of 32, and their sums are added in
//               order. Operands come straight from memory, k permuted alike in both (see
//               ampere_shrink.cuh).

namespace graft::cuda {
using namespace ampere;

namespace {

/// A layer: its W, what its pair adds to the sums, and its y.
struct FewLayer {
  Operand w;  ///< (N, K), which can be copied.
  std::int64_t n = 0;
  int rank = 0;
  const float* scaled = nullptr;  ///< s·h (M, rank)
  Operand expand;                 ///< E as (N, rank)
  DropoutArgs mask;               ///< On what the pair adds.
  const void* bias = nullptr;
  std::int64_t bias_stride = 0;
  DType bias_dtype = DType::kFloat32;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  bool y_float = false, accumulate = false;
  unsigned first_block = 0;  ///< Of those that share a launch: they follow each other.

  /// `from` is s·h of the term.
  FewLayer(const Term& term, const float* from)
      : w(operand_of(term.w, 1, 0, term.multiply)), n(term.y.dim(1)) {
    set_output(*this, term);
    const LowRank& pair = term.pair;
    if (!pair.present()) return;
    rank = static_cast<int>(pair.rank());
    scaled = from;
    expand = operand_of(pair.expand, 1, 0, term.multiply);
    mask = DropoutArgs(pair.output_dropout);
  }
  FewLayer() = default;
};

struct FewArgs {
  DType dtype;
  Operand x;  ///< (M, K), which can be copied.
  std::int64_t k;
  int m;
  FewLayer layer;
};

struct OneRowArgs {
  DType dtype = DType::kBFloat16;
  const void* x = nullptr;  ///< (1, K)
  std::int64_t k = 0;
  int count = 0;       ///< Of layers.
  bool paired = true;  ///< A launch before makes s·h, and has waited for what was before it.
  FewLayer layers[few::kMostLayers];
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

/// bias, y += and the rounding of element (row, n) of y.
template <class T>
__device__ __forceinline__ void store_few(const FewLayer& a, int row, std::int64_t n, float value) {
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
__device__ __forceinline__ void make_one_row(const FewArgs& args) {
  const FewLayer& a = args.layer;
  if (a.rank == 0) {
    wait_for_kernel_before();
    let_next_kernel_start();
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t n = std::int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (n >= a.n) return;
  float sums[2] = {};
  for (std::int64_t k0 = 8 * lane; k0 < args.k; k0 += kInFlight * 256) {
    Eight<T> w[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) w[i].bits = load8<T, true>(a.w, n, k0 + i * 256, args.k);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      Eight<T> x;
      x.bits = load8<T, false>(args.x, 0, k0 + i * 256, args.k);
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

/// Outputs of a warp of rows_of_layers.
constexpr int kWarpOutputs = 4;

/// One row of several layers, or of one with a pair: a warp four outputs, and the next step of W on
/// its way as soon as one has been used.
template <class T>
__device__ __forceinline__ void make_rows_of_layers(const OneRowArgs& args) {
  constexpr int kOutputs = kWarpOutputs, kSteps = kInFlight / kOutputs, kTurn = kSteps * 256;
  const FewLayer& a = args.layers[few::layer_of_block(args)];
  if (!args.paired) wait_for_kernel_before();
  // Where there is a pair, few_shrink has waited for all that is older than this call.
  let_next_kernel_start();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t n =
      (std::int64_t{blockIdx.x - a.first_block} * 8 + threadIdx.x / 32) * kOutputs;
  if (n >= a.n) return;
  const T* w[kOutputs];  // of outputs that are not there, the last one's
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    w[j] = static_cast<const T*>(a.w.data) + min(n + j, a.n - 1) * a.w.outer + 8 * lane;
  }
  const T* x = static_cast<const T*>(args.x) + 8 * lane;
  uint4 loaded[kSteps][kOutputs];
  // Elements that are left for this lane.
  const auto left_at = [&](std::int64_t k) {
    return static_cast<int>(min(args.k - k - 8 * lane, std::int64_t{kTurn}));
  };
  const auto load = [&](int step, int left) {
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      loaded[step][j] = uint4{0, 0, 0, 0};
      if (step * 256 < left) loaded[step][j] = load_streamed(w[j] + step * 256);
    }
  };
  const int first_left = left_at(0);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) load(step, first_left);
  float expand[kOutputs] = {};  // rank `lane` of E
  const auto load_expand = [&](int r, float(&to)[kOutputs]) {
    with_type(a.expand.dtype, [&]<class E>(std::type_identity<E>) {
      const E* const from = static_cast<const E*>(a.expand.data) + r * a.expand.inner;
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) {
        to[j] = rounded<T>(to_float(from[min(n + j, a.n - 1) * a.expand.outer]));
      }
    });
  };
  if (lane < a.rank) load_expand(lane, expand);

  float sums[kOutputs][2] = {};
#pragma unroll 1
  for (std::int64_t k = 0; k < args.k; k += kTurn) {
    const int left = left_at(k), next = left_at(k + kTurn);
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) w[j] += kTurn;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint4 bits{0, 0, 0, 0};
      if (step * 256 < left) bits = __ldg(reinterpret_cast<const uint4*>(x + step * 256));
      float of_x[8];
      few::unpack<T>(bits, of_x);
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) {
        float of_w[8];
        few::unpack<T>(loaded[step][j], of_w);
#pragma unroll
        for (int e = 0; e < 8; ++e) sums[j][e % 2] = fmaf(of_w[e], of_x[e], sums[j][e % 2]);
      }
      load(step, next);
    }
    x += kTurn;
  }
  float totals[kOutputs];
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) totals[j] = sums[j][0] + sums[j][1];
  if (a.rank > 0) {
    // The pair is more of the same sum: lane r takes rank r.
    if (args.paired) wait_for_kernel_before();
    float pair[kOutputs] = {};
#pragma unroll 1
    for (int r = lane; r < a.rank; r += 32) {
      if (r >= 32) load_expand(r, expand);
      const float scaled = __ldcg(a.scaled + r);
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) pair[j] = fmaf(expand[j], scaled, pair[j]);
    }
    if (a.mask.any()) {
      const Masks masks = a.mask.masks();
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) {
        pair[j] *= masks.keeps(static_cast<std::uint64_t>(n + j)) ? masks.scale : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) totals[j] += pair[j];
  }
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    totals[j] = warp_sum(totals[j]);
    if (lane == j && n + j < a.n) store_few<T>(a, 0, n + j, totals[j]);
  }
}

/// Outputs of a block, and the ranks of E that it keeps in shared memory at once.
constexpr int kFewOutputs = 16;

template <int Tiles>
struct FewShared {
  float sums[8][kFewOutputs][8 * Tiles];
  float expand[kFewOutputs][kMaxLoraRank + 1];
  float scaled[8 * Tiles * kMaxLoraRank];
};

template <class T, int Tiles>
__device__ __forceinline__ void make_few_rows(const FewArgs& args, FewShared<Tiles>& shared) {
  const FewLayer& a = args.layer;
  constexpr int kUnroll = 8 / Tiles;
  auto& [sums, expand, scaled] = shared;
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
  for (std::int64_t turn = warp * 32 + 8 * q; turn < args.k + 8 * q; turn += 8 * kUnroll * 32) {
    uint4 w[kUnroll][2], x[kUnroll][Tiles];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t k = turn + u * 8 * 32;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t n = n0 + 8 * half + g;
        w[u][half] = n < a.n ? load8<T, true>(a.w, n, k, args.k) : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t k = turn + u * 8 * 32;
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
        x[u][t] =
            8 * t + g < args.m ? load8<T, false>(args.x, 8 * t + g, k, args.k) : uint4{0, 0, 0, 0};
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
    for (int i = static_cast<int>(threadIdx.x); i < args.m * a.rank; i += 256) {
      scaled[i] = __ldcg(a.scaled + i);
    }
  }
  __syncthreads();
  const Masks masks = a.mask.any() ? a.mask.masks() : Masks{};
  for (int i = static_cast<int>(threadIdx.x); i < kFewOutputs * args.m; i += 256) {
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

__global__ void __launch_bounds__(256, 2) one_row(const __grid_constant__ FewArgs args) {
  with_half(args.dtype, [&]<class T>(std::type_identity<T>) { make_one_row<T>(args); });
}

__global__ void __launch_bounds__(256, 2) rows_of_layers(const __grid_constant__ OneRowArgs args) {
  with_half(args.dtype, [&]<class T>(std::type_identity<T>) { make_rows_of_layers<T>(args); });
}

template <int Tiles>
__global__ void __launch_bounds__(256, 2) few_rows(const __grid_constant__ FewArgs args) {
  __shared__ FewShared<Tiles> shared;
  with_half(args.dtype,
            [&]<class T>(std::type_identity<T>) { make_few_rows<T, Tiles>(args, shared); });
}

void run_one_row(const Call& call, std::span<const Term> terms, float* scaled) {
  OneRowArgs args;
  args.dtype = terms[0].multiply;
  args.x = terms[0].x.data(), args.k = terms[0].x.dim(1);
  args.paired = few::launch_shrink<__half>(call, terms, scaled);
  constexpr std::int64_t kOfBlock = 8 * kWarpOutputs;
  unsigned blocks = 0;
  for (const Term& term : terms) {
    FewLayer& layer = args.layers[args.count++] = FewLayer(term, scaled);
    layer.first_block = blocks;
    blocks += static_cast<unsigned>((layer.n + kOfBlock - 1) / kOfBlock);
    scaled += layer.rank;
  }
  call.launch({.grid = blocks, .block = 256, .overlaps = call.facts().major >= 9}, rows_of_layers,
              args);
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

std::size_t few_rows_workspace(std::span<const Term> terms) {
  return few::scaled_floats(terms) * sizeof(float);
}

void run_few_rows(const Call& call, std::span<const Term> terms, std::byte* workspace) {
  float* const scaled = reinterpret_cast<float*>(workspace);
  const Term& term = terms[0];
  const bool overlaps = call.facts().major >= 9;
  if (terms.size() > 1 || (term.x.dim(0) == 1 && term.pair.present() && overlaps)) {
    return run_one_row(call, terms, scaled);
  }
  few::launch_shrink<__half>(call, terms, scaled);
  const FewArgs args{term.multiply, operand_of(term.x, 0, 1, term.multiply), term.x.dim(1),
                     static_cast<int>(term.x.dim(0)), FewLayer(term, scaled)};
  const int outputs = args.m == 1 ? 8 : kFewOutputs;
  const Launch how{.grid = static_cast<unsigned>((args.layer.n + outputs - 1) / outputs),
                   .overlaps = overlaps};
  void (*kernel)(FewArgs) = args.m == 1 ? one_row : args.m <= 8 ? few_rows<1> : few_rows<2>;
  call.launch(how, kernel, args);
}

}  // namespace graft::cuda
