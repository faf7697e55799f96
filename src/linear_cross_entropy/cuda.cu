// Cross entropy of z = x·Wᵀ, for a chunk of rows at a time:
//
//   1. logits z (chunk, V) = x·Wᵀ in float32, in the workspace
//   2. a block a row: logsumexp and the loss, and in z's place softmax(z) − onehot
//   3. dx (chunk, K) = (softmax(z) − onehot)·W
//
// 4·M·K·V FLOPs' worth of two products with dx, half without; logits are written once and read
// three times a chunk, W once a chunk for each product.

#include <algorithm>
#include <cmath>

#include "backend/cuda/element.cuh"
#include "backend/table.h"
#include "graft/linear_cross_entropy.h"
#include "product/cuda/operands.h"
#include "product/cuda/product.h"

namespace graft::cuda {
namespace {

// Logits of a chunk: enough rows for the products to fill a device, whatever the vocabulary.
constexpr std::int64_t kChunkBytes = std::int64_t{128} << 20, kLeastChunkRows = 128;

constexpr int kThreads = 512, kWarps = kThreads / 32;

std::int64_t chunk_rows(const LinearCrossEntropy& p) {
  const std::int64_t row_bytes = std::max<std::int64_t>(1, p.weight.out_features()) * 4;
  const std::int64_t rows = kChunkBytes / row_bytes / kLeastChunkRows * kLeastChunkRows;
  return std::min(std::max(rows, kLeastChunkRows), std::max<std::int64_t>(1, p.x.dim(0)));
}

template <class View>
View rows_of(const View& matrix, std::int64_t first, std::int64_t count) {
  const std::int64_t shape[] = {count, matrix.dim(1)};
  const std::int64_t strides[] = {matrix.stride(0), matrix.stride(1)};
  auto* const data = const_cast<char*>(static_cast<const char*>(matrix.data()));
  const std::int64_t bytes =
      first * matrix.stride(0) * static_cast<std::int64_t>(size_of(matrix.dtype()));
  return View(data == nullptr ? data : data + bytes, matrix.dtype(), shape, strides,
              matrix.device());
}

Term logits_term(const LinearCrossEntropy& p, std::int64_t first, std::int64_t count,
                 float* logits) {
  Term term;
  term.x = rows_of<ConstTensorView>(p.x, first, count), term.w = forward_view(p.weight);
  term.y = TensorView(logits, DType::kFloat32, {count, p.weight.out_features()}, p.x.device());
  term.multiply = p.weight.dtype();
  return term;
}

Term gradient_term(const LinearCrossEntropy& p, std::int64_t first, std::int64_t count,
                   const float* logits) {
  Term term;
  term.x = ConstTensorView(logits, DType::kFloat32, {count, p.weight.out_features()}, p.x.device());
  term.w = backward_view(p.weight), term.y = rows_of(p.dx, first, count);
  term.multiply = p.weight.dtype();
  return term;
}

struct LossArgs {
  float* logits;  // (rows, cols)
  const std::int32_t* targets;
  std::int64_t target_stride;
  float* losses;
  std::int64_t loss_stride;
  std::int64_t cols;
  std::int32_t ignore_index;
  bool gradient;
};

// max and Σ exp(z − max) of some logits; of none, −∞ and 0.
struct Partial {
  float max, sum;
};

__device__ Partial merge(const Partial& a, const Partial& b) {
  if (a.sum == 0) return b;
  if (b.sum == 0) return a;
  const float max = fmaxf(a.max, b.max);
  return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
}

__global__ void __launch_bounds__(kThreads) loss_row(const __grid_constant__ LossArgs args) {
  __shared__ Partial partials[kWarps];
  const std::int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  float* const z = args.logits + row * args.cols;
  float& loss = args.losses[row * args.loss_stride];
  const std::int32_t target = args.targets[row * args.target_stride];
  const bool ignored = target == args.ignore_index;
  if (ignored || target < 0 || target >= args.cols) {
    // Nobody waits for the device, so that a target it doesn't have can only show in the results.
    const float result = ignored ? 0.0f : nanf("");
    if (thread == 0) loss = result;
    for (std::int64_t col = thread; args.gradient && col < args.cols; col += kThreads) {
      z[col] = result;
    }
    return;
  }

  Partial mine{-INFINITY, 0};
  for (std::int64_t col = thread; col < args.cols; col += kThreads) {
    const float value = z[col];
    if (value > mine.max) {
      mine = {value, mine.sum * expf(mine.max - value) + 1};
    } else {
      mine.sum += expf(value - mine.max);  // NaN for a NaN, and from then on
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const Partial other{__shfl_xor_sync(~0u, mine.max, offset),
                        __shfl_xor_sync(~0u, mine.sum, offset)};
    // The lower lane's first: both lanes have the same bits.
    mine = (thread & offset) != 0 ? merge(other, mine) : merge(mine, other);
  }
  if (thread % 32 == 0) partials[thread / 32] = mine;
  const float target_logit = z[target];
  __syncthreads();
  Partial all = partials[0];
  for (int i = 1; i < kWarps; ++i) all = merge(all, partials[i]);
  const double logsumexp = all.max + log(static_cast<double>(all.sum));
  if (thread == 0) loss = static_cast<float>(logsumexp - target_logit);
  if (!args.gradient) return;
  const float shift = static_cast<float>(logsumexp);
  for (std::int64_t col = thread; col < args.cols; col += kThreads) {
    z[col] = expf(z[col] - shift) - (col == target ? 1.0f : 0.0f);
  }
}

struct ClearArgs {
  const std::int32_t* targets;
  std::int64_t target_stride;
  void* dx;
  std::int64_t stride, cols;
  std::int32_t ignore_index;
};

// 0 · W is not 0 where W is not finite.
template <class T>
__global__ void __launch_bounds__(kThreads) clear_ignored(const __grid_constant__ ClearArgs args) {
  const std::int64_t row = blockIdx.x;
  if (args.targets[row * args.target_stride] != args.ignore_index) return;
  T* const dx = static_cast<T*>(args.dx) + row * args.stride;
  for (std::int64_t col = threadIdx.x; col < args.cols; col += kThreads) {
    dx[col] = from_float<T>(0.0f);
  }
}

void launch_loss(const Call& call, const LinearCrossEntropy& p, std::int64_t first,
                 std::int64_t count, float* logits) {
  LossArgs args{};
  args.logits = logits;
  args.targets = p.targets.data_as<std::int32_t>() + first * p.targets.stride(0);
  args.target_stride = p.targets.stride(0);
  args.losses = p.losses.mutable_data_as<float>() + first * p.losses.stride(0);
  args.loss_stride = p.losses.stride(0);
  args.cols = p.weight.out_features();
  args.ignore_index = p.ignore_index;
  args.gradient = p.dx.present();
  call.launch({.grid = static_cast<unsigned>(count), .block = kThreads}, loss_row, args);
}

void launch_clear(const Call& call, const LinearCrossEntropy& p) {
  if (p.dx.size() == 0) return;
  const ClearArgs args{p.targets.data_as<std::int32_t>(),
                       p.targets.stride(0),
                       p.dx.mutable_data(),
                       p.dx.stride(0),
                       p.dx.dim(1),
                       p.ignore_index};
  const Launch how{.grid = static_cast<unsigned>(p.dx.dim(0)), .block = kThreads};
  with_type(p.dx.dtype(),
            [&]<class T>(std::type_identity<T>) { call.launch(how, clear_ignored<T>, args); });
}

std::size_t logits_bytes(const LinearCrossEntropy& p) {
  return static_cast<std::size_t>(chunk_rows(p) * p.weight.out_features()) * sizeof(float);
}

}  // namespace

Support supports(const LinearCrossEntropy& p) {
  return all_of({supports_device(p.x.device().index), float_on_cuda("x", p.x),
                 weight_on_cuda(p.weight), float_on_cuda("dx", p.dx)});
}

void linear_cross_entropy(Context& context, const LinearCrossEntropy& p) {
  constexpr const char* kOp = "linear_cross_entropy";
  Call call(kOp, context);
  call.reaches("x", p.x);
  reaches(call, p.weight);
  call.reaches("targets", p.targets);
  call.reaches("losses", p.losses);
  call.reaches("dx", p.dx);
  if (p.x.dim(0) == 0) return;
  float* const logits = reinterpret_cast<float*>(call.workspace(logits_bytes(p)));
  const std::int64_t rows = p.x.dim(0), most = chunk_rows(p);
  for (std::int64_t first = 0; first < rows; first += most) {
    const std::int64_t count = std::min(most, rows - first);
    const Term product = logits_term(p, first, count, logits);
    run(kOp, context, {&product, 1});
    launch_loss(call, p, first, count, logits);
    if (!p.dx.present()) continue;
    const Term gradient = gradient_term(p, first, count, logits);
    run(kOp, context, {&gradient, 1});
  }
  if (p.dx.present()) launch_clear(call, p);
}

std::size_t scratch_bytes(const LinearCrossEntropy& p, int) {
  if (p.x.dim(0) == 0) return 0;
  const std::int64_t count = chunk_rows(p);
  const Term product = logits_term(p, 0, count, nullptr);
  std::size_t bytes = scratch_bytes({&product, 1});
  if (p.dx.present()) {
    const Term gradient = gradient_term(p, 0, count, nullptr);
    bytes = std::max(bytes, scratch_bytes({&gradient, 1}));
  }
  return logits_bytes(p) + bytes;
}

}  // namespace graft::cuda
