// A turn reads and writes each element once (bfloat16: 4 bytes). The angles of a token are made
// once for a block's heads, in double as the CPU makes them: at position 10,000 a float32 angle
// would be off by 5e-4, and float32 sines of a large angle by more than that.

#include <algorithm>
#include <cmath>

#include "backend/cuda/call.h"
#include "backend/cuda/row_flow.cuh"
#include "backend/table.h"
#include "graft/rope.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPairs = 256;  // whose angles a launch knows: heads of up to 512 elements

// theta^(−i / pairs) of pairs first, first + 1, ... as the CPU rounds them.
struct Frequencies {
  double values[kPairs];
};

// A matrix of heads for each token of each sequence.
template <class T>
struct Heads {
  T* data;
  std::int64_t batch_stride, token_stride, head_stride;

  __device__ T* head(std::int64_t batch, std::int64_t token, std::int64_t head) const {
    return data + batch * batch_stride + token * token_stride + head * head_stride;
  }
};

struct Turn {
  std::int64_t batches, tokens, heads;
  int pairs, first_pair, last_pair;  // of a head, and of this launch
  std::int64_t position;
  double scaling_factor;
  float direction;
  bool interleaved;
  std::int64_t share;  // heads of a block
};

// Block (x, y): tokens x, x + gridDim.x, ...; heads [y · share, (y + 1) · share) of all sequences'.
// A unit of work is N pairs of a head, in two packs: (i, i + pairs) are in the same place of both,
// (2i, 2i + 1) beside each other in one.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    rope_packs(Turn turn, const __grid_constant__ Frequencies frequencies, Heads<const T> x,
               Heads<T> y) {
  __shared__ float cosines[kPairs], sines[kPairs];
  wait_for_kernel_before();
  const std::int64_t all_heads = turn.batches * turn.heads;
  const std::int64_t first_head = blockIdx.y * turn.share;
  const std::int64_t last_head = min(first_head + turn.share, all_heads);
  const int pairs = turn.last_pair - turn.first_pair, units = pairs / N;
  for (std::int64_t token = blockIdx.x; token < turn.tokens; token += gridDim.x) {
    for (int i = threadIdx.x; i < pairs; i += kThreads) {
      const double angle =
          static_cast<double>(turn.position + token) / turn.scaling_factor * frequencies.values[i];
      double sine, cosine;
      sincos(angle, &sine, &cosine);
      cosines[i] = static_cast<float>(cosine);
      sines[i] = static_cast<float>(sine) * turn.direction;
    }
    __syncthreads();
    for (std::int64_t work = threadIdx.x; work < (last_head - first_head) * units;
         work += kThreads) {
      const std::int64_t head = first_head + work / units, batch = head / turn.heads;
      const int pair = static_cast<int>(work % units) * N, column = turn.first_pair + pair;
      const int a = turn.interleaved ? 2 * column : column;
      const int b = turn.interleaved ? a + N : column + turn.pairs;
      const T* const from = x.head(batch, token, head - batch * turn.heads);
      T* const to = y.head(batch, token, head - batch * turn.heads);
      float both[2 * N];
      float(&first)[N] = reinterpret_cast<float(&)[N]>(both[0]);
      float(&second)[N] = reinterpret_cast<float(&)[N]>(both[N]);
      unpack(*reinterpret_cast<const Pack<T, N>*>(from + a), first);
      unpack(*reinterpret_cast<const Pack<T, N>*>(from + b), second);
      const auto turn_pair = [&](int i, float& p, float& q) {
        const float c = cosines[pair + i], s = sines[pair + i];
        const float turned = p * c - q * s;
        q = q * c + p * s, p = turned;
      };
#pragma unroll
      for (int i = 0; i < N; ++i) {
        turn.interleaved ? turn_pair(i, both[2 * i], both[2 * i + 1])
                         : turn_pair(i, both[i], both[N + i]);
      }
      store(first, to + a);
      store(second, to + b);
    }
    __syncthreads();
  }
}

template <class T>
Heads<const T> heads_of(const ConstTensorView& view) {
  return {view.data_as<T>(), view.stride(0), view.stride(1), view.stride(2)};
}

template <class T>
Heads<T> heads_of(const TensorView& view) {
  return {view.mutable_data_as<T>(), view.stride(0), view.stride(1), view.stride(2)};
}

}  // namespace

Support supports(const Rope& p) { return floats_on_cuda("x", p.x); }
std::size_t scratch_bytes(const Rope&, int) { return 0; }

void rope(Context& context, const Rope& p) {
  Call call("rope", context);
  call.reaches("x", p.x), call.reaches("y", p.y);
  if (p.x.size() == 0) return;
  const std::int64_t tokens = p.x.dim(1), heads = p.x.dim(0) * p.x.dim(2), pairs = p.x.dim(3) / 2;
  Turn turn{.batches = p.x.dim(0),
            .tokens = tokens,
            .heads = p.x.dim(2),
            .pairs = static_cast<int>(pairs),
            .first_pair = 0,
            .last_pair = 0,
            .position = p.rotary.position,
            .scaling_factor = static_cast<double>(p.rotary.scaling_factor),
            .direction = p.inverse ? -1.0f : 1.0f,
            .interleaved = p.rotary.interleaved,
            .share = 0};
  // So many heads that a block's threads have a unit each; angles are made again for the others.
  turn.share = std::clamp<std::int64_t>(kThreads * (kPackBytes / 4) / pairs, 1, heads);
  constexpr std::int64_t kMostShares = 65535, kMostTokens = 1 << 30;
  turn.share = std::max(turn.share, (heads + kMostShares - 1) / kMostShares);
  const Launch how{.grid = {static_cast<unsigned>(std::min(tokens, kMostTokens)),
                            static_cast<unsigned>((heads + turn.share - 1) / turn.share)},
                   .block = kThreads,
                   .overlaps = call.facts().major >= 9};
  with_type(p.x.dtype(), [&]<class T>(std::type_identity<T>) {
    const bool packs = in_packs({p.x, p.y}) && pairs % kPackSize<T> == 0;
    const auto kernel = packs ? rope_packs<T, kPackSize<T>> : rope_packs<T, 1>;
    for (std::int64_t first = 0; first < pairs; first += kPairs) {
      turn.first_pair = static_cast<int>(first);
      turn.last_pair = static_cast<int>(std::min(first + kPairs, pairs));
      Frequencies frequencies{};
      for (int i = turn.first_pair; i < turn.last_pair; ++i) {
        frequencies.values[i - turn.first_pair] =
            std::pow(static_cast<double>(p.rotary.theta),
                     -static_cast<double>(i) / static_cast<double>(pairs));
      }
      call.launch(how, kernel, turn, frequencies, heads_of<T>(p.x), heads_of<T>(p.y));
    }
  });
}

}  // namespace graft::cuda
