#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "backend/cuda/async_copy.cuh"
#include "backend/cuda/call.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/row_plan.h"

// Rows flow through the registers of the threads that share them, each read from memory once:
//
//     memory ──cp.async──▶ stage s+1, s+2, ... (shared memory) ──▶ registers ──▶ memory
//
// Blocks stay for all of the kernel, one on a multiprocessor, and a thread asks for rows several
// ahead of the one it computes, so that memory never waits for a reduction. What a thread copies it
// alone reads: no barrier is needed but those of the reductions.

namespace graft::cuda {

template <class T, int N>
__device__ void unpack(const Pack<T, N>& pack, float (&values)[N]) {
#pragma unroll
  for (int e = 0; e < N; ++e) values[e] = to_float(pack.values[e]);
}

/// As if the pack changed: what was unpacked of it is unpacked again when it is next asked for,
/// rather than kept, which takes two registers for one.
template <class T, int N>
__device__ void keep_packed(Pack<T, N>& pack) {
  static_assert(sizeof(pack) == kPackBytes);
  auto& words = reinterpret_cast<std::uint32_t(&)[4]>(pack);
  asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
}

// The compiler would take a pack of 16-bit elements apart, and move them one by one, were it not
// told of whole words.
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
  Pack<T, N> pack;
#pragma unroll
  for (int e = 0; e < N; ++e) pack.values[e] = from_float<T>(values[e]);
  store_pack(pack, to);
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
  float warps[2][2][kRowThreads / 32];
  alignas(8) float blocks[2][8][2];
  alignas(8) unsigned long long boxes[2];
};

/// The threads that share a row: `group` threads of each of `cluster` blocks.
class Team {
 public:
  __device__ Team(const RowPlan& plan, Exchange& exchange)
      : exchange_(exchange),
        threads_(plan.group),
        cluster_(plan.cluster),
        index_(static_cast<int>(threadIdx.x) / plan.group),
        member_(static_cast<int>(threadIdx.x) - index_ * plan.group) {
#if __CUDA_ARCH__ >= 900
    if (cluster_ > 1) {
      rank_ = rank_in_cluster();
      if (threadIdx.x == 0) {
        make_box(shared_address(&exchange.boxes[0]));
        make_box(shared_address(&exchange.boxes[1]));
      }
      meet_cluster();
    }
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
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int first = warp - member_ / 32, warps = threads_ / 32;
    float(&slots)[2][kRowThreads / 32] = exchange_.warps[turn_];
    if (lane == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) slots[n][warp] = values[n];
    }
    meet(1 + index_, threads_);
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = lane < warps ? slots[n][first + lane] : Op::kNothing;
    over_warp(values, op);
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

/// A thread's packs of the rows that its team has, in a kernel planned for `FewPacks`.
template <class T, bool Deep, int FewPacks, int Inputs>
class RowFlow {
 public:
  static constexpr int kPack = kPackSize<T>;
  static constexpr int kStages = row_stages(FewPacks, Inputs);
  static constexpr int Packs = row_packs(FewPacks, Deep);

  __device__ RowFlow(const RowPlan& plan, const Team& team, std::int64_t rows, int columns,
                     const Rows<const T> (&inputs)[Inputs])
      : rows_(rows) {
    const int begin = team.rank() * plan.part;
    end_ = min(begin + plan.part, columns);
    column_ = begin + team.member() * kPack;
    apart_ = plan.group * kPack;
    const int cluster = static_cast<int>(blockIdx.x) / plan.cluster;
    step_ = static_cast<std::int64_t>(plan.blocks / plan.cluster) * plan.groups;
    row_ = static_cast<std::int64_t>(cluster) * plan.groups + team.index();
    ahead_ = row_;
    extern __shared__ __align__(16) std::byte rows_in_shared_memory[];
    mine_ = rows_in_shared_memory + threadIdx.x * kPackBytes;
#pragma unroll
    for (int i = 0; i < Inputs; ++i) inputs_[i] = inputs[i];
    for (int stage = 0; stage < kStages; ++stage) ask();
  }

  __device__ bool more() const { return row_ < rows_; }
  __device__ std::int64_t row() const { return row_; }
  __device__ std::int64_t next_row() const { return row_ + step_; }
  __device__ void go_on() {
    row_ += step_;
    // As if it changed: addresses that depend on it alone are cheaper to make again for each row
    // than to keep, of which the compiler would rather do the latter and run out of registers.
    asm volatile("" : "+r"(column_));
  }

  /// Where pack k begins, and whether the row goes on there. (What lies behind it is all zeros.)
  __device__ int column(int k) const { return column_ + k * apart_; }
  __device__ bool has(int k) const { return column(k) < end_; }

  /// The packs of the current row, of all inputs; asks for a later row in their place. Once a row.
  __device__ void take(Pack<T, kPack> (&packs)[Inputs][Packs]) {
    wait_copies<kStages - 1>();
#pragma unroll
    for (int i = 0; i < Inputs; ++i) {
      if (inputs_[i].data == nullptr) continue;
#pragma unroll
      for (int k = 0; k < Packs; ++k) {
        packs[i][k] = load_pack<T, kPack>(reinterpret_cast<const T*>(place(i, k)));
      }
    }
    ask();
  }

 private:
  __device__ std::byte* place(int input, int k) const {
    return mine_ +
           ((stage_ * Inputs + input) * Packs + k) * static_cast<int>(blockDim.x) * kPackBytes;
  }

  __device__ void ask() {
    if (ahead_ < rows_) {
#pragma unroll
      for (int i = 0; i < Inputs; ++i) {
        if (inputs_[i].data == nullptr) continue;
        const T* const row = inputs_[i].row(ahead_);
#pragma unroll
        for (int k = 0; k < Packs; ++k) {
          copy_pack(shared_address(place(i, k)), row + (has(k) ? column(k) : 0), has(k));
        }
      }
      ahead_ += step_;
    }
    commit_copies();  // even none: batches are counted
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
  }

  Rows<const T> inputs_[Inputs];
  std::int64_t rows_, row_, ahead_, step_;
  int column_, apart_, end_;
  int stage_ = 0;  // that is taken and filled next
  std::byte* mine_;
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

/// The plan with no more clusters than run side by side: how many is up to the device, some of
/// whose multiprocessors have no neighbours left. All rows would wait for a cluster that is late.
template <class... Params>
RowPlan side_by_side(RowPlan plan, void (*kernel)(Params...)) {
  if (plan.cluster == 1) return plan;
  const auto* const entry = reinterpret_cast<const void*>(kernel);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(plan.blocks);
  config.blockDim = static_cast<unsigned>(plan.threads());
  config.dynamicSmemBytes = plan.shared_bytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int most = 0;
  cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(plan.shared_bytes));
  if (cudaOccupancyMaxActiveClusters(&most, entry, &config) != cudaSuccess) {
    cudaGetLastError();  // the launch will say what is wrong
  } else if (most > 0) {
    plan.blocks = std::min(plan.blocks, most * plan.cluster);
  }
  return plan;
}

/// Launches a kernel for rows; how many clusters are running then is the plan's that it returns.
template <class... Params, class... Args>
RowPlan launch_rows(const Call& call, RowPlan plan, void (*kernel)(RowPlan, Params...),
                    Args&&... args) {
  plan = side_by_side(plan, kernel);
  const Launch how{.grid = static_cast<unsigned>(plan.blocks),
                   .block = static_cast<unsigned>(plan.threads()),
                   .shared_bytes = plan.shared_bytes,
                   .cluster = plan.cluster,
                   // Only what waits may overlap: kernels for any rows don't, nor do older GPUs.
                   .overlaps = plan.fits && call.facts().major >= 9};
  call.launch(how, kernel, plan, std::forward<Args>(args)...);
  return plan;
}

}  // namespace graft::cuda
