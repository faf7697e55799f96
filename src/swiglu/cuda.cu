// SwiGLU is bound by memory (bfloat16: 6 bytes an element forward, 10 backward): a thread asks for
// several packs of 16 bytes of each input, far apart, before it computes with any.

#include <cmath>

#include "backend/cuda/call.h"
#include "backend/cuda/row_flow.cuh"
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
__device__ Pack<T, N> pack_at(const Rows<const T>& rows, std::int64_t row, std::int64_t column) {
  return load_pack<T, N>(rows.row(row) + column);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    swiglu_packs(Spans spans, Rows<const T> gate, Rows<const T> up, Rows<T> y) {
  wait_for_kernel_before();
  Pack<T, N> gates[kUnroll], ups[kUnroll];
  for_each_pack<N>(
      spans,
      [&](int u, std::int64_t row, std::int64_t column) {
        gates[u] = pack_at<T, N>(gate, row, column), ups[u] = pack_at<T, N>(up, row, column);
      },
      [&](int u, std::int64_t row, std::int64_t column) {
        float values[N];
#pragma unroll
        for (int e = 0; e < N; ++e) {
          const float t = to_float(gates[u].values[e]);
          values[e] = t * sigmoid<T>(t) * to_float(ups[u].values[e]);
        }
        store(values, y.row(row) + column);
      });
}

// silu'(t) = σ(t) · (1 + t · (1 − σ(t)))
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    swiglu_backward_packs(Spans spans, Rows<const T> dy, Rows<const T> gate, Rows<const T> up,
                          Rows<T> dgate, Rows<T> dup) {
  wait_for_kernel_before();
  Pack<T, N> gradients[kUnroll], gates[kUnroll], ups[kUnroll];
  for_each_pack<N>(
      spans,
      [&](int u, std::int64_t row, std::int64_t column) {
        gradients[u] = pack_at<T, N>(dy, row, column);
        gates[u] = pack_at<T, N>(gate, row, column), ups[u] = pack_at<T, N>(up, row, column);
      },
      [&](int u, std::int64_t row, std::int64_t column) {
        float of_gate[N], of_up[N];
#pragma unroll
        for (int e = 0; e < N; ++e) {
          const float d = to_float(gradients[u].values[e]), t = to_float(gates[u].values[e]);
          const float share = sigmoid<T>(t);
          of_gate[e] = d * to_float(ups[u].values[e]) * (share * (1.0f + t * (1.0f - share)));
          of_up[e] = d * (t * share);
        }
        if (dgate.data != nullptr) store(of_gate, dgate.row(row) + column);
        if (dup.data != nullptr) store(of_up, dup.row(row) + column);
      });
}

// One row where none of them (all of one shape) has gaps.
bool without_gaps(std::initializer_list<ConstTensorView> views) {
  for (const ConstTensorView& view : views) {
    if (view.present() && view.dim(0) > 1 && view.stride(0) != view.dim(1)) return false;
  }
  return true;
}

template <class Body>
void run(const Call& call, std::initializer_list<ConstTensorView> views, Body&& body) {
  const ConstTensorView& first = *views.begin();
  Spans spans{first.dim(0), first.dim(1), 0};
  if (without_gaps(views)) spans = {1, spans.rows * spans.columns, 0};
  with_type(first.dtype(), [&]<class T>(std::type_identity<T> type) {
    const auto launch = [&](auto pack) {
      constexpr std::int64_t kChunk = kThreads * kUnroll * pack, kMostBlocks = 1 << 30;
      spans.chunks = (spans.columns + kChunk - 1) / kChunk;
      const std::int64_t blocks = spans.rows * spans.chunks;
      const Launch how{.grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks),
                       .block = kThreads,
                       .overlaps = call.facts().major >= 9};
      body(type, pack, how, spans);
    };
    in_packs(views) ? launch(std::integral_constant<int, kPackSize<T>>())
                    : launch(std::integral_constant<int, 1>());
  });
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
  run(call, {p.gate, p.up, p.y},
      [&]<class T>(std::type_identity<T>, auto pack, const Launch& how, const Spans& spans) {
        call.launch(how, swiglu_packs<T, pack>, spans, rows_of<T>(p.gate), rows_of<T>(p.up),
                    rows_of<T>(p.y));
      });
}

void swiglu_backward(Context& context, const SwigluBackward& p) {
  Call call("swiglu_backward", context);
  call.reaches("dy", p.dy), call.reaches("gate", p.gate), call.reaches("up", p.up);
  call.reaches("dgate", p.dgate), call.reaches("dup", p.dup);
  if (p.gate.size() == 0) return;
  run(call, {p.gate, p.up, p.dy, p.dgate, p.dup},
      [&]<class T>(std::type_identity<T>, auto pack, const Launch& how, const Spans& spans) {
        call.launch(how, swiglu_backward_packs<T, pack>, spans, rows_of<T>(p.dy),
                    rows_of<T>(p.gate), rows_of<T>(p.up), rows_of<T>(p.dgate), rows_of<T>(p.dup));
      });
}

}  // namespace graft::cuda
