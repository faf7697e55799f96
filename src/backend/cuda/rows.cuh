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

/// The elements of a pack, made from it each time that they are asked for: the pack stays as it is,
/// also where some of the code that looks at it is skipped.
__device__ inline void unpack_again(const Pack<__nv_bfloat16, 8>& pack, float (&values)[8]) {
  std::uint32_t words[4];
  std::memcpy(words, &pack, sizeof(words));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm volatile("shl.b32 %0, %2, 16;\nand.b32 %1, %2, 0xFFFF0000;\n"
                 : "=&f"(values[2 * i]), "=f"(values[2 * i + 1])
                 : "r"(words[i]));
  }
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

/// A pack that is read once, and not kept in the first-level cache, where vectors along the columns
/// are.
template <class T>
__device__ Pack<T, kPackSize<T>> load_once(const T* from) {
  uint4 word;
  asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  Pack<T, kPackSize<T>> pack;
  std::memcpy(&pack, &word, sizeof(word));
  return pack;
}

/// A pack from shared memory.
template <class T>
__device__ Pack<T, kPackSize<T>> shared_pack(std::uint32_t from) {
  const uint4 word = *static_cast<const uint4*>(__cvta_shared_to_generic(from));
  Pack<T, kPackSize<T>> pack;
  std::memcpy(&pack, &word, sizeof(word));
  return pack;
}

/// Four floats to shared memory.
__device__ inline void put_four(std::uint32_t to, const float* from) {
  *static_cast<float4*>(__cvta_shared_to_generic(to)) =
      make_float4(from[0], from[1], from[2], from[3]);
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

/// A matrix of a type that is known when the kernel runs; absent if `data` is null.
struct Matrix {
  void* data = nullptr;
  std::int64_t row_bytes = 0;  ///< From one row to the next.

  template <class T>
  __device__ T* row(std::int64_t index) const {
    return reinterpret_cast<T*>(static_cast<char*>(data) + index * row_bytes);
  }
};

inline Matrix matrix_of(const ConstTensorView& view) {
  if (!view.present()) return {};
  return {const_cast<void*>(view.data()),
          view.stride(0) * static_cast<std::int64_t>(size_of(view.dtype()))};
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
  alignas(16) float warps[2][4][64];
  alignas(16) float blocks[2][8][4];
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
        slots_(plan.slots),
        index_(plan.groups == 1 ? 0 : static_cast<int>(threadIdx.x) / plan.group),
        member_(static_cast<int>(threadIdx.x) - index_ * plan.group) {
#if __CUDA_ARCH__ >= 900
    if (cluster_ > 1) rank_ = rank_in_cluster();
#endif
  }

  /// By all threads of the block, before the first exchange.
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
  __device__ int cluster() const { return cluster_; }
  __device__ bool has_warps() const { return threads_ > 32; }

  /// Each value over all threads of the row, in an order that is always the same; all threads get
  /// the same bits. All threads of the row must be here.
  template <int N, class Op>
  __device__ void reduce(float (&values)[N], Op op) {
    static_assert(N <= 4);
    over_warp(values, op);
    if (has_warps()) {
      if (slots_ <= 4) {  // every thread adds them up
        const float(&slots)[4][64] = write(values);
        const int first = index_ * slots_, warps = threads_ / 32;
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const float* const all = &slots[n][first];
          values[n] = op(op(all[0], all[1]),
                         op(warps > 2 ? all[2] : Op::kNothing, warps > 3 ? all[3] : Op::kNothing));
        }
      } else {
        const float(&slots)[4][64] = write(values);
        const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
        for (int n = 0; n < N; ++n) {
          values[n] = lane * 32 < threads_ ? slots[n][index_ * slots_ + lane] : Op::kNothing;
        }
        over_warp(values, op);
      }
    }
#if __CUDA_ARCH__ >= 900
    if (cluster_ > 1) {
      float numbers[4] = {};
#pragma unroll
      for (int n = 0; n < N; ++n) numbers[n] = values[n];
      const float(&all)[8][4] = tell_cluster(numbers);
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] = all[0][n];
      for (int rank = 1; rank < cluster_; ++rank) {
#pragma unroll
        for (int n = 0; n < N; ++n) values[n] = op(values[n], all[rank][n]);
      }
    }
#endif
  }

  /// Over the threads of a warp.
  template <int N, class Op>
  __device__ static void over_warp(float (&values)[N], Op op) {
    over_lanes<16>(values, op);
  }

  /// The warp of the group whose values this thread gets by `exchange`; there may be none.
  __device__ int warp_to_hear() const { return member_ % slots_; }

  /// Of the values that are the same in each warp of the group those of warp `warp_to_hear()`.
  template <int N>
  __device__ void exchange(float (&values)[N], float nothing) {
    const float(&slots)[4][64] = write(values);
    const int first = index_ * slots_, from = warp_to_hear();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = from * 32 < threads_ ? slots[n][first + from] : nothing;
    }
  }

  /// Over the warps whose values were exchanged.
  template <int N, class Op>
  __device__ void over_warps(float (&values)[N], Op op) const {
    if (slots_ == 4) return over_lanes<2>(values, op);
    if (slots_ == 16) return over_lanes<8>(values, op);
    for (int apart = slots_ / 2; apart > 0; apart /= 2) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        values[n] = op(values[n], __shfl_xor_sync(0xFFFFFFFFu, values[n], apart));
      }
    }
  }

#if __CUDA_ARCH__ >= 900
  /// Every block's numbers, by its rank, of a cluster of several. A message and its arrival are one
  /// instruction (st.async), so nobody waits for stores of a row that are on their way to memory.
  __device__ const float (&tell_cluster(const float (&numbers)[4]))[8][4] {
    const int letter = told_ & 1;
    float(&blocks)[8][4] = exchange_.blocks[letter];
    const std::uint32_t box = shared_address(&exchange_.boxes[letter]);
    if (static_cast<int>(threadIdx.x) < cluster_) {
      const int to = static_cast<int>(threadIdx.x);
      if (to == 0) expect_letters(box, cluster_ * 16);
      send(in_block(shared_address(&blocks[rank_][0]), to), numbers, in_block(box, to));
    }
    wait_letters(box, told_ >> 1 & 1);
    ++told_;
    return blocks;
  }
#endif

 private:
  template <int Most, int N, class Op>
  __device__ static void over_lanes(float (&values)[N], Op op) {
#pragma unroll
    for (int apart = Most; apart > 0; apart /= 2) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        values[n] = op(values[n], __shfl_xor_sync(0xFFFFFFFFu, values[n], apart));
      }
    }
  }

  // What warps have to say; until all have said it.
  template <int N>
  __device__ const float (&write(const float (&values)[N]))[4][64] {
    float(&slots)[4][64] = exchange_.warps[turn_];
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) slots[n][index_ * slots_ + member_ / 32] = values[n];
    }
    if constexpr (Several) {
      meet(1 + index_, threads_);
    } else {
      __syncthreads();
    }
    turn_ ^= 1;
    return slots;
  }

  Exchange& exchange_;
  int threads_, cluster_, slots_, index_, member_;
  int rank_ = 0;
  int turn_ = 0;  // which of the two of everything is next
  int told_ = 0;  // times that the cluster was told
};

/// The columns that a thread has of its team's rows: packs that begin at column(0), column(1), ...
///
///     lane of a warp   0       1           31      0       1
///     row              [k = 0 ][k = 0 ]... [k = 0 ][k = 1 ][k = 1 ]...
///
/// A warp's packs lie side by side, so that each is a fixed number of bytes from the one before.
template <class T>
class Columns {
 public:
  static constexpr int kPack = kPackSize<T>, kApart = 32 * kPack;

  template <bool Several>
  __device__ Columns(const RowPlan& plan, const Team<Several>& team, int columns)
      : begin_(team.rank() * plan.part), most_(plan.packs * kApart) {
    const int lane = team.member() % 32;
    of_block_ = min(plan.part, columns - begin_);
    in_block_ = (team.member() - lane) * (plan.packs * kPack) + lane * kPack;
    count_ = in_block_ < of_block_ ? min(plan.packs, (of_block_ - 1 - in_block_) / kApart + 1) : 0;
  }

  __device__ int column(int k) const { return begin_ + in_block_ + k * kApart; }
  __device__ int in_block(int k) const { return in_block_ + k * kApart; }
  /// Whether the row goes on at pack k.
  __device__ bool has(int k) const { return k < count_; }
  /// How many columns the block has of a row, from which one on, and warp `index` of its group.
  __device__ int of_block() const { return of_block_; }
  __device__ int column_of_block() const { return begin_; }
  __device__ int of_warp(int index) const { return max(0, min(of_block_ - index * most_, most_)); }

 private:
  int begin_, most_, of_block_, in_block_, count_;
};

/// Blocks of kernels with a row in hand on a multiprocessor: they keep memory busy for one another.
/// Where the compiler takes more registers for the same, it would spill them.
#if __CUDA_ARCH__ >= 900
inline constexpr int kHandBlocks = 2;
#else
inline constexpr int kHandBlocks = 1;
#endif

/// The row of a team that has one, straight from memory to registers. The other blocks of a
/// multiprocessor keep memory busy while this one computes.
template <class T, int Packs>
class RowInHand : public Columns<T> {
 public:
  using Columns<T>::kPack;
  using Columns<T>::kApart;
  using Columns<T>::has;

  __device__ RowInHand(const RowPlan& plan, const Team<false>& team, int columns)
      : Columns<T>(plan, team, columns) {
    const unsigned cluster =
        plan.cluster == 1 ? blockIdx.x : blockIdx.x / static_cast<unsigned>(plan.cluster);
    row_ = static_cast<std::int64_t>(cluster) * plan.groups + team.index();
  }

  __device__ std::int64_t row() const { return row_; }

  /// This thread's packs of it, `otherwise` where it has ended.
  __device__ void load(const Matrix& matrix, float otherwise,
                       Pack<T, kPack> (&packs)[Packs]) const {
    const T* const from = matrix.row<const T>(row_) + this->column(0);
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (has(k)) {
        packs[k] = load_once(from + k * kApart);
      } else {
        float values[kPack];
#pragma unroll
        for (int e = 0; e < kPack; ++e) values[e] = otherwise;
        packs[k] = packed<T>(values);
      }
    }
  }

  /// Where this thread's part of the row begins; its packs are kApart elements apart.
  __device__ T* mine(const Matrix& matrix) const { return matrix.row<T>(row_) + this->column(0); }

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
  plan.slots = slots_of(plan.group);
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
