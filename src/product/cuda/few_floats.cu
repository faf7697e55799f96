// 1 to 16 rows in float32 by a W whose rows lie along K: W goes from memory straight to registers,
// once, and that takes longer than the arithmetic.
//
//     y (M, N) = [ x | s*h ] * [ W^T ; E ] + bias
//
//     warp   4 outputs n, that is 4 rows of W; all K and all rows of x, which come from L1
//     lane   4 neighbours of each 128 of K, 4 steps at once: 16 loads of 16 bytes of W under way
//
// Sums of 4 outputs x 16 rows are added over the lanes at the end, one or two of them for each
// lane. s*h comes from a launch before (few_shrink.cuh), under which W is read already: it lets
// this kernel start after its own wait, so that whatever wrote x and W is done. Bytes: W once;
// FMAs: M * K * N, half of the time for 16 rows.

#include "backend/cuda/call.h"
#include "graft/lora.h"
#include "product/cuda/few_shrink.cuh"
#include "product/cuda/general.cuh"
#include "product/cuda/paths.h"
#include "product/cuda/small_row.cuh"

namespace graft::cuda {
namespace {

constexpr int kOutputs = 4, kWarps = 8, kSteps = 4, kBatch = 8;

struct FloatsArgs {
  const float *x, *w;
  std::int64_t x_stride, w_stride, k, n;
  int m, rank;
  const float* scaled;  // s*h (M, rank)
  const float* expand;  // E (rank, N)
  std::int64_t expand_row, expand_col;
  const void* bias;
  std::int64_t bias_stride;
  DType bias_dtype;
  float* y;
  std::int64_t y_stride;
  bool accumulate;
};

/// kRows: the rows, or more.
template <int kRows>
__global__ void __launch_bounds__(32 * kWarps, 1)
    few_floats(const __grid_constant__ FloatsArgs args) {
  __shared__ float scaled[kMostFewRows * kMaxLoraRank];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t first = (std::int64_t{blockIdx.x} * kWarps + warp) * kOutputs;
  if (args.rank == 0) {
    wait_for_kernel_before();
    let_next_kernel_start();
  }
  const float* w[kOutputs];  // of outputs that are not there, the last one's
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) w[i] = args.w + min(first + i, args.n - 1) * args.w_stride;
  float sums[kRows * kOutputs] = {};  // [row][output]
#pragma unroll 1
  for (std::int64_t begin = 4 * lane; begin < args.k; begin += 128 * kSteps) {
    uint4 loaded[kSteps][kOutputs];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const std::int64_t k = begin + 128 * step;
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        loaded[step][i] = k < args.k ? load_streamed(w[i] + k) : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const std::int64_t k = begin + 128 * step;
      if (k >= args.k) break;
      float of_w[kOutputs][4];
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) few::unpack<float>(loaded[step][i], of_w[i]);
#pragma unroll
      for (int row = 0; row < kRows; row += kBatch) {
        float4 x[kRows < kBatch ? kRows : kBatch];
#pragma unroll
        for (int i = 0; i < kBatch && i < kRows; ++i) {
          x[i] = *reinterpret_cast<const float4*>(args.x +
                                                  min(row + i, args.m - 1) * args.x_stride + k);
        }
#pragma unroll
        for (int i = 0; i < kBatch && i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < kOutputs; ++j) {
            float& sum = sums[(row + i) * kOutputs + j];
            sum = fmaf(x[i].x, of_w[j][0], sum), sum = fmaf(x[i].y, of_w[j][1], sum);
            sum = fmaf(x[i].z, of_w[j][2], sum), sum = fmaf(x[i].w, of_w[j][3], sum);
          }
        }
      }
    }
  }
  const int kept = small::sum_over_lanes(sums, 1);
  if (args.rank > 0) {
    wait_for_kernel_before();
    let_next_kernel_start();
    // Once a block: all warps reading it from L2 would wait in line for the same few sectors there.
    for (int i = static_cast<int>(threadIdx.x); i < args.m * args.rank; i += 32 * kWarps) {
      scaled[i] = __ldcg(args.scaled + i);
    }
    __syncthreads();
  }
  const int row = kept / kOutputs;
  if (row >= args.m) return;
  constexpr int kMine = kRows * kOutputs < 64 ? 1 : 2;  // sums that a lane ends with
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const std::int64_t n = first + kept % kOutputs + i;
    if (n >= args.n) break;
    float sum = sums[i];
    const float* expand = args.expand + n * args.expand_col;
#pragma unroll 8
    for (int r = 0; r < args.rank; ++r) {
      sum = fmaf(scaled[row * args.rank + r], expand[r * args.expand_row], sum);
    }
    if (args.bias != nullptr)
      sum += load_as_float(args.bias, args.bias_dtype, n * args.bias_stride);
    float* const y = args.y + row * args.y_stride + n;
    *y = args.accumulate ? *y + sum : sum;
  }
}

// Rows of whole vectors of 16 bytes.
bool is_vectors(const ConstTensorView& view) {
  return view.dtype() == DType::kFloat32 && view.stride(1) == 1 && view.stride(0) % 4 == 0 &&
         view.dim(1) % 4 == 0 && reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
}

}  // namespace

bool few_floats_takes(const Term& term) {
  const LowRank& pair = term.pair;
  if (!term.w.present() || !term.y.present() || !term.outer_products.empty()) return false;
  if (pair.input_dropout || pair.output_dropout || term.multiply != DType::kFloat32) return false;
  if (pair.present() &&
      (pair.shrink.dtype() != DType::kFloat32 || pair.expand.dtype() != DType::kFloat32)) {
    return false;
  }
  const std::int64_t rows = term.x.dim(0);
  return rows >= 1 && rows <= kMostFewRows && term.x.dim(1) >= 4 && term.y.dim(1) >= 1 &&
         is_vectors(term.x) && is_vectors(term.w.transposed()) &&
         term.y.dtype() == DType::kFloat32 && term.y.stride(1) == 1;
}

std::size_t few_floats_bytes(const Term& term) {
  return static_cast<std::size_t>(term.x.dim(0) * term.pair.rank()) * sizeof(float);
}

void run_few_floats(const Call& call, const Term& term, std::byte* workspace) {
  const LowRank& pair = term.pair;
  const bool overlaps = call.facts().major >= 9;
  FloatsArgs args{};
  args.x = term.x.data_as<float>(), args.x_stride = term.x.stride(0);
  args.w = term.w.data_as<float>(), args.w_stride = term.w.stride(1);
  args.m = static_cast<int>(term.x.dim(0)), args.k = term.x.dim(1), args.n = term.y.dim(1);
  args.y = term.y.mutable_data_as<float>(), args.y_stride = term.y.stride(0);
  args.accumulate = term.accumulate;
  set_bias(args, term.bias);
  float* const scaled = reinterpret_cast<float*>(workspace);
  if (few::launch_shrink<float>(call, {&term, 1}, scaled)) {
    args.rank = static_cast<int>(pair.rank());
    args.scaled = scaled;
    args.expand = pair.expand.data_as<float>();
    args.expand_row = pair.expand.stride(0), args.expand_col = pair.expand.stride(1);
  }
  constexpr std::int64_t kOfBlock = kWarps * kOutputs;
  const auto blocks = static_cast<unsigned>((args.n + kOfBlock - 1) / kOfBlock);
  const Launch how{.grid = blocks, .block = 32 * kWarps, .overlaps = overlaps};
  if (args.m == 1) return call.launch(how, few_floats<1>, args);
  if (args.m <= 8) return call.launch(how, few_floats<8>, args);
  call.launch(how, few_floats<16>, args);
}

}  // namespace graft::cuda
