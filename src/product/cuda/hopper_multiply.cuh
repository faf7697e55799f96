#pragma once

#include <cstdint>

#include "backend/cuda/element.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/sm90.cuh"
#include "backend/cuda/wgmma.cuh"
#include "product/cuda/hopper_block.cuh"
#include "product/cuda/hopper_masks.cuh"

// Warpgroups 1 and 2 of the kernel in hopper.cu: products, and what becomes of them.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace graft::cuda::hopper {

// Warpgroups 1 and 2: a half tile of 64 rows each.
template <class T, int TileN, bool WIsKN, bool Outer, Drops Dropped, bool HasRagged>
struct Multiplier {
  using Size = Sizes<TileN>;

  // Whether there may be units beside tiles, and of h.
  static constexpr bool kBesideH = TileN == 256 && Dropped == Drops::kNothing && !HasRagged;
  static constexpr bool kBeside = kBesideH || Outer || Dropped == Drops::kX;
  static constexpr bool kAlone = is_alone(Outer, Dropped);
  static constexpr bool kPairFirst = Dropped == Drops::kYFirst;
  // A gradient has no bias.
  static constexpr bool kBias = !Outer && Dropped != Drops::kY && !kPairFirst;

  const Maps& maps;
  const Arguments& args;
  const Block<TileN>& block;
  int half;    // which warpgroup: 0 or 1
  int thread;  // of the warpgroup
  Units units;
  Slot at{0, 0};
  int unreleased = 0;        // the slot before, whose products may not be done
  int unreleased_unit = -1;  // the slot of the unit after it; -1: there was none
  // Sums of a unit beside the tile, 64 rows by 16, in two halves that don't wait for each other: of
  // h, or of an outer product.
  float side[2][8];
  int left = 0;  // sums that were left in the cluster

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
      unreleased_unit = -1;
    }
  }
  __device__ void finish_products() {
    wgmma_wait<0>();
    release_before();
  }

  // sum = x · W over the first 16 · Steps of the slot's 64, or += with `adds`. If it `follows`
  // another slot's products, these are done before it ends, and their slot is released.
  template <int Steps>
  __device__ void step(float (&sum)[TileN / 2], bool adds, bool follows) {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const std::uint64_t a = tile_descriptor(slot + half * kHalfXBytes, 16);
    const std::uint64_t b = tile_descriptor(slot + kXBytes, WIsKN ? kBoxBytes : 16);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Steps; ++i) {
      // 16 elements of a row are 32 bytes; 16 rows are 2048. Descriptors count in 16.
      wgmma<TileN, WIsKN, T>(sum, a + i * 2, b + i * (WIsKN ? 128 : 2), adds || i > 0);
    }
    wgmma_commit();
    if (follows) {
      wgmma_wait<1>();
      release_before();
    }
    advance();
  }
  template <int Steps>
  __device__ void next_step(float (&sum)[TileN / 2]) {
    step<Steps>(sum, true, true);
  }

  // h of this warpgroup's rows, over K or a part of it.
  template <int R>
  __device__ void shrink(float (&sum)[TileN / 2], const Items& item) {
    constexpr int kSteps = steps_of_unit<TileN>(R);
    // Two sums where there is room: shorter ones are more exact, for the matrix units cut off what
    // they add, and don't wait for each other.
    constexpr bool kTwo = R == 16;
    float second[kTwo ? R / 2 : 1];
    const int begin = item.first_unit(), end = item.end_unit();
    for (int unit = begin; unit < end; ++unit) {
      const bool first = unit == begin;
      block.full(at.index).wait(at.parity);
      const std::uint32_t slot = block.slot(at);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const std::uint64_t a = tile_descriptor(slot + i * kXBytes + half * kHalfXBytes, 16);
        const std::uint32_t s = block.s_of(at, kSteps, kSteps * R * kRowBytes);
        const std::uint64_t b = tile_descriptor(s + i * R * kRowBytes, 16);
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

    publish_h<R>(sum, item);
  }

  // The same for rank 16, and of the 128 columns of each unit their part of the outer product with
  // given coefficients: dB = hᵀ dy, where g = dy Bᵀ is made. Turned round, (64 columns, 16), with
  // the matrix where it lies, as (rows, columns).
  __device__ void shrink_with_outer(const Items& item, int count) {
    const int row_block = item.row() * 2 + block.rank;
    const bool exists = row_block * kTileM < args.m;
    // Two places in turn: there the other warpgroup may still multiply by those of the item before.
    const std::uint32_t coefficients = block.shared + Size::kStaging + count % 2 * kNarrowBytes;
    const bool rides = args.outer.rides;
    if (rides) {
      put_coefficients<T>(args, coefficients, row_block * kTileM + thread, half);
      fence_async_shared();
      named_sync(3, 256);
    }
    float h[2][8];
#pragma unroll
    for (int i = 0; i < 8; ++i) h[0][i] = h[1][i] = 0.0f;
    const int end = item.end_unit();
#pragma unroll 1
    for (int unit = item.first_unit(); unit < end; ++unit) {
      block.full(at.index).wait(at.parity);
      const std::uint32_t slot = block.slot(at);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const std::uint64_t a = tile_descriptor(slot + i / 4 * kXBytes + half * kHalfXBytes, 16);
        const std::uint64_t b = tile_descriptor(slot + 2 * kXBytes + i / 4 * 16 * kRowBytes, 16);
        wgmma<16, false, T>(h[i % 2], a + i % 4 * 2, b + i % 4 * 2, true);
      }
      wgmma_commit();
      float part[2][8];
      if (rides) {
        wgmma_fence();
        multiply_outer<8>(part, slot + half * kXBytes, coefficients, true);
        wgmma_commit();
      }
      wgmma_wait<0>();
      release(at.index);
      at.template advance<Size::kSlots>();
      if (rides && exists) store_sums(part, ridden_partial(args, unit, row_block, half));
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) h[0][i] += h[1][i];
    publish_h<16>(h[0], item);
  }

  // to (64 columns, 16) = matrixᵀ · coefficients over 16 · Fragments rows; += unless it starts.
  template <int Fragments>
  __device__ void multiply_outer(float (&to)[2][8], std::uint32_t matrix,
                                 std::uint32_t coefficients, bool starts) const {
    const std::uint64_t a = tile_descriptor(matrix, kBoxBytes);
    const std::uint64_t b = narrow_descriptor(coefficients);
#pragma unroll
    for (int i = 0; i < Fragments; ++i) {
      wgmma<16, true, T, true>(to[i % 2], a + i * (16 * kRowBytes / 16),
                               b + i * (16 * kNarrowRowBytes / 16), !starts || i > 1);
    }
  }

  __device__ void store_sums(const float (&from)[2][8], float4* to) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      __stcg(to + thread + i * 128,
             make_float4(from[0][i * 4] + from[1][i * 4], from[0][i * 4 + 1] + from[1][i * 4 + 1],
                         from[0][i * 4 + 2] + from[1][i * 4 + 2],
                         from[0][i * 4 + 3] + from[1][i * 4 + 3]));
    }
  }

  template <int R, int Registers>
  __device__ void publish_h(float (&sum)[Registers], const Items& item) const {
    const int row_block = item.row() * 2 + block.rank;
    if (row_block * kTileM >= args.m) return;
    if (item.parts() > 1 && !add_parts<R>(sum, row_block, item.part())) return;
    const int at = row_block * kTileM + half * kHalfM + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
    for (int i = 0; i < R / 8; ++i) {
      const int column = i * 8 + thread % 4 * 2;
      store_h<T>(args, at, column, sum[i * 4], sum[i * 4 + 1]);
      store_h<T>(args, at + 8, column, sum[i * 4 + 2], sum[i * 4 + 3]);
    }
    if constexpr (HasRagged) store_ragged(sum, at);
    tell_of_h(row_block);
  }

  // y = x·W + h·E + bias of the columns behind those of h: `sum` has x·W of rows `at` and `at` + 8,
  // and E comes as mma's second operand has it.
  __device__ void store_ragged(float (&sum)[TileN / 2], int at) const {
    const Ragged& ragged = args.ragged;
    const Layer& layer = args.layers[0];
    const int group = thread % 32 / 4, quad = thread % 4;
    const auto of_h = [&](int i) {
      const int r = i / 4 * 8 + quad * 2;
      return pack2<T>(r < layer.rank ? sum[i] * layer.scaling : 0.0f,
                      r + 1 < layer.rank ? sum[i + 1] * layer.scaling : 0.0f);
    };
    const std::uint32_t h[4] = {of_h(0), of_h(2), of_h(4), of_h(6)};
    const auto of_e = [&](int r, int column) {
      const bool exists = r < layer.rank && column < ragged.count;
      return exists ? load_as_float(ragged.e, ragged.e_dtype,
                                    r * ragged.e_rank_stride + column * ragged.e_col_stride)
                    : 0.0f;
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int first = i * 8 - ragged.ranks;
      if (first < 0 || first >= ragged.count) continue;
      float y[4] = {sum[i * 4], sum[i * 4 + 1], sum[i * 4 + 2], sum[i * 4 + 3]};
      if (layer.rank > 0) {
        const int column = first + group;
        const std::uint32_t e[2] = {
            pack2<T>(of_e(quad * 2, column), of_e(quad * 2 + 1, column)),
            pack2<T>(of_e(quad * 2 + 8, column), of_e(quad * 2 + 9, column))};
        mma<T>(y, h, e);
      }
      const int column = first + quad * 2;
      if (layer.bias != nullptr) {
        const std::int64_t from = ragged.first + column;
        const float low = load_as_float(layer.bias, layer.bias_dtype, from * layer.bias_stride);
        const float high =
            load_as_float(layer.bias, layer.bias_dtype, (from + 1) * layer.bias_stride);
        y[0] += low, y[1] += high, y[2] += low, y[3] += high;
      }
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int row = at + lower * 8;
        if (row >= args.m) continue;
        T* const to = static_cast<T*>(ragged.y) + row * ragged.y_stride + column;
        *reinterpret_cast<std::uint32_t*>(to) = pack2<T>(y[lower * 2], y[lower * 2 + 1]);
      }
    }
  }

  // Written by each thread, read by TMA of any block: each thread orders its own writes before
  // TMA's reads and before the flag.
  __device__ void tell_of_h(int row_block) const {
    fence_async();
    __threadfence();
    sync();
    if (thread == 0) {
      block.seen().wait(kSeenS);  // flags were zero
      raise_release(args.flags + row_block * kFlagsOfRowBlock);
      if constexpr (Outer) raise_release(args.all_ready);
    }
  }

  // Leaves this part's sum in memory. The last of a row block's parts to come adds them all, in
  // their order; false: there are others to come.
  template <int R, int Registers>
  __device__ bool add_parts(float (&sum)[Registers], int row_block, int part) const {
    constexpr int kVectors = R / 8;
    float4* const mine = h_partial(args, part, row_block, half) + thread;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      __stcg(mine + i * 128,
             make_float4(sum[i * 4], sum[i * 4 + 1], sum[i * 4 + 2], sum[i * 4 + 3]));
    }
    if (!is_last(args.flags + row_block * kFlagsOfRowBlock + 1 + half, args.h_parts)) return false;
    for (int p = 0; p < args.h_parts; ++p) {
      const float4* const from = h_partial(args, p, row_block, half) + thread;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const float4 value = __ldcg(from + i * 128);
        sum[i * 4] = (p == 0 ? 0.0f : sum[i * 4]) + value.x;
        sum[i * 4 + 1] = (p == 0 ? 0.0f : sum[i * 4 + 1]) + value.y;
        sum[i * 4 + 2] = (p == 0 ? 0.0f : sum[i * 4 + 2]) + value.z;
        sum[i * 4 + 3] = (p == 0 ? 0.0f : sum[i * 4 + 3]) + value.w;
      }
    }
    return true;
  }

  // The same of an x that is masked, which therefore goes through registers, for rank 16.
  __device__ void shrink_masked(float (&sum)[TileN / 2], const Items& item) {
    const int begin = item.first_unit(), end = item.end_unit();
    for (int unit = begin; unit < end; ++unit) {
      h_unit(unit == begin);
      wgmma_wait<0>();
      release(unreleased_unit);
      unreleased_unit = -1;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = side[0][i] + side[1][i];
    publish_h<16>(sum, item);
  }

  // The cluster's item number `count`.
  __device__ void make_h(float (&sum)[TileN / 2], const Items& item, int count) {
    if constexpr (kPairFirst) {  // it was made before
    } else if constexpr (Outer && TileN == 256) {
      shrink_with_outer(item, count);
    } else if constexpr (Dropped == Drops::kX) {
      shrink_masked(sum, item);
    } else if constexpr (HasRagged) {
      shrink<32>(sum, item);
    } else if constexpr (kAlone) {
      shrink<16>(sum, item);  // there is no other rank with outer products or masks
    } else {
      if (args.rank_class == 16) return shrink<16>(sum, item);
      shrink<64>(sum, item);  // wider ones have a launch of their own
    }
  }

  __device__ void make_tile(float (&sum)[TileN / 2], int tile) {
    float bias = 0.0f;  // of one column of the tile, for all threads
    const int biased = static_cast<int>(threadIdx.x) - 128;
    bool has_bias = false;
    if constexpr (kBias) {
      const int column = place_of(args, tile).column;
      const Layer& layer = args.layers[layer_of<kAlone>(args, column)];
      const int n = (column - layer.first_column) * TileN + biased;
      has_bias = layer.bias != nullptr;
      if (has_bias && biased < TileN && n < layer.n) {
        bias = load_as_float(layer.bias, layer.bias_dtype, n * layer.bias_stride);
      }
    }
    if constexpr (kPairFirst) start_with_masked_pair(sum, place_of(args, tile));
    step<4>(sum, kPairFirst, false);
    int i = 1;
    const auto steps_until = [&](int end) {
      for (; i < end; ++i) next_step<4>(sum);
    };
    if constexpr (kBesideH) {
      if (units.first_tile && beside_tile(args, block.cluster)) {
        int at_step = args.h_first;
        for (Items item(args, block.cluster); item.any(); item.advance()) {
          const int begin = item.first_unit(), end = item.end_unit();
          for (int unit = begin; unit < end; ++unit, at_step += args.h_every) {
            steps_until(at_step);
            h_unit(unit == begin);
            next_step<4>(sum);
            ++i;
          }
          const int row_block = item.row() * 2 + block.rank;
          if (row_block * kTileM < args.m) {
            leave_sums(h_partial(args, item.part(), row_block, half));
          }
        }
      }
    }
    if constexpr (Outer) {
      const int spread = units.of_tile(), at_end = units.at_end();
      for (int u = 0; u < spread + at_end; ++u) {
        const int at_step = u < spread ? units.step_of(u) : units.step_at_end(u - spread, at_end);
        steps_until(at_step);
        const bool in_cluster = TileN == 128 && args.outer.in_cluster;
        if (in_cluster) {
          unit_in_cluster(u, units.starts());
        } else {
          outer_unit(units.starts());
        }
        next_step<4>(sum);
        ++i;
        if (in_cluster) {
          if (thread == 0) block.unit_empty().arrive();
          if (units.ends()) leave_in_cluster();
        } else if (units.ends()) {
          leave_sums(outer_partial(args, units.of().first_block + units.column(),
                                   units.share() * 2 + block.rank, half));
        }
        units.advance();
      }
    }
    units.first_tile = false;
    steps_until(args.k_blocks);
    const TilePlace place = place_of(args, tile);
    const int of = layer_of<kAlone>(args, place.column);
    const int row_block = place.row * 2 + block.rank;
    const int n0 = (place.column - args.layers[of].first_column) * TileN;
    if constexpr (Dropped == Drops::kY) {
      add_masked_pair(sum);
    } else {
      int r = kPairFirst ? 0 : args.layers[of].rank;
      for (; r > 32; r -= kTileK) next_step<4>(sum);
      if (r > 16) {
        next_step<2>(sum);
      } else if (r > 0) {
        next_step<1>(sum);
      }
      finish_products();
    }
    if (has_bias) add_bias(sum, bias, biased);
    if constexpr (Outer && TileN == 128) {
      if (args.outer.in_cluster) wait_until_taken();
    }
    store_tile(sum, maps.y[of], row_block * kTileM + half * kHalfM, n0);
  }

  // sum = mask ∘ (h · E), to which the tile's other products are added: so it takes no registers
  // but those of the mask, which is read meanwhile.
  __device__ void start_with_masked_pair(float (&sum)[TileN / 2], const TilePlace& place) {
    const int row = half * kHalfM + thread / 32 * 16 + thread % 32 / 4;
    const uint2* const masks =
        masks_at(args.masks, args, place.row * 2 + block.rank, place.column * (TileN / 64)) + row;
    uint2 words[TileN / 64][2];
#pragma unroll
    for (int i = 0; i < TileN / 64; ++i) {
      words[i][0] = load_mask(masks + i * kTileM);
      words[i][1] = load_mask(masks + i * kTileM + 8);
    }
    int r = args.layers[0].rank;
    bool follows = false;
    for (; r > 32; r -= kTileK, follows = true) step<4>(sum, follows, follows);
    if (r > 0) step<2>(sum, follows, follows);
    finish_products();
#pragma unroll
    for (int i = 0; i < TileN / 64; ++i) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const uint2 both = words[i][lower];
          const std::uint32_t word = (j < 4 ? both.x : both.y) << thread % 4;
          const int at_column = i * 32 + j * 4 + lower * 2;
          zero_if_dropped(sum[at_column], word, j % 4, false);
          zero_if_dropped(sum[at_column + 1], word, j % 4, true);
        }
      }
    }
  }

  // sum += mask ∘ (h · E), 64 columns at a time, or 32 where registers are short; for rank 16 and
  // an E (rank, N).
  __device__ void add_masked_pair(float (&sum)[TileN / 2]) {
    constexpr int kPiece = Outer ? 32 : 64;
    block.full(at.index).wait(at.parity);
    finish_products();
    const std::uint32_t slot = block.slot(at);
    const int row = half * kHalfM + thread / 32 * 16 + thread % 32 / 4;
    const std::uint64_t a = narrow_descriptor(slot + half * kHalfM * kNarrowRowBytes);
    const std::uint64_t b = tile_descriptor(slot + kXBytes, kBoxBytes);
#pragma unroll
    for (int i = 0; i < TileN / kPiece; ++i) {
      const int box = i * kPiece / 64, in_box = i * kPiece % 64;
      float pair[kPiece / 2];
      wgmma_fence();
      wgmma<kPiece, WIsKN, T>(pair, a, b + box * (kBoxBytes / 16) + in_box * 2 / 16, false);
      wgmma_commit();
      std::uint32_t words[2][2];
      load_mask_words(words, slot + kNarrowBytes + box * kMaskBytes + row * 8);
      wgmma_wait<0>();
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
#pragma unroll
        for (int j = 0; j < kPiece / 8; ++j) {
          const std::uint32_t word = words[lower][in_box / 32 + j / 4] << thread % 4;
          const int from = j * 4 + lower * 2, to = i * (kPiece / 2) + from;
          add_if_kept(sum[to], pair[from], word, j % 4, false);
          add_if_kept(sum[to + 1], pair[from + 1], word, j % 4, true);
        }
      }
    }
    sync();  // all have read the masks
    release(at.index);
    at.template advance<Size::kSlots>();
  }

  // The products of a unit beside a tile go between those of two steps, and are done when those of
  // the step before are: the next step waits for both, and releases both slots. Their first operand
  // comes through registers, fragment i is 16 along what is summed up: there it is turned round or
  // masked.
  template <int Fragments, bool BIsKN, class Load, class Mask>
  __device__ void side_products(bool starts, const Load& load, const Mask& mask, std::uint32_t b,
                                int step_of_b) {
    std::uint32_t a[Fragments][4];
#pragma unroll
    for (int i = 0; i < Fragments; ++i) load(i, a[i]);
    mask(a);
    sync();  // all have read the slot: who waits for these products may release it
    wgmma_fence();
    const std::uint64_t first = BIsKN ? narrow_descriptor(b) : tile_descriptor(b, 16);
#pragma unroll
    for (int i = 0; i < Fragments; ++i) {
      // As (K, N), 16 rows of 32 bytes on; as (N, K), 16 columns on, and after four the next box.
      const std::uint64_t at_b =
          BIsKN ? first + i * 32 : first + i / 4 * (step_of_b / 16) + i % 4 * 2;
      wgmma_16<BIsKN, T>(side[i % 2], a[i], at_b, !starts || i > 1);
    }
    wgmma_commit();
    end_side();
  }
  __device__ void end_side() {
    unreleased_unit = at.index;
    at.template advance<Size::kSlots>();
  }

  // h (64 rows of a warpgroup, 16) += x (64, 128) · S (128, 16); of narrower tiles one step of 64.
  __device__ void h_unit(bool starts) {
    constexpr int kSteps = steps_of_unit<TileN>(16, Dropped == Drops::kX);
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at), s = slot + kSteps * kXBytes;
    if constexpr (Dropped == Drops::kX) {
      const int lane = thread % 32, row = half * kHalfM + thread / 32 * 16 + lane % 16;
      const std::uint32_t from = slot + row * kRowBytes + ((lane / 16 ^ row % 8) << 4);
      side_products<kSteps * 4, false>(
          starts,
          [&](int i, std::uint32_t(&a)[4]) {
            // Two pieces on, in swizzled rows.
            load_matrices(a, (from + i / 4 * kXBytes) ^ (i % 4 * 32));
          },
          [&](std::uint32_t(&a)[kSteps * 4][4]) {
            const int mask_row = half * kHalfM + thread / 32 * 16 + lane / 4;
#pragma unroll
            for (int i = 0; i < kSteps; ++i) {
              mask_rows(a + i * 4, block.masks_of_x(at) + i * kMaskBytes + mask_row * 8, thread);
            }
          },
          s, 16 * kRowBytes);
    } else {
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kSteps * 4; ++i) {
        const std::uint64_t a = tile_descriptor(slot + i / 4 * kXBytes + half * kHalfXBytes, 16);
        const std::uint64_t b = tile_descriptor(s + i / 4 * 16 * kRowBytes, 16);
        wgmma<16, false, T>(side[i % 2], a + i % 4 * 2, b + i % 4 * 2, !starts || i > 1);
      }
      wgmma_commit();
      end_side();
    }
  }

  // out (16, columns) += coefficientsᵀ (16, rows) · matrix (rows, columns), turned round, for wgmma
  // has 64 rows: side (64 columns, 16). A warpgroup has 64 columns of 128 rows, or 64 rows of all
  // 64 columns.
  __device__ void outer_unit(bool starts) {
    constexpr bool kByColumns = outer_columns(TileN) == 128;
    constexpr int kFragments = kByColumns ? 8 : 4;
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const int lane = thread % 32, row = lane / 16 * 8 + lane % 8;
    const int piece = thread / 32 * 2 + lane / 8 % 2;
    const std::uint32_t mine = half * (kByColumns ? kXBytes : kHalfXBytes);
    if constexpr (Dropped == Drops::kNothing) {
      wgmma_fence();
      multiply_outer<kFragments>(
          side, slot + mine,
          slot + (kByColumns ? 2 * kXBytes : kXBytes + half * kHalfM * kNarrowRowBytes), starts);
      wgmma_commit();
      return end_side();
    }
    const std::uint32_t from = slot + mine + row * kRowBytes + ((piece ^ row % 8) << 4);
    side_products<kFragments, true>(
        starts,
        [&](int i, std::uint32_t(&a)[4]) { load_matrices_turned(a, from + i * 16 * kRowBytes); },
        [&](std::uint32_t(&a)[kFragments][4]) {
          if constexpr (Dropped == Drops::kY && kByColumns) {
            if (!units.of().masked) return;
            const int column = thread / 32 * 16 + lane / 4;  // of the step `half`
            mask_columns(a, block.masks_of_outer(at) + half * kMaskBytes + column * 4, thread);
          }
        },
        slot + (kByColumns ? 2 * kXBytes : kXBytes + half * kHalfM * kNarrowRowBytes), 0);
  }

  // Leaves the sums of units in memory, for `add_sums`, behind a step: when this one's products
  // were waited for, those of the unit before it were done.
  __device__ void leave_sums(float4* to) {
    store_sums(side, to);
    sync();
    if (thread == 0) block.left().raise();
  }

  // The same of a unit in the place of its own, where its slot's products are this warpgroup's
  // rows.
  __device__ void unit_in_cluster(int unit, bool starts) {
    block.unit_full().wait(unit % 2);
    wgmma_fence();
    multiply_outer<4>(side, block.unit_matrix() + half * kHalfXBytes,
                      block.unit_coefficients(units.row()) + half * kHalfM * kNarrowRowBytes,
                      starts);
    wgmma_commit();
  }
  // Leaves the sums of a column block for `make_in_cluster`, where those before have been taken.
  __device__ void leave_in_cluster() {
    wait_until_taken();
    ++left;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto sum = [&](int j) { return side[0][i * 4 + j] + side[1][i * 4 + j]; };
      store_floats(block.sums_at(i, half, thread), sum(0), sum(1), sum(2), sum(3));
    }
    sync();
    if (thread == 0) block.left().raise();
  }
  __device__ void wait_until_taken() const {
    if (left > 0) block.taken().wait_for_others((left - 1) % 2);
  }

  // Whether this warpgroup is the last of `count` that left something in memory for each other.
  // Then it sees what they left.
  __device__ bool is_last(std::uint32_t* arrivals, int count) const {
    __threadfence();
    sync();
    const std::uint32_t arrived = block.shared + Size::kArrived + half * 4;
    if (thread == 0) {
      block.seen().wait(kSeenS);
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
  __device__ void store_tile(const float (&sum)[TileN / 2], const CUtensorMap& y, int m0,
                             int n0) const {
    const std::uint32_t staging = block.shared + Size::kStaging + half * 2 * kBoxBytes;
    const int lane = thread % 32, row = thread / 32 * 16 + lane % 16;
#pragma unroll
    for (int i = 0; i < TileN / 64; ++i) {
      const std::uint32_t buffer = staging + i % 2 * kBoxBytes;
      // A tile of 64 columns begins with the buffer that the one before it ended with.
      if (thread == 0) wait_for_store_reads<TileN == 64 ? 0 : 1>();
      sync();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Four matrices: rows 0-7 and 8-15 of the warp's 16, of two pieces of 8 columns.
        const float* const from = sum + i * 32 + j * 8;
        const int piece = j * 2 + lane / 16;
        store_matrices(buffer + row * kRowBytes + ((piece ^ row % 8) << 4),
                       pack2<T>(from[0], from[1]), pack2<T>(from[2], from[3]),
                       pack2<T>(from[4], from[5]), pack2<T>(from[6], from[7]));
      }
      fence_async_shared();
      sync();
      if (thread == 0) {
        store_box(y, buffer, n0 + i * 64, m0);
        commit_stores();
      }
    }
  }
};

}  // namespace graft::cuda::hopper

#endif
