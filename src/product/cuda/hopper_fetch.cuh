#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "backend/cuda/element.cuh"
#include "backend/cuda/sm90.cuh"
#include "product/cuda/hopper_block.cuh"
#include "product/cuda/hopper_masks.cuh"

// Warpgroup 0 of the kernel in hopper.cu: one thread fills the ring of slots; three warps make
// copies of S and E that TMA can fetch, and one thread of them watches flags for the one that
// fetches.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace graft::cuda::hopper {

// Eight elements of a row of a copy.
template <class From, class To>
__device__ void store_chunk(const Copy& copy, std::int64_t row, int first,
                            const Pack<From, 8>& in) {
  Pack<To, 8> out;
#pragma unroll
  for (int i = 0; i < 8; ++i) out.values[i] = from_float<To>(to_float(in.values[i]));
  *reinterpret_cast<Pack<To, 8>*>(static_cast<To*>(copy.to) + row * copy.stride + first) = out;
}

// The share of a thread, every `step`-th piece.
template <class From, class To>
__device__ void copy_share_as(const Copy& copy, unsigned first_chunk, unsigned step) {
  const From* const from = static_cast<const From*>(copy.from);
  const unsigned chunks = static_cast<unsigned>(copy.stride) / 8;
  const unsigned end = static_cast<unsigned>(copy.outer) * chunks;
  const bool whole = copy.inner_stride == 1 && copy.inner % 8 == 0 &&
                     copy.outer_stride * sizeof(From) % 16 == 0 &&
                     reinterpret_cast<std::uintptr_t>(from) % 16 == 0;
  unsigned chunk = first_chunk;
  if (whole) {
    constexpr int kAtOnce = sizeof(From) == 4 ? 1 : 2;  // loads on their way
    for (; chunk < end; chunk += step * kAtOnce) {
      Pack<From, 8> in[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const unsigned at = min(chunk + i * step, end - 1), row = at / chunks;
        in[i] = *reinterpret_cast<const Pack<From, 8>*>(from + row * copy.outer_stride +
                                                        (at - row * chunks) * 8);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const unsigned at = min(chunk + i * step, end - 1), row = at / chunks;
        store_chunk<From, To>(copy, row, static_cast<int>(at - row * chunks) * 8, in[i]);
      }
    }
    return;
  }
  for (; chunk < end; chunk += step) {
    // Neighbouring threads read neighbouring elements, whichever way they lie.
    const bool along = copy.inner_stride == 1;
    const unsigned over = along ? chunks : static_cast<unsigned>(copy.outer);
    const unsigned high = chunk / over, low = chunk - high * over;
    const std::int64_t row = along ? high : low;
    const int first = static_cast<int>(along ? low : high) * 8;
    Pack<From, 8> in;
    const From* at = from + row * copy.outer_stride + first * copy.inner_stride;
#pragma unroll
    for (int i = 0; i < 8; ++i, at += copy.inner_stride) {
      in.values[i] = first + i < copy.inner ? *at : from_float<From>(0.0f);
    }
    store_chunk<From, To>(copy, row, first, in);
  }
}

// By the threads of three warps of each block.
template <class To>
__device__ void copy_share(const Copy& copy, int thread) {
  const unsigned first = blockIdx.x * kCopyThreads + thread, step = gridDim.x * kCopyThreads;
  switch (copy.dtype) {
    case DType::kFloat16:
      return copy_share_as<__half, To>(copy, first, step);
    case DType::kBFloat16:
      return copy_share_as<__nv_bfloat16, To>(copy, first, step);
    default:
      return copy_share_as<float, To>(copy, first, step);
  }
}

// A barrier of all blocks of a kernel that was launched cooperatively, which one thread of each
// arrives at and later waits for: that of cooperative groups (whose own functions take whole
// blocks), in memory that CUDA has for it. Nothing else here is zero at the start.
// What it was before is kept in shared memory meanwhile: this warpgroup has few registers.
struct GridBarrier {
  std::uint32_t before_at;

  __device__ static std::uint32_t* word() {
    return &cooperative_groups::details::get_grid_workspace()->barrier;
  }
  // The sum of all arrivals turns the highest bit over.
  __device__ void arrive() const {
    const std::uint32_t add = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
    std::uint32_t before;
    asm volatile("atom.add.release.gpu.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(word()), "r"(add)
                 : "memory");
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(before_at), "r"(before) : "memory");
  }
  __device__ void wait() const {
    std::uint32_t before;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(before) : "r"(before_at) : "memory");
    while (((load_acquire(word()) ^ before) & 0x80000000u) == 0) {
    }
  }
};

__device__ inline void wait_for(const std::uint32_t* flag, std::uint32_t count) {
  while (load_acquire(flag) < count) {
  }
}

// The same of a flag that is raised after tens of microseconds.
__device__ inline void wait_for_late(const std::uint32_t* flag, std::uint32_t count) {
  while (load_acquire(flag) < count) __nanosleep(1000);
}

// How far the thread that watches flags has come: S is copied; everything is; and then one more for
// each of h of the first tile's rows, of all rows (the other way round if outer products of h are
// at the end of that tile), and of each other tile's rows.
constexpr int kSeenS = 1, kSeenCopies = 2, kSeenAll = 1 << 30;

// Warpgroup 0, the last two warps: what units beside tiles have summed up was left in memory; the
// last block of those that share a sum adds them up, always in the same order. So who multiplies
// waits for nobody.
constexpr int kAddThreads = 64;
template <int TileN, bool Outer, class T>
__device__ void add_sums(const Arguments& args, const Block<TileN>& block, int thread) {
  int left = 0;
  const auto wait_for_sums = [&] {
    block.left().wait(left += 2);
    __threadfence();  // what the others of this block wrote comes before the count of blocks
    named_sync(5, kAddThreads);
  };
  const auto is_last = [&](std::uint32_t* arrivals, int count) {
    const std::uint32_t arrived = block.shared + Sizes<TileN>::kArrived + 8;
    if (thread == 0) {
      const unsigned before = atomicAdd(arrivals, 1u);
      __threadfence();
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(arrived), "r"(before) : "memory");
    }
    named_sync(5, kAddThreads);
    unsigned before;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(before) : "r"(arrived) : "memory");
    named_sync(5, kAddThreads);
    return before + 1 == static_cast<unsigned>(count);
  };
  const auto add = [](float4& to, const float4& value) {
    to.x += value.x;
    to.y += value.y;
    to.z += value.z;
    to.w += value.w;
  };

  if (TileN == 256 && beside_tile(args, block.cluster)) {
    for (Items item(args, block.cluster); item.any(); item.advance()) {
      const int row_block = item.row() * 2 + block.rank;
      if (row_block * kTileM >= args.m) continue;
      wait_for_sums();
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        std::uint32_t* const flags = args.flags + row_block * kFlagsOfRowBlock;
        if (!is_last(flags + 1 + half, args.h_parts)) continue;
#pragma unroll 1
        for (int i = thread; i < kBesidePartial / 4; i += kAddThreads) {
          float4 total = make_float4(0, 0, 0, 0);
          const float4* from = h_partial(args, 0, row_block, half) + i;
#pragma unroll 2
          for (int part = 0; part < args.h_parts; ++part, from += kBesidePartial / 2) {
            add(total, __ldcg(from));
          }
          const int t = i % 128, column = i / 128 * 8 + t % 4 * 2;
          const int at = row_block * kTileM + half * kHalfM + t / 32 * 16 + t % 32 / 4;
          store_h<T>(args, at, column, total.x, total.y);
          store_h<T>(args, at + 8, column, total.z, total.w);
        }
        fence_async();
        __threadfence();
        named_sync(5, kAddThreads);
        if (thread == 0) {
          raise_release(flags);
          if constexpr (Outer) raise_release(args.all_ready);
        }
      }
    }
  }

  if constexpr (Outer) {
    constexpr bool kByColumns = outer_columns(TileN) == 128;
    const OuterArguments& outer = args.outer;
    // `total` is float4 i of a half of a column block.
    const auto put_sums = [&](const OuterPart& part, int column, int half, int i,
                              const float4& total) {
      const int t = i % 128, r = i / 128 * 8 + t % 4 * 2;
      const int col = column * outer_columns(TileN) + half * 64 + t / 32 * 16 + t % 32 / 4;
      const auto put = [&](int at_r, int at_col, float value) {
        if (at_r >= args.layers[0].rank || at_col >= part.cols) return;
        part.out[at_r * part.rank_stride + at_col * part.col_stride] = value * part.factor;
      };
      put(r, col, total.x);
      put(r + 1, col, total.y);
      put(r, col + 8, total.z);
      put(r + 1, col + 8, total.w);
    };
    if (TileN == 256 && outer.rides) {
      const int row_blocks = (args.m + kTileM - 1) / kTileM;
      if (thread == 0) wait_for_late(args.all_ready, row_blocks * 2);
      named_sync(5, kAddThreads);
      const int halves = args.units * 2;
#pragma unroll 1
      for (int of = static_cast<int>(blockIdx.x); of < halves; of += static_cast<int>(gridDim.x)) {
#pragma unroll 1
        for (int i = thread; i < kBesidePartial / 4; i += kAddThreads) {
          float4 total = make_float4(0, 0, 0, 0);
          const float4* from = ridden_partial(args, of / 2, 0, of % 2) + i;
#pragma unroll 4
          for (int row = 0; row < row_blocks; ++row, from += kBesidePartial / 2) {
            add(total, __ldcg(from));
          }
          put_sums(outer.ridden, of / 2, of % 2, i, total);
        }
      }
    }
    for (Units units(args, block.cluster); units.any(); units.advance_column()) {
      const OuterPart& part = units.of();
      const int column = part.first_block + units.column();
      const int blocks = units.sharers() * 2;
      wait_for_sums();
      // Halves are sums of different columns; or they are added up too.
#pragma unroll 1
      for (int half = 0; half < (kByColumns ? 2 : 1); ++half) {
        if (!is_last(outer.arrived + column * 2 + half, blocks)) continue;
        const int addends = kByColumns ? blocks : blocks * 2;
        const int next = kBesidePartial / 4 * (kByColumns ? 2 : 1);
#pragma unroll 1
        for (int i = thread; i < kBesidePartial / 4; i += kAddThreads) {
          float4 total = make_float4(0, 0, 0, 0);
          const float4* from = outer_partial(args, column, 0, half) + i;
#pragma unroll 2
          for (int a = 0; a < addends; ++a, from += next) add(total, __ldcg(from));
          put_sums(part, units.column(), half, i, total);
        }
      }
    }
  }
}

// Warpgroup 0, the warps that don't fetch: copy this block's share, and then, one thread, watch the
// flags that `fetch` is to wait for, in its order. S comes first, for whoever makes h waits for it:
// one barrier of all blocks says that its copy is there and that the flags are zero.
template <int TileN, bool Outer, class T>
__device__ void prepare(const Arguments& args, const Block<TileN>& block, int thread) {
  if (args.h_before) {  // the kernel before has made all but what the next one reads
    if (thread == 0) {
      wait_for_kernel_before();
      fence_async();
      block.seen().set(kSeenAll);
    }
    for (int i = args.copies.of_pair; i < args.copies.count; ++i) {
      copy_share<T>(args.copies.list[i], thread);
    }
    fence_async();
    __threadfence();  // the next kernel reads the copies without waiting for this one's end
    named_sync(4, kCopyThreads);
    if (thread == 0) let_next_kernel_start();
    return;
  }
  if (blockIdx.x == 0) {
    for (int i = thread; i < args.flag_count; i += kCopyThreads) args.flags[i] = 0;
  }
  const Copies& copies = args.copies;
  for (int i = 0; i < copies.of_s; ++i) copy_share<T>(copies.list[i], thread);
  fence_async();  // TMA reads the copies
  named_sync(4, kCopyThreads);
  const GridBarrier begun{block.shared + Sizes<TileN>::kArrived + 8};
  // What other blocks wrote is fetched by TMA next. The fence between takes as long as a step,
  // which is why it is not the thread that fetches who waits for it.
  const auto has_seen = [&](int count) {
    fence_async();
    block.seen().set(count);
  };
  if (thread == 0) {
    begun.arrive();
    begun.wait();
    has_seen(kSeenS);
  }
  if (copies.count > copies.of_s) {
    for (int i = copies.of_s; i < copies.count; ++i) copy_share<T>(copies.list[i], thread);
    fence_async();
  }
  named_sync(4, kCopyThreads);  // also before others than this thread touch the flags
  if (thread == 0) raise_release(args.copied);
  if constexpr (TileN == 256 || Outer) {  // only there are units beside tiles
    if (thread >= 32) return add_sums<TileN, Outer, T>(args, block, thread - 32);
  }
  if (thread != 0) return;

  if (copies.count > copies.of_s) wait_for(args.copied, gridDim.x);
  has_seen(kSeenCopies);
  int count = kSeenCopies;
  const auto wait_for_all = [&] {
    wait_for(args.all_ready, (args.m + kTileM - 1) / kTileM * 2);
    has_seen(++count);
  };
  bool first_tile = true;
  for_each_tile(args, block.cluster, [&](int row, int) {
    const int row_block = row * 2 + block.rank;
    if (Outer && first_tile && args.outer.late) wait_for_all();
    if (row_block * kTileM < args.m) wait_for(args.flags + row_block * kFlagsOfRowBlock, 2);
    has_seen(++count);
    if (Outer && first_tile && !args.outer.late) wait_for_all();
    first_tile = false;
  });
  if (!Outer && args.outer_follows) {
    wait_for_kernel_before();  // of masks, if there are any
    for (int i = 0; i * kTileM < args.m; ++i) wait_for(args.flags + i * kFlagsOfRowBlock, 2);
    let_next_kernel_start();
  }
}

// Warpgroup 0, one thread: fills the ring.
template <int TileN, bool WIsKN, bool Outer, Drops Dropped>
__device__ void fetch(const Maps& maps, const Arguments& args, const Block<TileN>& block) {
  using Size = Sizes<TileN>;
  constexpr bool kAlone = is_alone(Outer, Dropped);
  // Whether only rows that exist are fetched: few rows, of narrow tiles, gain by it.
  constexpr bool kPartial = TileN < 256 && !kAlone;
  Slot at{0, 1};  // of new barriers, the phase before the first one: all slots are empty
  const Count seen = block.seen();

  // Steps of x and S, so that a slot is full.
  const auto fill_h_unit = [&](int row, int unit) {
    constexpr bool kMasksX = Dropped == Drops::kX;
    const int steps = steps_of_unit<TileN>(args.rank_class, kMasksX);
    const int mask_bytes = kMasksX ? steps * kMaskBytes : 0;
    const int s_bytes = args.rank_class * kRowBytes;
    const std::uint32_t s = block.s_of(at, steps, steps * s_bytes);
    const int m0 = (row * 2 + block.rank) * kTileM;
    const Barrier full = block.full(at.index);
    block.empty(at.index).wait(at.parity);
    const bool whole = !kPartial || m0 + kTileM <= args.m, exists = whole || m0 < args.m;
    const int x_bytes = whole ? kXBytes : exists ? args.end_bytes : 0;
    full.arrive_and_expect(steps * (x_bytes + s_bytes) + mask_bytes);
    if constexpr (kMasksX) {
      wait_for_kernel_before();
      load_bytes(block.masks_of_x(at), masks_at(args.masks, args, m0 / kTileM, unit * steps), full,
                 mask_bytes);
    }
    for (int i = 0; i < steps; ++i) {
      const int k = (unit * steps + i) * kTileK;
      if (exists) {
        load_box(block.slot(at) + i * kXBytes, whole ? maps.x : maps.x_end, full, k, m0);
      }
      // As W: each block fetches half of the columns of S for both.
      const int columns = args.rank_class / 2 * block.rank;
      load_box(s + i * s_bytes + columns * kRowBytes, maps.s, full, k, columns, std::uint16_t{3});
    }
    at.advance<Size::kSlots>();
  };

  // Calls `before_unit` before each unit of this cluster's items.
  const auto fill_h = [&](auto&& before_unit) {
    seen.wait(kSeenS);
    for (Items item(args, block.cluster); item.any(); item.advance()) {
      const int end = item.end_unit();
      for (int unit = item.first_unit(); unit < end; ++unit) {
        before_unit();
        fill_h_unit(item.row(), unit);
      }
    }
  };
  const bool beside =
      TileN == 256 && Dropped == Drops::kNothing && beside_tile(args, block.cluster);
  if (args.rank_class > 0 && !beside && Items(args, block.cluster).any()) fill_h([] {});

  // W (64, TileN) at k, or E.
  const auto load_w = [&](const CUtensorMap& w, Barrier full, int n0, int k) {
    constexpr int kHalfN = TileN / 2;
    const std::uint32_t to = block.slot(at) + kXBytes + block.rank * kHalfN * kRowBytes;
    const int n = n0 + block.rank * kHalfN;
    if constexpr (WIsKN && kHalfN < 64) {
      // One box of 64 columns: each fetches half of its rows.
      load_box(block.slot(at) + kXBytes + block.rank * (kBoxBytes / 2), w, full, n0,
               k + block.rank * (kTileK / 2), std::uint16_t{3});
    } else if constexpr (WIsKN) {
      for (int i = 0; i < kHalfN / 64; ++i) {
        load_box(to + i * kBoxBytes, w, full, n + i * 64, k, std::uint16_t{3});
      }
    } else {
      load_box(to, w, full, k, n, std::uint16_t{3});
    }
  };

  // x (128, 64) and W (64, TileN) at k; or h and E. Of the last rows `end` fetches what there is:
  // TMA is slow where a box has rows that don't exist, and nobody stores what is made of them.
  const auto fill = [&](const CUtensorMap& x, const CUtensorMap& end, int end_bytes,
                        const CUtensorMap& w, int m0, int n0, int k) {
    const Barrier full = block.full(at.index);
    block.empty(at.index).wait(at.parity);
    const bool whole = !kPartial || m0 + kTileM <= args.m, exists = whole || m0 < args.m;
    const int bytes = whole ? kXBytes : exists ? end_bytes : 0;
    full.arrive_and_expect(Size::kSlotBytes - kXBytes + bytes);
    if (exists) load_box(block.slot(at), whole ? x : end, full, k, m0);
    load_w(w, full, n0, k);
    at.advance<Size::kSlots>();
  };

  // h (128, 16) and E, and the mask bits of the tile.
  const auto fill_masked_pair = [&](int m0, int n0) {
    constexpr int kBytes = TileN / 64 * kMaskBytes;
    const Barrier full = block.full(at.index);
    block.empty(at.index).wait(at.parity);
    full.arrive_and_expect(kNarrowBytes + kBytes + TileN * kRowBytes);
    load_box(block.slot(at), maps.h[0], full, 0, m0);
    wait_for_kernel_before();
    load_bytes(block.slot(at) + kNarrowBytes, masks_at(args.masks, args, m0 / kTileM, n0 / 64),
               full, kBytes);
    load_w(maps.e[0], full, n0, 0);
    at.advance<Size::kSlots>();
  };

  Units units(args, block.cluster);
  // Columns of a matrix, and its coefficients, of the block's 128 rows.
  const auto fill_unit = [&] {
    constexpr int kColumns = outer_columns(TileN), kBoxes = kColumns / 64;
    const int part = units.part, column = units.column() * kColumns;
    const int m0 = (units.row() * 2 + block.rank) * kTileM;
    seen.wait(units.of().of_h ? kSeenCopies + (args.outer.late ? 1 : 2) : kSeenCopies);
    const Barrier full = block.full(at.index);
    block.empty(at.index).wait(at.parity);
    const bool masked = Dropped == Drops::kY && units.of().masked;
    full.arrive_and_expect(kBoxes * kXBytes + kNarrowBytes + (masked ? kBoxes * kMaskBytes : 0));
    if (masked) {
      wait_for_kernel_before();
      load_bytes(block.masks_of_outer(at),
                 masks_at(args.turned_masks, args, m0 / kTileM, column / 64), full,
                 kBoxes * kMaskBytes);
    }
    const std::uint32_t to = block.slot(at);
    for (int i = 0; i < kBoxes; ++i) {
      load_box(to + i * kXBytes, maps.matrix[part], full, column + i * 64, m0);
    }
    load_box(to + kBoxes * kXBytes, maps.coefficients[part], full, 0, m0);
    at.advance<Size::kSlots>();
    units.advance();
    if (!units.any()) return;
    // Nobody has read the next one's matrix before, unlike what tiles are made of.
    for (int i = 0; i < kBoxes; ++i) {
      prefetch_box(maps.matrix[units.part], units.column() * kColumns + i * 64,
                   (units.row() * 2 + block.rank) * kTileM);
    }
  };

  int count = kSeenCopies + (Outer ? 2 : 1);  // after the first tile
  for_each_tile(args, block.cluster, [&](int row, int column) {
    const int of = layer_of<kAlone>(args, column);
    const int m0 = (row * 2 + block.rank) * kTileM;
    const int n0 = (column - args.layers[of].first_column) * TileN;
    const auto fill_pair = [&] {
      for (int r = 0; r < args.layers[of].rank; r += kTileK) {
        fill(maps.h[of], maps.h[of], kXBytes, maps.e[of], m0, n0, r);
      }
    };
    if constexpr (Dropped == Drops::kYFirst) {
      seen.wait(kSeenAll);
      fill_pair();
    }
    int i = 0;
    const auto fill_until = [&](int end) {
      for (; i < end; ++i) fill(maps.x, maps.x_end, args.end_bytes, maps.w[of], m0, n0, i * kTileK);
    };
    if (beside && units.first_tile) {
      int at_step = args.h_first;
      fill_until(at_step);
      fill_h([&] {
        fill_until(at_step);
        at_step += args.h_every;
      });
    }
    if constexpr (Outer) {
      const int spread = units.of_tile(), at_end = units.at_end();
      for (int u = 0; u < spread + at_end; ++u) {
        fill_until(u < spread ? units.step_of(u) : units.step_at_end(u - spread, at_end));
        fill_unit();
      }
    }
    fill_until(args.k_blocks);
    if constexpr (Dropped == Drops::kYFirst) return;
    const int of_first = kSeenCopies + (Outer && args.outer.late ? 2 : 1);
    const int until = units.first_tile ? of_first : ++count;
    units.first_tile = false;
    if (args.layers[of].rank == 0) return;
    seen.wait(until);
    if constexpr (Dropped == Drops::kY) {
      fill_masked_pair(m0, n0);
    } else {
      fill_pair();
    }
  });
}

}  // namespace graft::cuda::hopper

#endif
