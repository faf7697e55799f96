#pragma once

#include <cstdint>
#include <cstring>

#include "backend/cuda/async_copy.cuh"
#include "backend/cuda/call.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/row_plan.h"

// What row kernels are made of: packs of 16 bytes, teams of threads that share a row, and what they
// tell each other.

namespace graft::cuda {

// Elements of 16 bits are handled two at a time, as words: the compiler would take a pack apart,
// and move its elements one by one.

/// Both elements of a word, the first in its low half.
template <class T>
__device__ void unpack_word(std::uint32_t word, float& first, float& second) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    first = __uint_as_float(word << 16), second = __uint_as_float(word & 0xFFFF0000u);
  } else {
    __half2 both;
    std::memcpy(&both, &word, sizeof(word));
    const float2 values = __half22float2(both);
    first = values.x, second = values.y;
  }
}

template <class T>
__device__ std::uint32_t pack_word(float first, float second) {
  std::uint32_t word;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
    std::memcpy(&word, &both, sizeof(word));
  } else {
    const __half2 both = __floats2half2_rn(first, second);
    std::memcpy(&word, &both, sizeof(word));
  }
  return word;
}

template <class T, int N>
__device__ void unpack(const Pack<T, N>& pack, float (&values)[N]) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    std::uint32_t words[N / 2];
    std::memcpy(words, &pack, sizeof(words));
#pragma unroll
    for (int i = 0; i < N / 2; ++i) unpack_word<T>(words[i], values[2 * i], values[2 * i + 1]);
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) values[e] = to_float(pack.values[e]);
  }
}

template <class T, int N>
__device__ Pack<T, N> packed(const float (&values)[N]) {
  Pack<T, N> pack;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    std::uint32_t words[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) words[i] = pack_word<T>(values[2 * i], values[2 * i + 1]);
    std::memcpy(&pack, words, sizeof(words));
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) pack.values[e] = from_float<T>(values[e]);
  }
  return pack;
}

/// As if the pack changed: what was unpacked of it is unpacked again when it is next asked for,
/// rather than kept, which takes two registers for one.
template <class T, int N>
__device__ void keep_packed(Pack<T, N>& pack) {
  static_assert(sizeof(pack) == kPackBytes);
  auto& words = reinterpret_cast<std::uint32_t(&)[4]>(pack);
  asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
}

template <int Bytes>
using Word = std::conditional_t<
    Bytes % 16 == 0, uint4,
    std::conditional_t<Bytes == 8, uint2,
                       std::conditional_t<Bytes == 4, unsigned, unsigned short>>>;

__device__ inline void store_word(const uint4& word, uint4* to) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"l"(__cvta_generic_to_global(to)),
               "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}

template <class Words>
__device__ void store_word(const Words& word, Words* to) {
  *to = word;
}

/// N elements from memory, at an address of min(16, their bytes).
template <class T, int N>
__device__ Pack<T, N> load_pack(const T* from) {
  using Words = Word<static_cast<int>(sizeof(Pack<T, N>))>;
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(Words)); ++i) {
    const Words word = reinterpret_cast<const Words*>(from)[i];
    std::memcpy(reinterpret_cast<char*>(&pack) + i * sizeof(word), &word, sizeof(word));
  }
  return pack;
}

/// A pack from shared memory.
template <class T>
__device__ Pack<T, kPackSize<T>> shared_pack(std::uint32_t from) {
  uint4 word;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "r"(from)
               : "memory");
  Pack<T, kPackSize<T>> pack;
  std::memcpy(&pack, &word, sizeof(word));
  return pack;
}

/// N elements to global memory, likewise.
template <class T, int N>
__device__ void store_pack(const Pack<T, N>& pack, T* to) {
  using Words = Word<static_cast<int>(sizeof(Pack<T, N>))>;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(Words)); ++i) {
    Words word;
    std::memcpy(&word, reinterpret_cast<const char*>(&pack) + i * sizeof(word), sizeof(word));
    store_word(word, reinterpret_cast<Words*>(to) + i);
  }
}

template <class T, int N>
__device__ void store(const float (&values)[N], T* to) {
  store_pack(packed<T>(values), to);
}

/// Rows of a matrix, `stride` elements apart; absent if `data` is null.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;

  __device__ T* row(std::int64_t index) const { return data + index * stride; }
};

template <class T>
Rows<const T> rows_of(const ConstTensorView& view) {
  if (!view.present()) return {};
  return {view.data_as<T>(), view.stride(0)};
}

template <class T>
Rows<T> rows_of(const TensorView& view) {
  if (!view.present()) return {};
  return {view.mutable_data_as<T>(), view.stride(0)};
}

/// 2^t, zero where that is below float32's normal numbers; the fast one, right but for its last
/// bits.
__device__ inline float power_of_2(float t) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(t));
  return power;
}

struct Add {
  static constexpr float kNothing = 0.0f;
  __device__ float operator()(float a, float b) const { return a + b; }
};

/// The larger one; a number if one of them is NaN.
struct Largest {
  static constexpr float kNothing = -INFINITY;
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// What threads of a row tell each other, in shared memory. Two of each, used in turns: who writes
/// in one has passed the barrier of the other, and so has everybody who read the one before.
struct Exchange {
  alignas(16) float warps[2][2][64];
  alignas(8) float blocks[2][8][2];
  alignas(8) unsigned long long boxes[2];
};

/// The threads that share a row: `group` threads of each of `cluster` blocks. Several teams of
/// several warps in a block meet at barriers of their own, if there is `Several`: all of a block's
/// 16, of which a multiprocessor has enough for four blocks.
template <bool Several>
class Team {
 public:
  __device__ Team(const RowPlan& plan, Exchange& exchange)
      : exchange_(exchange),
        threads_(plan.group),
        cluster_(plan.cluster),
        index_(plan.groups == 1 ? 0 : static_cast<int>(threadIdx.x) / plan.group),
        member_(static_cast<int>(threadIdx.x) - index_ * plan.group) {
#if __CUDA_ARCH__ >= 900
    if (cluster_ > 1) rank_ = rank_in_cluster();
#endif
  }

  /// Before the first `reduce`, and after what is to be on its way meanwhile.
  __device__ void begin() {
#if __CUDA_ARCH__ >= 900
    if (cluster_ == 1) return;
    if (threadIdx.x == 0) {
      make_box(shared_address(&exchange_.boxes[0]));
      make_box(shared_address(&exchange_.boxes[1]));
    }
    meet_cluster();
#endif
  }

  __device__ int index() const { return index_; }    ///< Among the block's groups.
  __device__ int member() const { return member_; }  ///< Among the threads of the block's group.
  __device__ int rank() const { return rank_; }      ///< Of the block in its cluster.

  /// Each value over all threads of the row, in an order that is always the same; all threads get
  /// the same bits. All threads of the row must be here.
  template <int N, class Op>
  __device__ void reduce(float (&values)[N], Op op) {
    static_assert(N <= 2);
    over_warp(values, op);
    if (threads_ > 32) over_block(values, op);
#if __CUDA_ARCH__ >= 900
    if (cluster_ > 1) over_cluster(values, op);
#endif
    turn_ ^= 1;
  }

 private:
  template <int N, class Op>
  __device__ static void over_warp(float (&values)[N], Op op) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        values[n] = op(values[n], __shfl_xor_sync(0xFFFFFFFFu, values[n], apart));
      }
    }
  }

  template <int N, class Op>
  __device__ void over_block(float (&values)[N], Op op) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warps = threads_ / 32;
    const bool few = warps <= 4;
    float(&slots)[2][64] = exchange_.warps[turn_];
    const int first = index_ * (few ? 4 : 16);
    if (lane == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) slots[n][first + member_ / 32] = values[n];
    }
    if constexpr (Several) {
      meet(1 + index_, threads_);
    } else {
      __syncthreads();
    }
    if (few) {  // every thread adds them up
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float4 all = *reinterpret_cast<const float4*>(&slots[n][first]);
        values[n] = op(op(all.x, all.y),
                       op(warps > 2 ? all.z : Op::kNothing, warps > 3 ? all.w : Op::kNothing));
      }
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] = lane < warps ? slots[n][first + lane] : Op::kNothing;
      over_warp(values, op);
    }
  }

#if __CUDA_ARCH__ >= 900
  // Every block sends its values to all blocks of the cluster. A message and its arrival are one
  // instruction (st.async), so nobody waits for stores of a row that are on their way to memory.
  template <int N, class Op>
  __device__ void over_cluster(float (&values)[N], Op op) {
    float(&blocks)[8][2] = exchange_.blocks[turn_];
    const std::uint32_t box = shared_address(&exchange_.boxes[turn_]);
    if (static_cast<int>(threadIdx.x) < cluster_) {
      const int to = static_cast<int>(threadIdx.x);
      if (to == 0) expect_letters(box, cluster_ * 8);
      send(in_block(shared_address(&blocks[rank_][0]), to), values[0], N > 1 ? values[N - 1] : 0.0f,
           in_block(box, to));
    }
    wait_letters(box, rounds_ >> turn_ & 1);
    rounds_ ^= 1 << turn_;
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = blocks[0][n];
    for (int rank = 1; rank < cluster_; ++rank) {
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] = op(values[n], blocks[rank][n]);
    }
  }
#endif

  Exchange& exchange_;
  int threads_, cluster_, index_, member_;
  int rank_ = 0;
  int turn_ = 0;    // which of the two of everything is next
  int rounds_ = 0;  // bit i: the parity of box i
};

/// Blocks of kernels with a row in hand on a multiprocessor: they keep memory busy for one another.
/// Where the compiler takes more registers for the same, it would spill them.
#if __CUDA_ARCH__ >= 900
inline constexpr int kHandBlocks = 2;
#else
inline constexpr int kHandBlocks = 1;
#endif

/// The columns that a thread has of its team's rows: packs that begin at column(0), column(1), ...
///
///     lane of a warp   0       1           31      0       1
///     row              [k = 0 ][k = 0 ]... [k = 0 ][k = 1 ][k = 1 ]...
///
/// A warp's packs lie side by side, so that each is a fixed number of bytes from the one before.
template <class T, int Packs>
class Columns {
 public:
  static constexpr int kPack = kPackSize<T>, kApart = 32 * kPack;

  template <bool Several>
  __device__ Columns(const RowPlan& plan, const Team<Several>& team, int columns) {
    const int begin = team.rank() * plan.part, lane = team.member() % 32;
    end_ = min(begin + plan.part, columns);
    column_ = begin + (team.member() - lane) * (Packs * kPack) + lane * kPack;
  }

  __device__ int column(int k) const { return column_ + k * kApart; }
  /// Whether the row goes on at pack k.
  __device__ bool has(int k) const { return column(k) < end_; }

 protected:
  int column_, end_;
};

/// The row of a team that has one, straight from memory to registers. The other blocks of a
/// multiprocessor keep memory busy while this one computes.
template <class T, int Packs>
class RowInHand : public Columns<T, Packs> {
 public:
  using Columns<T, Packs>::kPack;
  using Columns<T, Packs>::kApart;
  using Columns<T, Packs>::has;

  __device__ RowInHand(const RowPlan& plan, const Team<false>& team, int columns)
      : Columns<T, Packs>(plan, team, columns) {
    const unsigned cluster =
        plan.cluster == 1 ? blockIdx.x : blockIdx.x / static_cast<unsigned>(plan.cluster);
    row_ = static_cast<std::int64_t>(cluster) * plan.groups + team.index();
  }

  __device__ std::int64_t row() const { return row_; }

  /// This thread's packs of it, `otherwise` where it has ended.
  __device__ void load(const Rows<const T>& rows, float otherwise,
                       Pack<T, kPack> (&packs)[Packs]) const {
    const T* const from = rows.row(row_) + this->column_;
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (has(k)) {
        packs[k] = load_pack<T, kPack>(from + k * kApart);
      } else {
        float values[kPack];
#pragma unroll
        for (int e = 0; e < kPack; ++e) values[e] = otherwise;
        packs[k] = packed<T>(values);
      }
    }
  }

  /// Where this thread's part of the row begins; its packs are kApart elements apart.
  template <class Element>
  __device__ Element* mine(const Rows<Element>& rows) const {
    return rows.row(row_) + this->column_;
  }

 private:
  std::int64_t row_;
};

/// A vector of any floating type along the columns, such as a norm's weight.
struct Vector {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;

  /// Element `column`, or `otherwise` if there is no vector.
  __device__ float at(std::int64_t column, float otherwise) const {
    if (data == nullptr) return otherwise;
    switch (dtype) {
      case DType::kFloat16:
        return to_float(static_cast<const __half*>(data)[column]);
      case DType::kBFloat16:
        return to_float(static_cast<const __nv_bfloat16*>(data)[column]);
      default:
        return static_cast<const float*>(data)[column];
    }
  }

  /// Whether there is one, of T.
  template <class T>
  __device__ bool is() const {
    constexpr DType kOfT = std::is_same_v<T, float>    ? DType::kFloat32
                           : std::is_same_v<T, __half> ? DType::kFloat16
                                                       : DType::kBFloat16;
    return data != nullptr && dtype == kOfT;
  }

  /// N elements, of which the first is at an address of min(16, their bytes).
  template <int N>
  __device__ void load(int column, float otherwise, float (&values)[N]) const {
    if (data == nullptr) {
#pragma unroll
      for (int e = 0; e < N; ++e) values[e] = otherwise;
      return;
    }
    switch (dtype) {
      case DType::kFloat16:
        return load_as<__half>(column, values);
      case DType::kBFloat16:
        return load_as<__nv_bfloat16>(column, values);
      default:
        return load_as<float>(column, values);
    }
  }

 private:
  template <class W, int N>
  __device__ void load_as(int column, float (&values)[N]) const {
    unpack(load_pack<W, N>(static_cast<const W*>(data) + column), values);
  }
};

inline Vector vector_of(const ConstTensorView& view) { return {view.data(), view.dtype()}; }

/// A plan for all threads of a block on one row, in kernels that take any rows.
inline RowPlan any_rows_plan(std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t kMostBlocks = 1 << 20;
  RowPlan plan;
  plan.group = columns >= kRowThreads
                   ? kRowThreads
                   : (columns < 32 ? 32 : static_cast<int>((columns + 31) / 32 * 32));
  plan.blocks = static_cast<int>(rows < kMostBlocks ? rows : kMostBlocks);
  return plan;
}

/// Launches a kernel for rows.
template <class... Params, class... Args>
void launch_rows(const Call& call, const RowPlan& plan, void (*kernel)(RowPlan, Params...),
                 Args&&... args) {
  const Launch how{.grid = static_cast<unsigned>(plan.blocks),
                   .block = static_cast<unsigned>(plan.threads()),
                   .shared_bytes = plan.shared_bytes,
                   .cluster = plan.cluster,
                   // Only what waits may overlap: kernels for any rows don't, nor do older GPUs.
                   .overlaps = plan.fits && call.facts().major >= 9};
  call.launch(how, kernel, plan, std::forward<Args>(args)...);
}

}  // namespace graft::cuda
