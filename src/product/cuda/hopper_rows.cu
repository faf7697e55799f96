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
//                             │    │      S (64, rank)
//            W (64, 64)       └────┘
//           ┌───────────┐     ┌────┐
//           │           │     │ yᵀ │  64 columns of y: a warpgroup
//           └───────────┘     └────┘
//           ┌───────────┐     ┌────┐
//           │ Sᵀ (rank) │     │ hᵀ │  the shrinkers
//           └───────────┘     └────┘
//
// One thread fetches: it waits until a slot of the ring is empty, and tells TMA to fill it with x,
// W and S of a step. A warpgroup for each 64 columns lets wgmma multiply by W; another one, the
// shrinkers, lets it multiply by S. So every cluster makes h for itself: S is small beside W, and
// no cluster waits for another.
//
// When its K is summed, a block leaves its sums of yᵀ and hᵀ in its shared memory, as it has them
// in registers, and the cluster meets. Then each block takes every so many-th eight rows: it adds
// up h and y of these from all blocks, always in the same order, multiplies s·h by E, and stores.
//
// It may take the place of the kernel before it block by block, but fetches nothing before that one
// is done: W prefetched into L2 meanwhile came twice from memory, 7 µs for all of 32 MB.

namespace graft::cuda {
using namespace ampere;

namespace hopper_rows {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int Rows, int Columns, bool WIsKN>
__device__ void fetch(const Maps& maps, const Block<Rows, Columns>& block) {
  using Size = Sizes<Rows, Columns>;
  const Arguments& args = block.args;
  const int s_size = args.shrink.dtype == DType::kFloat32 ? 4 : 2;
  const int s_box = kRowBytes / s_size;  // elements
  Slot at{0, 0};
  for (int i = 0, step = block.first; i < block.steps(); ++i, step = block.after(step)) {
    block.empty(at.index).wait(at.parity ^ 1);
    const Barrier full = block.full(at.index);
    const std::uint32_t slot = block.slot(at.index), w = slot + block.w_at();
    int s_bytes = 0;
    if (args.along == Along::kK) s_bytes = (block.ranks() * kStep) * s_size;
    if (args.along == Along::kRanks) {
      s_bytes = min(kStep, args.k - step * kStep) * args.rank * s_size;
    }
    full.arrive_and_expect(Size::kWBytes + args.box_rows * kRowBytes + s_bytes);
    if constexpr (WIsKN) {
#pragma unroll
      for (int band = 0; band < Columns / kBand; ++band) {
        load_box(w + band * kBandBytes, maps.w, full, block.n0 + band * kBand, step * kStep);
      }
    } else {
      load_box(w, maps.w, full, step * kStep, block.n0);
    }
    load_box(slot, maps.x, full, step * kStep, block.m0);
    const std::uint32_t s = slot + block.shrink_at();
    if (args.along == Along::kK) {
      for (int k = 0; k < kStep; k += s_box) {
        load_box(s + k * block.ranks() * s_size, maps.s, full, step * kStep + k, 0);
      }
    } else if (args.along == Along::kRanks) {
      load_bytes(s,
                 static_cast<const char*>(args.shrink.data) +
                     std::int64_t{step} * kStep * args.rank * s_size,
                 full, s_bytes);
    }
    at.advance(args.slots);
  }
}

// E of the tile's columns to shared memory, in T, by a warp that has time; many loads at once.
template <class T, class From, int Rows, int Columns>
__device__ void copy_expand_as(const Block<Rows, Columns>& block, int lane) {
  constexpr int kAtOnce = 16;
  const Arguments& args = block.args;
  const From* const from = static_cast<const From*>(args.expand.data);
  const int ranks = block.ranks();
  const bool along_rank = args.expand.inner == 1;
  for (int first = lane; first < Columns * ranks; first += 32 * kAtOnce) {
    From values[kAtOnce];
    const auto each = [&](auto use) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + 32 * j;
        const int r = along_rank ? i & (ranks - 1) : i / Columns;
        const int n = along_rank ? i >> args.rank_bits : i % Columns;
        use(values[j], r, n);
      }
    };
    each([&](From& value, int r, int n) {
      const bool exists = block.n0 + n < args.n && r < args.rank;
      const std::int64_t at =
          std::int64_t{block.n0 + n} * args.expand.outer + r * args.expand.inner;
      value = exists ? from[at] : from_float<From>(0.0f);
    });
    each([&](const From& value, int r, int n) {
      const T rounded = from_float<T>(to_float(value));
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(block.expand() + n * block.row_bytes() + r * 2),
                   "h"(*reinterpret_cast<const std::uint16_t*>(&rounded))
                   : "memory");
    });
  }
}

// That, and the bias.
template <class T, int Rows, int Columns>
__device__ void copy_operands(const Block<Rows, Columns>& block, int lane) {
  const Arguments& args = block.args;
  if (args.bias != nullptr) {
#pragma unroll
    for (int i = lane; i < Columns; i += 32) {
      const int n = block.n0 + i;
      const float bias =
          n < args.n ? load_as_float(args.bias, args.bias_dtype, n * args.bias_stride) : 0.0f;
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(block.bias() + i * 4), "f"(bias) : "memory");
    }
  }
  if (args.rank == 0) return;
  if (args.expand.dtype == DType::kFloat32) {
    copy_expand_as<T, float>(block, lane);
  } else {
    copy_expand_as<T, T>(block, lane);
  }
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
  named_sync(1, Size::kConsumers);  // the ring is free
  leave<Width>(block, block.shared + group * (Rows / 8) * 2048, sum, thread);
}

// What consumers do, with as many rows as the matrix units have to take.
template <class T, int Width, int Rows, int Columns, bool WIsKN>
__device__ void consume(const Block<Rows, Columns>& block, int thread) {
  using Size = Sizes<Rows, Columns>;
  if (thread < Size::kMultipliers) {
    multiply<T, Width, Rows, Columns, WIsKN>(block, thread / 128, thread % 128);
  } else if (block.args.rank > 0) {
    shrink<T, Width>(block, thread - Size::kMultipliers);
  } else {
    named_sync(1, Size::kConsumers);
  }
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
  if (thread == Size::kConsumers) {
    for (int i = 0; i < args.slots; ++i) {
      block.full(i).init(1);
      // A warpgroup of a product; the shrinkers' warps, or those that share the ranks.
      const int shrinkers = args.odd ? block.ranks() / 16 : 4;
      block.empty(i).init(Size::kGroups + (args.rank > 0 ? shrinkers : 0));
    }
    publish_barriers();
    prefetch(maps.x);
    prefetch(maps.w);
  }
  __syncthreads();
  wait_for_kernel_before();
  let_next_kernel_start();
  if (thread >= Size::kConsumers) {
    if (thread == Size::kConsumers) fetch<Rows, Columns, WIsKN>(maps, block);
    if (thread >= Size::kConsumers + 32) copy_operands<T>(block, thread % 32);
    __syncwarp();
  } else if (block.rows <= Size::kFewRows) {
    consume<T, Size::kFewRows, Rows, Columns, WIsKN>(block, thread);
  } else {
    consume<T, Rows, Rows, Columns, WIsKN>(block, thread);
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
Along along_of(const ConstTensorView& s) {
  if (has_map_rows(s.transposed())) return Along::kK;
  const std::int64_t rank = s.dim(1);
  const bool dense = (rank == 1 || s.stride(1) == 1) && (s.dim(0) == 1 || s.stride(0) == rank);
  const bool whole = s.size() * static_cast<std::int64_t>(size_of(s.dtype())) % 16 == 0 &&
                     reinterpret_cast<std::uintptr_t>(s.data()) % 16 == 0;
  return dense && whole ? Along::kRanks : Along::kNone;
}

template <class T>
void run_as(const char* op, const Call& call, const Term& term) {
  const std::int64_t m = term.x.dim(0), k = term.x.dim(1), n = term.y.dim(1);
  const LowRank& pair = term.pair;
  const HopperRowsPlan plan = plan_hopper_rows(
      m, n, k, pair.rank(), pair.present() ? static_cast<int>(size_of(pair.shrink.dtype())) : 0,
      call.facts());
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
    args.shrink = operand_of(pair.shrink, 1, 0, term.multiply);
    args.along = along_of(pair.shrink);
    args.odd = args.along == Along::kNone || args.shrink.dtype == DType::kFloat32 ||
               (args.along == Along::kRanks && args.rank % 8 != 0);
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
  if (args.along == Along::kK) {
    const ConstTensorView s = pair.shrink.transposed();
    maps.s = tensor_map(op, s.data(), s.dtype(), s.dim(0), s.dim(1), s.stride(0), plan.rank_columns,
                        kRowBytes / static_cast<int>(size_of(s.dtype())));
  }
  if (w_is_kn) return launch<T, true>(call, plan, maps, args);
  return launch<T, false>(call, plan, maps, args);
}

}  // namespace

void run_hopper_rows(const char* op, const Call& call, const Term& term) {
  if (term.multiply == DType::kFloat16) return run_as<__half>(op, call, term);
  return run_as<__nv_bfloat16>(op, call, term);
}

}  // namespace graft::cuda
