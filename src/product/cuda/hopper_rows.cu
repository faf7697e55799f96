#include <algorithm>
#include <cstdint>

#include "backend/cuda/integers.h"
#include "backend/cuda/tensor_map.h"
#include "backend/cuda/wgmma.cuh"
#include "product/cuda/hopper_rows.h"
#include "product/cuda/hopper_rows_add.cuh"
#include "product/cuda/hopper_rows_block.cuh"
#include "product/cuda/hopper_rows_shrink.cuh"

// y = [ x | s·h ] · [ W ; E ] + bias with h = x·S, for few and middling rows of 16-bit elements on
// Hopper: what it costs is reading W, so all multiprocessors read at once, each its own part.
//
// A cluster makes a tile of y, 64 or 128 rows by 64 or 128 columns. Its blocks share K: each sums
// over its part, in steps of 64, and then they add up. Tiles are turned round, yᵀ = W · xᵀ, for the
// matrix units have 64 rows at least, which W fills, and eights of columns, which are x's rows:
//
//                          xᵀ (64, rows)
//                             ┌────┐
//                             │    │
//            W (64, 64)       └────┘
//           ┌───────────┐     ┌────┐
//           │           │     │ yᵀ │  64 columns of y: a warpgroup
//           └───────────┘     └────┘
//
// One thread fetches: it waits until a slot of the ring is empty, and tells TMA to fill it with x
// and W of a step. A warpgroup for each 64 columns lets wgmma multiply.
//
// When its K is summed, a block leaves its sums of yᵀ in its shared memory, as it has them in
// registers, and the cluster meets. Then each block takes every so many-th eight rows: it adds
// these up from all blocks, always in the same order, multiplies s·h by E, and stores.
//
// h is made by a launch before (hopper_rows_shrink.cuh), which has waited for all that is older
// than this call and lets this one start at once. So W and x are read while h is made, and only the
// warps that copy h, for the end, wait for it.
//
// Without a pair this kernel may take the place of the one before it block by block, but fetches
// nothing before that one is done: W prefetched into L2 meanwhile came twice from memory, 7 µs for
// all of 32 MB.

namespace graft::cuda {
using namespace ampere;

namespace hopper_rows {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int Rows, int Columns, bool WIsKN>
__device__ void fetch(const Maps& maps, const Block<Rows, Columns>& block) {
  using Size = Sizes<Rows, Columns>;
  const Arguments& args = block.args;
  Slot at{0, 0};
  for (int i = 0, step = block.first; i < block.steps(); ++i, step = block.after(step)) {
    block.empty(at.index).wait(at.parity ^ 1);
    const Barrier full = block.full(at.index);
    const std::uint32_t slot = block.slot(at.index), w = slot + block.w_at();
    full.arrive_and_expect(Size::kWBytes + args.box_rows * kRowBytes);
    if constexpr (WIsKN) {
#pragma unroll
      for (int band = 0; band < Columns / kBand; ++band) {
        load_box(w + band * kBandBytes, maps.w, full, block.n0 + band * kBand, step * kStep);
      }
    } else {
      load_box(w, maps.w, full, step * kStep, block.n0);
    }
    load_box(slot, maps.x, full, step * kStep, block.m0);
    at.advance(args.slots);
  }
}

// E of the tile's columns to shared memory, in T, by warps that have time; many loads at once.
template <class T, class From, int Rows, int Columns>
__device__ void copy_expand_as(const Block<Rows, Columns>& block, int thread) {
  constexpr int kThreads = Sizes<Rows, Columns>::kCopiers;
  constexpr int kAtOnce = 8;
  const Arguments& args = block.args;
  const From* const from = static_cast<const From*>(args.expand.data);
  const int ranks = block.ranks();
  const bool along_rank = args.expand.inner == 1;
  for (int first = thread; first < Columns * ranks; first += kThreads * kAtOnce) {
    From values[kAtOnce];
    const auto each = [&](auto use) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + kThreads * j;
        const int r = along_rank ? i & (ranks - 1) : i / Columns;
        const int n = along_rank ? i >> args.rank_bits : i % Columns;
        use(values[j], r, n);
      }
    };
    each([&](From& value, int r, int n) {
      const bool exists = n < Columns && block.n0 + n < args.n && r < args.rank;
      const std::int64_t at =
          std::int64_t{block.n0 + n} * args.expand.outer + r * args.expand.inner;
      value = exists ? from[at] : from_float<From>(0.0f);
    });
    each([&](const From& value, int r, int n) {
      if (n >= Columns) return;
      const T rounded = from_float<T>(to_float(value));
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(block.expand() + n * block.row_bytes() + r * 2),
                   "h"(*reinterpret_cast<const std::uint16_t*>(&rounded))
                   : "memory");
    });
  }
}

// s·h of the block's own rows to shared memory, and h to where it is asked for.
template <class T, int Rows, int Columns>
__device__ void copy_h(const Block<Rows, Columns>& block, int thread) {
  constexpr int kFour = 4, kMostParts = kMostShrinkParts;
  const Arguments& args = block.args;
  const int of_row = block.ranks() / kFour;
  for (int item = thread; item < block.own_eights() * 8 * of_row;
       item += Sizes<Rows, Columns>::kCopiers) {
    const int own = item >> (args.rank_bits - 2), r = (item & (of_row - 1)) * kFour;
    const int row = block.eight_of(own / 8) * 8 + own % 8;
    float4 parts[kMostParts];
    const float* const from =
        args.h_parts + (std::int64_t{min(block.m0 + row, args.m - 1)} << args.rank_bits) + r;
#pragma unroll
    for (int p = 0; p < kMostParts; ++p) {
      if (p < args.parts) {
        parts[p] = __ldcg(
            reinterpret_cast<const float4*>(from + ((std::int64_t{p} * args.m) << args.rank_bits)));
      }
    }
    float total[kFour] = {};
#pragma unroll
    for (int p = 0; p < kMostParts; ++p) {
      if (p < args.parts) {
        total[0] += parts[p].x, total[1] += parts[p].y;
        total[2] += parts[p].z, total[3] += parts[p].w;
      }
    }
    float scaled[kFour];
#pragma unroll
    for (int e = 0; e < kFour; ++e) {
      scaled[e] = r + e < args.rank ? total[e] * args.scaling : 0.0f;
      if (args.h != nullptr && block.n0 == 0 && row < block.rows && r + e < args.rank) {
        args.h[std::int64_t{block.m0 + row} * args.rank + r + e] = total[e];
      }
    }
    asm volatile(
        "st.shared.v2.b32 [%0], {%1, %2};" ::"r"(block.scaled() + row * block.row_bytes() + r * 2),
        "r"(pack2<T>(scaled[0], scaled[1])), "r"(pack2<T>(scaled[2], scaled[3]))
        : "memory");
  }
}

// What the end of the kernel needs.
template <class T, int Rows, int Columns>
__device__ void copy_operands(const Block<Rows, Columns>& block, int thread) {
  const Arguments& args = block.args;
  if (args.bias != nullptr) {
#pragma unroll
    for (int i = thread; i < Columns; i += Sizes<Rows, Columns>::kCopiers) {
      const int n = block.n0 + i;
      const float bias =
          n < args.n ? load_as_float(args.bias, args.bias_dtype, n * args.bias_stride) : 0.0f;
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(block.bias() + i * 4), "f"(bias) : "memory");
    }
  }
  if (args.rank == 0) return;
  if (args.expand.dtype == DType::kFloat32) {
    copy_expand_as<T, float>(block, thread);
  } else {
    copy_expand_as<T, T>(block, thread);
  }
  wait_for_kernel_before();
  copy_h<T>(block, thread);
}

// yᵀ of a block's part of K: a band by each group.
template <class T, int Width, int Rows, int Columns, bool WIsKN>
__device__ void multiply(const Block<Rows, Columns>& block, int group, int thread) {
  using Size = Sizes<Rows, Columns>;
  const Arguments& args = block.args;
  float sum[Rows / 2];
  Slot at{0, 0};
  int before = 0;
  for (int step = 0; step < block.steps(); ++step) {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at.index);
    const std::uint64_t w = tile_descriptor(slot + block.w_at() + group * kBandBytes, 16);
    const std::uint64_t x = tile_descriptor(slot, 16);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kStep / 16; ++i) {
      // 16 elements of a row are 32 bytes; 16 rows are 2048. Descriptors count in 16.
      wgmma<Width, false, T, WIsKN>(sum, w + i * (WIsKN ? 128 : 2), x + i * 2, step > 0 || i > 0);
    }
    wgmma_commit();
    if (step > 0) {
      wgmma_wait<1>();
      if (thread == 0) block.empty(before).arrive();
    }
    before = at.index;
    at.advance(args.slots);
  }
  wgmma_wait<0>();
  named_sync(1, Size::kMultipliers);  // the ring is free
  leave<Width>(block, block.shared + group * (Rows / 8) * 2048, sum, thread);
}

#endif

template <class T, int Rows, int Columns, bool WIsKN>
__global__ void __launch_bounds__(Sizes<Rows, Columns>::kThreads, Sizes<Rows, Columns>::kMostBlocks)
    product(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Size = Sizes<Rows, Columns>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const Block<Rows, Columns> block(args, shared_address(shared));
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == Size::kMultipliers) {
    for (int i = 0; i < args.slots; ++i) {
      block.full(i).init(1);
      block.empty(i).init(Size::kGroups);
    }
    publish_barriers();
    prefetch(maps.x);
    prefetch(maps.w);
  }
  __syncthreads();
  if (args.rank == 0) wait_for_kernel_before();
  let_next_kernel_start();
  if (thread >= Size::kMultipliers) {
    if (thread == Size::kMultipliers) fetch<Rows, Columns, WIsKN>(maps, block);
    if (thread >= Size::kMultipliers + 32)
      copy_operands<T>(block, thread - Size::kMultipliers - 32);
    __syncwarp();
  } else if (block.rows <= Size::kFewRows) {
    multiply<T, Size::kFewRows, Rows, Columns, WIsKN>(block, thread / 128, thread % 128);
  } else {
    multiply<T, Rows, Rows, Columns, WIsKN>(block, thread / 128, thread % 128);
  }
  cluster_sync();
  if (thread < kAddThreads) {
    Adder<T, Rows, Columns>(block, thread).run();
  } else {
    cluster_arrive();
  }
  cluster_wait();  // the others have read what was left here
#endif
}

}  // namespace hopper_rows

namespace {

using namespace hopper_rows;

template <class T, int Rows, int Columns, bool WIsKN>
void launch(const Call& call, const HopperRowsPlan& plan, const Maps& maps, const Arguments& args) {
  Launch how;
  how.grid = dim3(static_cast<unsigned>(plan.column_tiles * plan.splits),
                  static_cast<unsigned>(plan.row_tiles));
  how.block = Sizes<Rows, Columns>::kThreads;
  how.cluster = plan.splits;
  how.shared_bytes = plan.shared_bytes;
  how.overlaps = true;
  call.launch(how, product<T, Rows, Columns, WIsKN>, maps, args);
}

template <class T, bool WIsKN>
void launch(const Call& call, const HopperRowsPlan& plan, const Maps& maps, const Arguments& args) {
  if (plan.tile_rows == 64) return launch<T, 64, 64, WIsKN>(call, plan, maps, args);
  if (plan.tile_columns == 64) return launch<T, 128, 64, WIsKN>(call, plan, maps, args);
  return launch<T, 128, 128, WIsKN>(call, plan, maps, args);
}

// As TMA can fetch S (K, rank).
hopper_rows::Along along_of(const ConstTensorView& s) {
  if (has_map_rows(s.transposed())) return Along::kK;
  const std::int64_t rank = s.dim(1);
  const bool dense = (rank == 1 || s.stride(1) == 1) && (s.dim(0) == 1 || s.stride(0) == rank);
  const bool whole = s.size() * static_cast<std::int64_t>(size_of(s.dtype())) % 16 == 0 &&
                     reinterpret_cast<std::uintptr_t>(s.data()) % 16 == 0;
  return dense && whole ? Along::kRanks : Along::kNone;
}

// h's parts to `parts`.
template <class T>
void launch_shrink(const char* op, const Call& call, const HopperRowsPlan& plan, const Term& term,
                   float* parts) {
  const LowRank& pair = term.pair;
  ShrinkArguments args;
  args.m = static_cast<int>(term.x.dim(0)), args.k = static_cast<int>(term.x.dim(1));
  args.steps = static_cast<int>(divide_up(args.k, kStep));
  args.rank = static_cast<int>(pair.rank());
  while (1 << args.rank_bits < plan.rank_columns) ++args.rank_bits;
  args.slot_bytes = plan.shrink_slot_bytes;
  args.shrink = operand_of(pair.shrink, 1, 0, term.multiply);
  args.along = along_of(pair.shrink);
  args.odd = args.along == Along::kNone || args.shrink.dtype == DType::kFloat32 ||
             (args.along == Along::kRanks && args.rank % 8 != 0);
  args.parts = parts;
  ShrinkMaps maps{};
  maps.x =
      tensor_map(op, term.x.data(), term.multiply, args.m, args.k, term.x.stride(0), kShrinkRows);
  if (args.along == Along::kK) {
    const ConstTensorView s = pair.shrink.transposed();
    maps.s = tensor_map(op, s.data(), s.dtype(), s.dim(0), s.dim(1), s.stride(0), plan.rank_columns,
                        kRowBytes / static_cast<int>(size_of(s.dtype())));
  }
  Launch how;
  how.grid = dim3(static_cast<unsigned>(plan.shrink_parts),
                  static_cast<unsigned>(divide_up(args.m, kShrinkRows)),
                  static_cast<unsigned>(divide_up(args.rank, kShrinkRanks)));
  how.block = static_cast<unsigned>(plan.shrink_warps * 32);
  how.shared_bytes = plan.shrink_shared_bytes;
  how.overlaps = true;
  call.launch(how, shrink<T>, maps, args);
}

template <class T>
void run_as(const char* op, const Call& call, const Term& term, std::byte* workspace) {
  const std::int64_t m = term.x.dim(0), k = term.x.dim(1), n = term.y.dim(1);
  const LowRank& pair = term.pair;
  const HopperRowsPlan plan = plan_hopper_rows(
      m, n, k, pair.rank(), pair.present() ? static_cast<int>(size_of(pair.shrink.dtype())) : 0,
      call.facts());
  if (pair.present()) {
    launch_shrink<T>(op, call, plan, term, reinterpret_cast<float*>(workspace));
  }
  const bool w_is_kn = takes_tensor_map(term.w);
  const ConstTensorView w = w_is_kn ? term.w : term.w.transposed();
  Arguments args;
  args.m = static_cast<int>(m), args.n = static_cast<int>(n), args.k = static_cast<int>(k);
  args.steps = static_cast<int>(divide_up(k, kStep));
  while (1 << args.split_bits < plan.splits) ++args.split_bits;
  args.slots = plan.slots;
  args.slot_bytes = plan.slot_bytes;
  args.box_rows = plan.box_rows;
  args.rank = static_cast<int>(pair.rank());
  while (1 << args.rank_bits < plan.rank_columns) ++args.rank_bits;
  if (pair.present()) {
    args.scaling = pair.scaling;
    args.h_parts = reinterpret_cast<const float*>(workspace);
    args.parts = plan.shrink_parts;
    args.expand = operand_of(pair.expand, 1, 0, term.multiply);
    if (pair.h.present()) args.h = pair.h.mutable_data_as<float>();
  }
  set_bias(args, term.bias);
  args.y = term.y.mutable_data();
  args.y_stride = term.y.stride(0);
  args.pairs = n % 2 == 0 && (m == 1 || args.y_stride % 2 == 0) &&
               reinterpret_cast<std::uintptr_t>(args.y) % 4 == 0;
  Maps maps{};
  maps.x = tensor_map(op, term.x.data(), term.multiply, m, k, term.x.stride(0), args.box_rows);
  maps.w = tensor_map(op, w.data(), term.multiply, w.dim(0), w.dim(1), w.stride(0),
                      w_is_kn ? kStep : plan.tile_columns);
  if (w_is_kn) return launch<T, true>(call, plan, maps, args);
  return launch<T, false>(call, plan, maps, args);
}

}  // namespace

void run_hopper_rows(const char* op, const Call& call, const Term& term, std::byte* workspace) {
  if (term.multiply == DType::kFloat16) return run_as<__half>(op, call, term, workspace);
  return run_as<__nv_bfloat16>(op, call, term, workspace);
}

}  // namespace graft::cuda
