#pragma once

#include <cstdint>

#include "backend/cuda/element.cuh"
#include "backend/cuda/sm90.cuh"
#include "backend/cuda/wgmma.cuh"
#include "product/cuda/hopper_block.cuh"

// Warpgroups 1 and 2 of the kernel in hopper.cu: products, and what becomes of them.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace graft::cuda::hopper {

template <class T>
__device__ std::uint32_t packed(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 both = __floats2half2_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
  } else {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
  }
}

__device__ inline float load_as_float(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return __half2float(static_cast<const __half*>(data)[index]);
    case DType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

// Warpgroups 1 and 2: a half tile of 64 rows each.
template <class T, int TileN, bool WIsKN, bool Outer>
struct Multiplier {
  using Size = Sizes<TileN>;

  // Whether there may be units beside tiles.
  static constexpr bool kBeside = TileN == 256;

  const Maps& maps;
  const Arguments& args;
  const Block<TileN>& block;
  int half;    // which warpgroup: 0 or 1
  int thread;  // of the warpgroup
  Units units;
  Slot at{0, 0};
  int unreleased = 0;  // the slot before, whose products may not be done
  // Slots of units: whose products are to go with those of the next step; whose went with the step
  // before. -1: none.
  int unit_to_go = -1, unreleased_unit = -1;
  bool first_tile = true, outer_starts = true;
  // Sums of a unit beside the tile, 64 rows by 16, in two halves that don't wait for each other: of
  // h, or of an outer product.
  float side[2][8];

  __device__ void sync() const { named_sync(1 + half, 128); }

  // Both blocks of a cluster fill a slot, so both must know that it is empty.
  __device__ void release(int slot) const {
    if (thread < 2) block.empty(slot).arrive_at(thread);
  }
  __device__ void advance() {
    unreleased = at.index;
    at.template advance<Size::kSlots>();
  }
  __device__ void release_before() {
    release(unreleased);
    if constexpr (kBeside) {
      if (unreleased_unit >= 0) release(unreleased_unit);
      unreleased_unit = unit_to_go;
      unit_to_go = -1;
    }
  }
  __device__ void finish_products() {
    wgmma_wait<0>();
    release_before();
  }

  // sum += x · W over the first 16 · Steps of the slot's 64.
  template <int Steps>
  __device__ void step(float (&sum)[TileN / 2], bool first) {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const std::uint64_t a = tile_descriptor(slot + half * kHalfXBytes, 16);
    const std::uint64_t b = tile_descriptor(slot + kXBytes, WIsKN ? kBoxBytes : 16);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Steps; ++i) {
      // 16 elements of a row are 32 bytes; 16 rows are 2048. Descriptors count in 16.
      wgmma<TileN, WIsKN, T>(sum, a + i * 2, b + i * (WIsKN ? 128 : 2), !first || i > 0);
    }
    wgmma_commit();
    if (!first) {
      wgmma_wait<1>();
      release_before();
    }
    advance();
  }

  // h of this warpgroup's rows, over a part of K.
  template <int R>
  __device__ void shrink(float (&sum)[TileN / 2], int row, int part) {
    constexpr int kSteps = steps_of_unit<TileN>(R);
    // Two sums where there is room: shorter ones are more exact, for the matrix units cut off what
    // they add, and don't wait for each other.
    constexpr bool kTwo = R == 16;
    float second[kTwo ? R / 2 : 1];
    const int end = min((part + 1) * args.units_of_part, args.units);
    for (int unit = part * args.units_of_part; unit < end; ++unit) {
      const bool first = unit == part * args.units_of_part;
      block.full(at.index).wait(at.parity);
      const std::uint32_t slot = block.slot(at);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const std::uint64_t a = tile_descriptor(slot + i * kXBytes + half * kHalfXBytes, 16);
        const std::uint64_t b = tile_descriptor(slot + kSteps * kXBytes + i * R * kRowBytes, 16);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if constexpr (kTwo) {
            const bool add = !first || i * 4 + j > 1;
            if (j % 2 == 1) {
              wgmma<R, false, T>(second, a + j * 2, b + j * 2, add);
            } else {
              wgmma<R, false, T>(sum, a + j * 2, b + j * 2, add);
            }
          } else {
            wgmma<R, false, T>(sum, a + j * 2, b + j * 2, !first || i + j > 0);
          }
        }
      }
      wgmma_commit();
      if (!first) {
        wgmma_wait<1>();
        release_before();
      }
      advance();
    }
    finish_products();
    if constexpr (kTwo) {
#pragma unroll
      for (int i = 0; i < R / 2; ++i) sum[i] += second[i];
    }

    publish_h<R>(sum, row, part);
  }

  template <int R, int Registers>
  __device__ void publish_h(float (&sum)[Registers], int row, int part) const {
    const int row_block = row * 2 + block.rank;
    if (row_block * kTileM >= args.m) return;
    if (args.h_parts > 1 && !add_parts<R>(sum, row_block, part)) return;
    store_h<R>(sum, row_block);
    // Written by each thread, read by TMA of any block: each thread orders its own writes before
    // TMA's reads and before the flag.
    fence_async();
    __threadfence();
    sync();
    if (thread == 0) {
      raise_release(args.flags + row_block * kFlagsOfRowBlock);
      if constexpr (Outer) raise_release(args.all_ready);
    }
  }

  // Leaves this part's sum in memory. The last of a row block's parts to come adds them all, always
  // in the same order; false: there are others to come.
  template <int R, int Registers>
  __device__ bool add_parts(float (&sum)[Registers], int row_block, int part) const {
    constexpr int kVectors = R / 8;
    const auto partial = [&](int of_part) {
      const std::int64_t blocks = std::int64_t{2} * args.tile_rows;
      return reinterpret_cast<float4*>(args.partial) +
             ((of_part * blocks + row_block) * 2 + half) * (kVectors * 128) + thread;
    };
    float4* const mine = partial(part);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      __stcg(mine + i * 128,
             make_float4(sum[i * 4], sum[i * 4 + 1], sum[i * 4 + 2], sum[i * 4 + 3]));
    }
    if (!is_last(args.flags + row_block * kFlagsOfRowBlock + 1 + half, args.h_parts)) return false;
#pragma unroll
    for (int i = 0; i < kVectors * 4; ++i) sum[i] = 0.0f;
    for (int p = 0; p < args.h_parts; ++p) {
      const float4* const from = partial(p);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const float4 value = __ldcg(from + i * 128);
        sum[i * 4] += value.x;
        sum[i * 4 + 1] += value.y;
        sum[i * 4 + 2] += value.z;
        sum[i * 4 + 3] += value.w;
      }
    }
    return true;
  }

  // s·h, scaled in float32 before it is rounded, so that it overflows no sooner than itself; and h.
  template <int R, int Registers>
  __device__ void store_h(const float (&sum)[Registers], int row_block) const {
    const int lane = thread % 32;
    const std::int64_t row =
        std::int64_t{row_block} * kTileM + half * kHalfM + thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      if (row + below * 8 >= args.m) continue;
      T* const to = static_cast<T*>(args.h) + (row + below * 8) * args.h_stride;
      float* const out = args.h_out + (row + below * 8) * args.rank;
#pragma unroll
      for (int i = 0; i < R / 8; ++i) {
        const int column = i * 8 + lane % 4 * 2;
        const float low = sum[i * 4 + below * 2], high = sum[i * 4 + below * 2 + 1];
        if (column >= args.h_stride) continue;
        *reinterpret_cast<std::uint32_t*>(to + column) =
            packed<T>(low * args.scaling, high * args.scaling);
        if (args.h_out == nullptr) continue;
        if (column < args.rank) out[column] = low;
        if (column + 1 < args.rank) out[column + 1] = high;
      }
    }
  }

  __device__ void make_h(float (&sum)[TileN / 2], int row, int part) {
    switch (args.rank_class) {
      case 16:
        return shrink<16>(sum, row, part);
      case 64:
        return shrink<64>(sum, row, part);
      case 128:
        return shrink<128>(sum, row, part);
      default:
        if constexpr (TileN == 256) return shrink<256>(sum, row, part);
    }
  }

  __device__ void make_tile(float (&sum)[TileN / 2], int row, int column) {
    const int n0 = column * TileN;
    float bias = 0.0f;  // of one column of the tile, for all threads
    const int biased = static_cast<int>(threadIdx.x) - 128;
    if (args.bias != nullptr && biased < TileN && n0 + biased < args.n) {
      bias = load_as_float(args.bias, args.bias_dtype, (n0 + biased) * args.bias_stride);
    }
    step<4>(sum, true);
    int i = 1;
    if constexpr (kBeside) {
      if (!Outer && first_tile && beside_tile(args, block.cluster)) {
        for_each_item(args, block.cluster, [&](int item_row, int part) {
          const int begin = part * args.units_of_part;
          const int end = min(begin + args.units_of_part, args.units);
          for (int unit = begin; unit < end; ++unit) {
            for (int before = 1; before < args.h_every; ++before, ++i) step<4>(sum, false);
            h_unit(unit == begin);
            step<4>(sum, false);
            ++i;
          }
          wgmma_wait<0>();
          float h[8];
#pragma unroll
          for (int j = 0; j < 8; ++j) h[j] = side[0][j] + side[1][j];
          publish_h<16>(h, item_row, part);
        });
      }
    }
    if constexpr (Outer) {
      const int end = units.next + units.of_tile(args, first_tile);
      while (units.next < end) {
        for (int before = 1; before < args.outer.every; ++before, ++i) step<4>(sum, false);
        outer_unit();
        outer_starts = false;
        step<4>(sum, false);
        ++i;
        if (++units.next == units.end || units.next % args.tile_rows == 0) {
          store_outer();
          outer_starts = true;
        }
      }
    }
    first_tile = false;
    for (; i < args.k_blocks; ++i) step<4>(sum, false);
    int r = args.rank;
    for (; r > 32; r -= kTileK) step<4>(sum, false);
    if (r > 16) {
      step<2>(sum, false);
    } else if (r > 0) {
      step<1>(sum, false);
    }
    finish_products();
    if (args.bias != nullptr) add_bias(sum, bias, biased);
    store_tile(sum, (row * 2 + block.rank) * kTileM + half * kHalfM, n0);
  }

  // Units beside a tile are too small to keep the matrix units busy, so their products go with
  // those of the tile's next step, one group, and their slot is released with that step's. Their
  // first operand comes through registers, for from shared memory it would take as long as a
  // step's: fragment i, of rows 16 at a time along what is summed up.
  template <bool BIsKN, class Load>
  __device__ void side_products(bool starts, const Load& load, std::uint32_t b, int step_of_b) {
    std::uint32_t a[8][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) load(i, a[i]);
    sync();  // all have read the slot: who waits for these products may release it
    wgmma_fence();
    const std::uint64_t first = tile_descriptor(b, 16);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // As (K, N), 16 rows on; as (N, K), 16 columns on, and after four the next box.
      const std::uint64_t at_b =
          BIsKN ? first + i * 128 : first + i / 4 * (step_of_b / 16) + i % 4 * 2;
      wgmma_16<BIsKN, T>(side[i % 2], a[i], at_b, !starts || i > 1);
    }
    unit_to_go = at.index;
    at.template advance<Size::kSlots>();
  }

  // h (64 rows of a warpgroup, 16) += x (64, 128) · S (128, 16).
  __device__ void h_unit(bool starts) {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const int lane = thread % 32, row = half * kHalfM + thread / 32 * 16 + lane % 16;
    const std::uint32_t from = slot + row * kRowBytes + ((lane / 16 ^ row % 8) << 4);
    side_products<false>(
        starts,
        [&](int i, std::uint32_t(&a)[4]) {
          // Two pieces on, in swizzled rows.
          load_matrices(a, (from + i / 4 * kXBytes) ^ (i % 4 * 32));
        },
        slot + 2 * kXBytes, 16 * kRowBytes);
  }

  // out (16, 128 columns) += coefficientsᵀ (16, 128 rows) · matrix (128 rows, 128 columns), turned
  // round, for wgmma has 64 rows: side (64 columns of a warpgroup, 16).
  __device__ void outer_unit() {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const int lane = thread % 32, row = lane / 16 * 8 + lane % 8;
    const int piece = thread / 32 * 2 + lane / 8 % 2;
    const std::uint32_t from = slot + half * kXBytes + row * kRowBytes + ((piece ^ row % 8) << 4);
    side_products<true>(
        outer_starts,
        [&](int i, std::uint32_t(&a)[4]) { load_matrices_turned(a, from + i * 16 * kRowBytes); },
        slot + 2 * kXBytes, 0);
  }

  // Leaves this block's sum of a column block in memory; the last of those that share the column
  // block adds them all, always in the same order.
  __device__ void store_outer() {
    wgmma_wait<0>();
    const OuterArguments& outer = args.outer;
    const int column = (units.next - 1) / args.tile_rows;
    const int first = Units::cluster_of(args, column * args.tile_rows);
    const int last = Units::cluster_of(args, (column + 1) * args.tile_rows - 1);
    const auto partial = [&](int segment) {
      return reinterpret_cast<float4*>(
                 outer.partial +
                 ((std::int64_t{column} * outer.segments + segment) * 2 + half) * kOuterPartial) +
             thread;
    };
    float4* const mine = partial((block.cluster - first) * 2 + block.rank);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      __stcg(mine + i * 128,
             make_float4(side[0][i * 4] + side[1][i * 4], side[0][i * 4 + 1] + side[1][i * 4 + 1],
                         side[0][i * 4 + 2] + side[1][i * 4 + 2],
                         side[0][i * 4 + 3] + side[1][i * 4 + 3]));
    }
    const int segments = (last - first + 1) * 2;
    if (!is_last(outer.arrived + column * 2 + half, segments)) return;
    float4 total[2] = {};
    for (int segment = 0; segment < segments; ++segment) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 value = __ldcg(partial(segment) + i * 128);
        total[i].x += value.x;
        total[i].y += value.y;
        total[i].z += value.z;
        total[i].w += value.w;
      }
    }
    const bool second = column >= outer.parts[0].col_blocks;
    const OuterPart& part = outer.parts[second ? 1 : 0];
    const int lane = thread % 32;
    const int col = (second ? column - outer.parts[0].col_blocks : column) * kOuterCols +
                    half * 64 + thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float values[4] = {total[i].x, total[i].y, total[i].z, total[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int r = i * 8 + lane % 4 * 2 + j % 2, c = col + j / 2 * 8;
        if (r < args.rank && c < part.cols) {
          part.out[r * part.rank_stride + c * part.col_stride] = values[j] * part.factor;
        }
      }
    }
  }

  // Whether this warpgroup is the last of `count` that left something in memory for each other.
  // Then it sees what they left.
  __device__ bool is_last(std::uint32_t* arrivals, int count) const {
    __threadfence();
    sync();
    const std::uint32_t arrived = block.shared + Size::kArrived + half * 4;
    if (thread == 0) {
      const unsigned before = atomicAdd(arrivals, 1u);
      __threadfence();
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(arrived), "r"(before) : "memory");
    }
    sync();
    unsigned before;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(before) : "r"(arrived) : "memory");
    return before + 1 == static_cast<unsigned>(count);
  }

  __device__ void add_bias(float (&sum)[TileN / 2], float bias, int biased) const {
    const std::uint32_t at = block.shared + Size::kBias;
    named_sync(3, 256);  // of the tile before, all have read
    if (biased < TileN) {
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + biased * 4), "f"(bias) : "memory");
    }
    named_sync(3, 256);
#pragma unroll
    for (int i = 0; i < TileN / 8; ++i) {
      float low, high;
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(low), "=f"(high)
                   : "r"(at + (i * 8 + thread % 4 * 2) * 4)
                   : "memory");
      sum[i * 4] += low;
      sum[i * 4 + 1] += high;
      sum[i * 4 + 2] += low;
      sum[i * 4 + 3] += high;
    }
  }

  // 64 columns at a time, in two buffers in turn: TMA stores one while the other is filled.
  __device__ void store_tile(const float (&sum)[TileN / 2], int m0, int n0) const {
    const std::uint32_t staging = block.shared + Size::kStaging + half * 2 * kBoxBytes;
    const int lane = thread % 32, row = thread / 32 * 16 + lane % 16;
#pragma unroll
    for (int i = 0; i < TileN / 64; ++i) {
      const std::uint32_t buffer = staging + i % 2 * kBoxBytes;
      if (thread == 0) wait_for_store_reads<1>();
      sync();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Four matrices: rows 0-7 and 8-15 of the warp's 16, of two pieces of 8 columns.
        const float* const from = sum + i * 32 + j * 8;
        const int piece = j * 2 + lane / 16;
        store_matrices(buffer + row * kRowBytes + ((piece ^ row % 8) << 4),
                       packed<T>(from[0], from[1]), packed<T>(from[2], from[3]),
                       packed<T>(from[4], from[5]), packed<T>(from[6], from[7]));
      }
      fence_async_shared();
      sync();
      if (thread == 0) {
        store_box(maps.y, buffer, n0 + i * 64, m0);
        commit_stores();
      }
    }
  }
};

}  // namespace graft::cuda::hopper

#endif
