// SwiGLU is bound by memory (bfloat16: 6 bytes an element forward, 10 backward): a thread asks for
// several packs of 16 bytes of each input, far apart, before it computes with any.

#include <cmath>

#include "backend/cuda/call.h"
#include "backend/cuda/rows.cuh"
#include "backend/table.h"
#include "graft/swiglu.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 2;  // packs of each matrix that a thread has

// 1 / (1 + e^−t). Of a result in 16 bits the fast ones are right too, and arithmetic would take as
// long as memory with the others.
template <class T>
__device__ float sigmoid(float t) {
  if constexpr (std::is_same_v<T, float>) return 1.0f / (1.0f + expf(-t));
  return __fdividef(1.0f, 1.0f + __expf(-t));
}

// Element by element over rows: block i has `kThreads * kUnroll` packs of row i / chunks.
struct Spans {
  std::int64_t rows, columns, chunks;
};

template <int Pack>
__device__ void for_each_pack(const Spans& spans, auto load, auto use) {
  constexpr std::int64_t kChunk = kThreads * kUnroll * Pack;
  for (std::int64_t block = blockIdx.x; block < spans.rows * spans.chunks; block += gridDim.x) {
    const std::int64_t row = block / spans.chunks;
    const std::int64_t first = (block - row * spans.chunks) * kChunk + threadIdx.x * Pack;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t column = first + u * kThreads * Pack;
      if (column < spans.columns) load(u, row, column);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t column = first + u * kThreads * Pack;
      if (column < spans.columns) use(u, row, column);
    }
  }
}

template <class T, int N>
__device__ Pack<T, N> pack_at(const Matrix& matrix, std::int64_t row, std::int64_t column) {
  return load_pack<T, N>(matrix.row<const T>(row) + column);
}

// Elements one by one where they don't lie in packs.
template <class Body>
__device__ void with_pack(DType dtype, bool in_packs, Body&& body) {
  with_type(dtype, [&]<class T>(std::type_identity<T> type) {
    in_packs ? body(type, std::integral_constant<int, kPackSize<T>>())
             : body(type, std::integral_constant<int, 1>());
  });
}

template <class T, int N>
__device__ void swiglu_packs(const Spans& spans, const Matrix& gate, const Matrix& up,
                             const Matrix& y) {
  Pack<T, N> gates[kUnroll], ups[kUnroll];
  for_each_pack<N>(
      spans,
      [&](int u, std::int64_t row, std::int64_t column) {
        gates[u] = pack_at<T, N>(gate, row, column), ups[u] = pack_at<T, N>(up, row, column);
      },
      [&](int u, std::int64_t row, std::int64_t column) {
        float t[N], factors[N];
        unpack(gates[u], t), unpack(ups[u], factors);
#pragma unroll
        for (int e = 0; e < N; ++e) t[e] *= sigmoid<T>(t[e]) * factors[e];
        store(t, y.row<T>(row) + column);
      });
}

__global__ void __launch_bounds__(kThreads)
    swiglu_kernel(Spans spans, DType dtype, bool in_packs, Matrix gate, Matrix up, Matrix y) {
  wait_for_kernel_before();
  let_next_kernel_start();
  with_pack(dtype, in_packs, [&]<class T>(std::type_identity<T>, auto pack) {
    swiglu_packs<T, pack>(spans, gate, up, y);
  });
}

// silu'(t) = σ(t) · (1 + t · (1 − σ(t)))
template <class T, int N>
__device__ void swiglu_backward_packs(const Spans& spans, const Matrix& dy, const Matrix& gate,
                                      const Matrix& up, const Matrix& dgate, const Matrix& dup) {
  Pack<T, N> gradients[kUnroll], gates[kUnroll], ups[kUnroll];
  for_each_pack<N>(
      spans,
      [&](int u, std::int64_t row, std::int64_t column) {
        gradients[u] = pack_at<T, N>(dy, row, column);
        gates[u] = pack_at<T, N>(gate, row, column), ups[u] = pack_at<T, N>(up, row, column);
      },
      [&](int u, std::int64_t row, std::int64_t column) {
        float d[N], t[N], factors[N], of_gate[N], of_up[N];
        unpack(gradients[u], d), unpack(gates[u], t), unpack(ups[u], factors);
#pragma unroll
        for (int e = 0; e < N; ++e) {
          const float share = sigmoid<T>(t[e]);
          of_gate[e] = d[e] * factors[e] * (share * (1.0f + t[e] * (1.0f - share)));
          of_up[e] = d[e] * (t[e] * share);
        }
        if (dgate.data != nullptr) store(of_gate, dgate.row<T>(row) + column);
        if (dup.data != nullptr) store(of_up, dup.row<T>(row) + column);
      });
}

__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(Spans spans, DType dtype, bool in_packs, Matrix dy, Matrix gate,
                           Matrix up, Matrix dgate, Matrix dup) {
  wait_for_kernel_before();
  let_next_kernel_start();
  with_pack(dtype, in_packs, [&]<class T>(std::type_identity<T>, auto pack) {
    swiglu_backward_packs<T, pack>(spans, dy, gate, up, dgate, dup);
  });
}

// One row where none of them (all of one shape) has gaps.
bool without_gaps(std::initializer_list<ConstTensorView> views) {
  for (const ConstTensorView& view : views) {
    if (view.present() && view.dim(0) > 1 && view.stride(0) != view.dim(1)) return false;
  }
  return true;
}

// `matrices` as the kernel takes them, all of the shape of the first.
template <class... Params, class... Matrices>
void run(const Call& call, void (*kernel)(Spans, DType, bool, Params...),
         const Matrices&... matrices) {
  const std::initializer_list<ConstTensorView> views = {matrices...};
  const ConstTensorView& first = *views.begin();
  const bool packs = in_packs(views);
  Spans spans{first.dim(0), first.dim(1), 0};
  if (without_gaps(views)) spans = {1, spans.rows * spans.columns, 0};
  constexpr std::int64_t kMostBlocks = 1 << 30;
  const std::int64_t pack =
      packs ? kPackBytes / static_cast<std::int64_t>(size_of(first.dtype())) : 1;
  const std::int64_t chunk = kThreads * kUnroll * pack;
  spans.chunks = (spans.columns + chunk - 1) / chunk;
  const std::int64_t blocks = spans.rows * spans.chunks;
  const Launch how{.grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks),
                   .block = kThreads,
                   .overlaps = call.facts().major >= 9};
  call.launch(how, kernel, spans, first.dtype(), packs, matrix_of(matrices)...);
}

}  // namespace

Support supports(const SwigluForward& p) { return floats_on_cuda("gate", p.gate); }
Support supports(const SwigluBackward& p) { return floats_on_cuda("gate", p.gate); }

std::size_t scratch_bytes(const SwigluForward&, int) { return 0; }
std::size_t scratch_bytes(const SwigluBackward&, int) { return 0; }

void swiglu_forward(Context& context, const SwigluForward& p) {
  Call call("swiglu", context);
  call.reaches("gate", p.gate), call.reaches("up", p.up), call.reaches("y", p.y);
  if (p.gate.size() == 0) return;
  run(call, swiglu_kernel, p.gate, p.up, p.y);
}

void swiglu_backward(Context& context, const SwigluBackward& p) {
  Call call("swiglu_backward", context);
  call.reaches("dy", p.dy), call.reaches("gate", p.gate), call.reaches("up", p.up);
  call.reaches("dgate", p.dgate), call.reaches("dup", p.dup);
  if (p.gate.size() == 0) return;
  run(call, swiglu_backward_kernel, p.dy, p.gate, p.up, p.dgate, p.dup);
}

}  // namespace graft::cuda
