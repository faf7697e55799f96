// A turn reads and writes each element once (bfloat16: 4 bytes). The angles of a token are made
// once for a block's heads, in double as the CPU makes them: at position 10,000 a float32 angle
// would be off by 5e-4, and float32 sines of a large angle by more than that.

#include <algorithm>
#include <cmath>

#include "backend/cuda/call.h"
#include "backend/cuda/rows.cuh"
#include "backend/table.h"
#include "graft/rope.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPairs = 256;   // whose angles a launch knows: heads of up to 512 elements
constexpr int kAngles = 512;  // that a block has

// theta^(−i / pairs) of pairs first, first + 1, ... as the CPU rounds them.
struct Frequencies {
  double values[kPairs];
};

// A matrix of heads for each token of each sequence.
struct Heads {
  void* data;
  std::int64_t batch_stride, token_stride, head_stride;

  template <class T>
  __device__ T* head(std::int64_t batch, std::int64_t token, std::int64_t head) const {
    return static_cast<T*>(data) + batch * batch_stride + token * token_stride + head * head_stride;
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
  int together;        // tokens that a block has at a time
};

// Block (x, y): tokens x · together and so on, `together` of them at a time; heads [y · share,
// (y + 1) · share) of all sequences'. A unit of work is N pairs of a head, in two packs:
// (i, i + pairs) are in the same place of both, (2i, 2i + 1) beside each other in one.
template <class T, int N>
__device__ void rope_packs(const Turn& turn, const Frequencies& frequencies, const Heads& x,
                           const Heads& y, float (&cosines)[kAngles], float (&sines)[kAngles]) {
  const std::int64_t first_head = blockIdx.y * turn.share;
  const std::int64_t heads = min(turn.share, turn.batches * turn.heads - first_head);
  const int pairs = turn.last_pair - turn.first_pair, units = pairs / N;
  const int of_token = static_cast<int>(heads) * units;
  for (std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * turn.together;
       token < turn.tokens; token += static_cast<std::int64_t>(gridDim.x) * turn.together) {
    const int tokens = static_cast<int>(min(std::int64_t{turn.together}, turn.tokens - token));
    Pack<T, N> first, second;
    int angle = 0;
    T *to_first = nullptr, *to_second = nullptr;
    const auto load = [&](int work) {
      const int which = tokens == 1 ? 0 : work / of_token;
      work -= which * of_token;
      const int of_head = work / units, pair = (work - of_head * units) * N;
      const std::int64_t head = first_head + of_head;
      const std::int64_t batch = turn.batches == 1 ? 0 : head / turn.heads;
      const int column = turn.first_pair + pair;
      const int a = turn.interleaved ? 2 * column : column;
      const int b = turn.interleaved ? a + N : column + turn.pairs;
      const T* const from = x.head<const T>(batch, token + which, head - batch * turn.heads);
      T* const to = y.head<T>(batch, token + which, head - batch * turn.heads);
      first = load_pack<T, N>(from + a), second = load_pack<T, N>(from + b);
      to_first = to + a, to_second = to + b;
      angle = which * pairs + pair;
    };
    // While the first ones are on their way, the angles are made.
    int work = threadIdx.x;
    if (work < tokens * of_token) load(work);
    for (int i = threadIdx.x; i < tokens * pairs; i += kThreads) {
      const int which = i / pairs;
      const double position =
          static_cast<double>(turn.position + token + which) / turn.scaling_factor;
      double sine, cosine;
      sincos(position * frequencies.values[i - which * pairs], &sine, &cosine);
      cosines[i] = static_cast<float>(cosine);
      sines[i] = static_cast<float>(sine) * turn.direction;
    }
    __syncthreads();
    while (work < tokens * of_token) {
      float values[2][N], cosine[N], sine[N];
      unpack(first, values[0]), unpack(second, values[1]);
      unpack(load_pack<float, N>(cosines + angle), cosine);
      unpack(load_pack<float, N>(sines + angle), sine);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const auto turn_pair = [&](float& p, float& q) {
          const float turned = p * cosine[i] - q * sine[i];
          q = q * cosine[i] + p * sine[i], p = turned;
        };
        if (turn.interleaved) {
          turn_pair(values[2 * i / N][2 * i % N], values[(2 * i + 1) / N][(2 * i + 1) % N]);
        } else {
          turn_pair(values[0][i], values[1][i]);
        }
      }
      store(values[0], to_first), store(values[1], to_second);
      work += kThreads;
      if (work < tokens * of_token) load(work);
    }
    __syncthreads();  // before other angles take the place of these
  }
}

__global__ void __launch_bounds__(kThreads)
    rope_kernel(const __grid_constant__ Turn turn, DType dtype, bool packs,
                const __grid_constant__ Frequencies frequencies, Heads x, Heads y) {
  alignas(16) __shared__ float cosines[kAngles], sines[kAngles];
  wait_for_kernel_before();
  let_next_kernel_start();
  with_type(dtype, [&]<class T>(std::type_identity<T>) {
    packs ? rope_packs<T, kPackSize<T>>(turn, frequencies, x, y, cosines, sines)
          : rope_packs<T, 1>(turn, frequencies, x, y, cosines, sines);
  });
}

Heads heads_of(const ConstTensorView& view) {
  return {const_cast<void*>(view.data()), view.stride(0), view.stride(1), view.stride(2)};
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
            .share = 0,
            .together = 1};
  const auto pack = kPackBytes / static_cast<std::int64_t>(size_of(p.x.dtype()));
  const bool packs = in_packs({p.x, p.y}) && pairs % pack == 0;
  // So many heads that each of a block's threads has a unit, the angles of a token made again for
  // the others; or, of few heads, so many tokens, if there are enough for all multiprocessors.
  constexpr std::int64_t kMostShares = 65535, kMostTokens = 1 << 30;
  const std::int64_t units = kThreads * (packs ? pack : 4);  // pairs of a block
  turn.share = std::clamp<std::int64_t>(units / pairs, 1, heads);
  turn.share = std::max(turn.share, (heads + kMostShares - 1) / kMostShares);
  turn.together = static_cast<int>(std::clamp<std::int64_t>(
      std::min({units / (turn.share * pairs), kAngles / std::min<std::int64_t>(pairs, kPairs),
                tokens / call.facts().multiprocessors}),
      1, kThreads));
  const std::int64_t steps = (tokens + turn.together - 1) / turn.together;
  const Launch how{.grid = {static_cast<unsigned>(std::min(steps, kMostTokens)),
                            static_cast<unsigned>((heads + turn.share - 1) / turn.share)},
                   .block = kThreads,
                   .overlaps = call.facts().major >= 9};
  for (std::int64_t first = 0; first < pairs; first += kPairs) {
    turn.first_pair = static_cast<int>(first);
    turn.last_pair = static_cast<int>(std::min(first + kPairs, pairs));
    Frequencies frequencies{};
    for (int i = turn.first_pair; i < turn.last_pair; ++i) {
      frequencies.values[i - turn.first_pair] =
          std::pow(static_cast<double>(p.rotary.theta),
                   -static_cast<double>(i) / static_cast<double>(pairs));
    }
    call.launch(how, rope_kernel, turn, p.x.dtype(), packs, frequencies, heads_of(p.x),
                heads_of(p.y));
  }
}

}  // namespace graft::cuda
