#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "backend/cuda/integers.h"
#include "backend/cuda/tensor_map.h"
#include "product/cuda/hopper.h"
#include "product/cuda/hopper_block.cuh"
#include "product/cuda/hopper_fetch.cuh"
#include "product/cuda/hopper_make_masks.cuh"
#include "product/cuda/hopper_multiply.cuh"
#include "product/cuda/hopper_outer.h"
#include "product/cuda/hopper_shrink.h"

// y = [ x | s·h ] · [ W ; E ] + bias with h = x·S, for many rows of 16-bit elements on Hopper.
//
// A block makes a tile of 128 rows of y and 256 (or 128, or 64) columns, over K in steps of 64; two
// blocks of a cluster make two tiles, one above the other, and each fetches half of their W for
// both:
//
//                  W (64, 256) of this step
//                 ┌───────────┬───────────┐
//                 │fetched by │ by block 1│ ──> to both
//                 │ block 0   │           │
//                 └───────────┴───────────┘
//      x (128, 64)
//      ┌──┐ block 0  ┌───────────────────────┐ rows 0-63: warpgroup 1
//      │  │          │ y                     │ rows 64-127: warpgroup 2
//      └──┘          └───────────────────────┘
//      ┌──┐ block 1  ┌───────────────────────┐
//      │  │          │ y                     │
//      └──┘          └───────────────────────┘
//
// One thread of warpgroup 0 fetches: it waits until a slot of the ring is empty, and tells TMA to
// fill it. Warpgroups 1 and 2 wait until it is full, let wgmma multiply, and release the slot when
// the products of the one before it are known to be done. They add up y in registers (128 each,
// which warpgroup 0 has no use for and gives away), round it, and put it into staging buffers, from
// which TMA stores it while the next tile begins. A step is 128·256·64 products, 1024 clocks of a
// multiprocessor's matrix units, for which 32 KB come in: 16 of x and half of W's 32.
//
// The pair is the last step of every tile, with h in x's place and E in W's. Where what it adds to
// y is masked, and h so wide that it is made before, it is the first one: its sums are masked where
// they are, in the registers that the others are then added to. h is made in the same ring, by who
// has the time (see HopperPlan): by blocks that have a tile less than others, before they turn to
// their tiles, when a slot holds x (128, 128) and S (128, r); or by the others, in units of the
// same kind between steps of their first tile. h goes to memory, and a flag of the row block is
// raised, which whoever fetches h waits for. The outer products of a backward pass are made in
// units between steps of the later tiles.
//
// So blocks wait for each other. The kernel is launched cooperatively: all blocks run at once, or
// none does, which is why roles can follow from blockIdx; and a block makes its share of h before
// it waits for others'. Flags have to be zero before they are raised: block 0 sees to that, and the
// barrier that a cooperative launch has lets the others know. The warps of warpgroup 0 that don't
// fetch do that, copy an S or E that TMA could not fetch as it lies or that is of another type,
// watch the flags, and add up what units have left in memory (hopper_fetch.cuh).

namespace graft::cuda {
namespace hopper {

template <class T, int TileN, bool WIsKN, bool Outer, Drops Dropped, bool Ragged>
__global__ void __launch_bounds__(kThreads, 1)
    product(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Size = Sizes<TileN>;
  extern __shared__ __align__(1024) unsigned char shared[];
  Block<TileN> block{shared_address(shared), static_cast<int>(cluster_rank()),
                     static_cast<int>(blockIdx.x / 2)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Size::kSlots; ++i) {
      block.full(i).init(1);   // who fetches
      block.empty(i).init(4);  // two warpgroups, of two blocks
    }
    block.seen().set(0);
    block.left().set(0);
    block.sums().init(2);  // two blocks
    block.taken().init(2);
    block.unit_full().init(1);
    block.unit_empty().init(2);  // two warpgroups
    publish_barriers();
    prefetch(maps.x);
    prefetch(maps.w[0]);
    prefetch(maps.y[0]);
  }
  __syncthreads();
  cluster_arrive_relaxed();
  cluster_wait();
  // With dropout the kernel before made its masks, or it made h, and let this one start when all
  // that was before it had ended: who uses them waits for them.
  if constexpr (Dropped == Drops::kNothing) {
    if (!args.h_before) {
      wait_for_kernel_before();
      if (!args.outer_follows) let_next_kernel_start();
    }
  }

  const int warpgroup = static_cast<int>(threadIdx.x / 128);
  if (warpgroup == 0) {
    shrink_registers<56>();
    if (threadIdx.x == 0) fetch<TileN, WIsKN, Outer, Dropped>(maps, args, block);
    if (threadIdx.x >= 32 && args.rank_class > 0) {
      prepare<TileN, Outer, T>(maps, args, block, static_cast<int>(threadIdx.x) - 32);
    }
    __syncwarp();
  } else {
    grow_registers<224>();
    if constexpr (Dropped == Drops::kYFirst) wait_for_kernel_before();  // of the masks
    Multiplier<T, TileN, WIsKN, Outer, Dropped, Ragged> multiplier{
        maps,
        args,
        block,
        warpgroup - 1,
        static_cast<int>(threadIdx.x % 128),
        Units(args, block.cluster)};
    float sum[TileN / 2];
    if (args.rank_class > 0 && !beside_tile(args, block.cluster)) {
      int count = 0;
      for (Items item(args, block.cluster); item.any(); item.advance(), ++count) {
        multiplier.make_h(sum, item, count);
      }
      // What tiles are staged in holds S until both warpgroups have made their h.
      if constexpr (TileN == 128) named_sync(3, 256);
    }
    for (int tile = first_tile_of(args, block.cluster); tile < tiles_of(args);
         tile += args.clusters) {
      multiplier.make_tile(sum, tile);
    }
    if (multiplier.thread == 0) wait_for_store_reads<0>();
    __syncwarp();
  }
#endif
}

}  // namespace hopper

namespace {

using namespace hopper;

// The call's workspace. The terms share x and how W lies.
struct Layout {
  HopperPlan plan;
  bool w_is_kn = false;
  std::int64_t m, k, rank;
  std::int64_t k_blocks, units, flags;
  bool makes_outer = false, outer_after = false;  // beside the tiles; by a launch after them
  bool copies_s = false, s_is_kn = false;
  HopperOuterPlan outer;
  std::size_t flags_at = 0, s_at = 0, h_at = 0, partial_at = 0, bytes = 0;
  std::array<std::size_t, kMostLayers> e_at{};
  std::array<bool, kMostLayers> copies_e{};
  std::array<std::size_t, kMostOuter> coefficients_at{};
  std::size_t outer_partial_at = 0, ridden_partial_at = 0;
  const Dropout* dropout = nullptr;  // of a term alone: on x, or on what the pair adds to y
  std::int64_t mask_steps = 0;
  std::size_t masks_at = 0, turned_masks_at = 0;

  Layout(std::span<const Term> terms, const DeviceFacts& facts)
      : plan(plan_hopper(terms, facts)),
        w_is_kn(takes_tensor_map(terms[0].w)),
        m(terms[0].x.dim(0)),
        k(terms[0].w.dim(0)),
        rank(hopper_ranks(terms)) {
    k_blocks = (k + kTileK - 1) / kTileK;
    const int steps = plan.tile_n == 256   ? steps_of_unit<256>(plan.rank_class)
                      : plan.tile_n == 128 ? steps_of_unit<128>(plan.rank_class, drops_x(terms[0]))
                                           : steps_of_unit<64>(plan.rank_class);
    units = (k_blocks + steps - 1) / steps;
    if (plan.rank_class == 0) return;
    if (terms.size() == 1) {
      const OuterWay way = hopper_outer_way(terms[0], facts);
      makes_outer = way == OuterWay::kBeside, outer_after = way == OuterWay::kAfter;
    }
    if (makes_outer) outer = plan_hopper_outer(plan, k, outer_shapes(terms[0]));
    flags = row_flags() + 2 + outer.column_blocks * 2;
    const auto take = [&](std::int64_t of) {
      const std::size_t at = bytes;
      bytes += static_cast<std::size_t>(round_up(of, 256));
      return at;
    };
    flags_at = take(flags * 4);
    // S and E where they lie, if TMA can fetch and wgmma multiply them there.
    copies_s = terms.size() > 1 || plan.ragged > 0 ||
               !fetched_in_place(s_rows(terms[0]), terms[0].multiply);
    if (copies_s && plan.h_before && terms.size() == 1) {
      // Either way round: copied or not, as it lies.
      copies_s = !fetched_in_place(terms[0].pair.shrink, terms[0].multiply);
      s_is_kn = !copies_s || terms[0].pair.shrink.stride(1) == 1;
    }
    if (copies_s) s_at = take((s_is_kn ? k : all_s_rows()) * s_stride() * 2);
    for (std::size_t i = 0; i < terms.size(); ++i) {
      if (!terms[i].pair.present()) continue;
      const ConstTensorView rows = e_rows(terms[i]);
      copies_e[i] = !fetched_in_place(rows, terms[i].multiply);
      if (copies_e[i]) e_at[i] = take(rows.dim(0) * e_stride(terms[i]) * 2);
    }
    h_at = take(m * h_stride() * 2);
    const LowRank& pair = terms[0].pair;
    dropout = drops_x(terms[0]) ? pair.input_dropout : pair.output_dropout;
    if (dropout != nullptr) {
      mask_steps = round_up((masked_columns(terms[0]) + kTileK - 1) / kTileK, kMaskSteps);
      masks_at = take(mask_bytes());
      if (turns_masks(terms[0])) turned_masks_at = take(mask_bytes());
    }
    if (plan.h_parts > 1 || plan.h_every > 0) {
      partial_at = take(plan.items_in_parts() * 2 * kTileM * plan.rank_class * 4);
    }
    if (!makes_outer && !outer_after) return;
    for (std::size_t i = 0; i < terms[0].outer_products.size(); ++i) {
      if (terms[0].outer_products[i].coefficients.present() && !outer.rides && !outer.in_cluster) {
        coefficients_at[i] = take(m * h_stride() * 2);
      }
    }
    if (outer_after) return;
    outer_partial_at = take(outer.column_blocks * outer.segments * 2 * kBesidePartial * 4);
    if (outer.rides) ridden_partial_at = take(units * plan.tile_rows * 4 * kBesidePartial * 4);
  }

  static bool fetched_in_place(const ConstTensorView& rows, DType dtype) {
    return rows.dtype() == dtype && takes_tensor_map(rows);
  }
  // S as (rank, K); E as W lies: (N, rank) or (rank, N).
  static ConstTensorView s_rows(const Term& term) { return term.pair.shrink.transposed(); }
  // Of all layers; with ragged columns also W's of these, and as many as are fetched, for TMA is
  // slow where a box has rows that don't exist.
  std::int64_t ragged_at() const { return round_up(rank, 16); }
  std::int64_t all_s_rows() const { return plan.ragged > 0 ? plan.rank_class : rank; }
  ConstTensorView e_rows(const Term& term) const {
    return w_is_kn ? term.pair.expand : term.pair.expand.transposed();
  }
  static bool drops_x(const Term& term) { return term.pair.input_dropout != nullptr; }
  static std::int64_t masked_columns(const Term& term) {
    return drops_x(term) ? term.x.dim(1) : term.y.dim(1);
  }
  // Tiles begin with the pair and mask it.
  bool masks_first() const { return w_is_kn && dropout != nullptr && plan.h_before; }
  // The tiles' kernel has masks to apply: an x that is masked may have been used up before it.
  bool masks_tiles() const { return dropout != nullptr && (w_is_kn || !plan.h_before); }
  // For who multiplies columns.
  bool turns_masks(const Term& term) const {
    return makes_outer || (outer_after && masks_outer(term));
  }
  static bool masks_outer(const Term& term) {
    return std::any_of(term.outer_products.begin(), term.outer_products.end(),
                       [](const OuterProduct& each) { return each.dropout != nullptr; });
  }
  std::int64_t mask_bytes() const { return plan.tile_rows * 2 * mask_steps * kMaskBytes; }
  std::int64_t row_flags() const { return plan.tile_rows * 2 * kFlagsOfRowBlock; }
  std::int64_t s_stride() const { return round_up(s_is_kn ? rank : k, 8); }
  std::int64_t e_stride(const Term& term) const {
    return round_up(w_is_kn ? term.w.dim(1) : term.pair.rank(), 8);
  }
  std::int64_t h_stride() const { return round_up(rank, 8); }
};

// The columns of a matrix from one of them on.
ConstTensorView columns_from(const ConstTensorView& matrix, std::int64_t first) {
  const std::int64_t bytes =
      first * matrix.stride(1) * static_cast<std::int64_t>(size_of(matrix.dtype()));
  const std::array<std::int64_t, 2> shape{matrix.dim(0), matrix.dim(1) - first};
  const std::array<std::int64_t, 2> strides{matrix.stride(0), matrix.stride(1)};
  return {matrix.data_as<std::byte>() + bytes, matrix.dtype(), shape, strides, matrix.device()};
}

template <class T, int TileN, bool WIsKN, bool Outer = false, Drops Dropped = Drops::kNothing,
          bool Ragged = false>
void launch_product(const Call& call, const Maps& maps, const Arguments& args) {
  Launch how;
  how.grid = static_cast<unsigned>(args.clusters * 2);
  how.block = kThreads;
  how.cluster = 2;
  how.shared_bytes = Sizes<TileN>::kEnd;
  how.overlaps = true;
  // Blocks wait for each other: all of them run at once, or none.
  how.cooperative = args.rank_class > 0 && !args.h_before;
  call.launch(how, product<T, TileN, WIsKN, Outer, Dropped, Ragged>, maps, args);
}

// With dropout, x is masked where W lies as (N, K), as forward, and y where it lies as (K, N).
template <class T>
void launch_masked(const Call& call, const Layout& layout, const Maps& maps,
                   const Arguments& args) {
  if (layout.masks_first()) {
    if (layout.plan.tile_n == 128) {
      return launch_product<T, 128, true, false, Drops::kYFirst>(call, maps, args);
    }
    return launch_product<T, 256, true, false, Drops::kYFirst>(call, maps, args);
  }
  if (layout.plan.tile_n == 128) {
    if (layout.w_is_kn) return launch_product<T, 128, true, false, Drops::kY>(call, maps, args);
    return launch_product<T, 128, false, false, Drops::kX>(call, maps, args);
  }
  if (layout.makes_outer) return launch_product<T, 256, true, true, Drops::kY>(call, maps, args);
  if (layout.w_is_kn) return launch_product<T, 256, true, false, Drops::kY>(call, maps, args);
  return launch_product<T, 256, false, false, Drops::kX>(call, maps, args);
}

template <class T>
void launch(const Call& call, const Layout& layout, const Maps& maps, const Arguments& args) {
  if (layout.masks_tiles()) return launch_masked<T>(call, layout, maps, args);
  if (layout.plan.tile_n == 256) {
    if (layout.makes_outer) return launch_product<T, 256, true, true>(call, maps, args);
    if (layout.plan.ragged > 0) {
      return launch_product<T, 256, false, false, Drops::kNothing, true>(call, maps, args);
    }
    if (layout.w_is_kn) return launch_product<T, 256, true>(call, maps, args);
    return launch_product<T, 256, false>(call, maps, args);
  }
  if (layout.plan.tile_n == 128) {
    if (layout.makes_outer) return launch_product<T, 128, true, true>(call, maps, args);
    if (layout.w_is_kn) return launch_product<T, 128, true>(call, maps, args);
    return launch_product<T, 128, false>(call, maps, args);
  }
  if (layout.w_is_kn) return launch_product<T, 64, true>(call, maps, args);
  return launch_product<T, 64, false>(call, maps, args);
}

void launch_masks(const Call& call, const Layout& layout, const Term& term, std::byte* workspace) {
  MaskArguments args{};
  args.dropout = DropoutArgs(layout.dropout);
  args.row_eights = static_cast<std::uint64_t>(Layout::masked_columns(term)) / 8;
  args.pairs = static_cast<unsigned>(layout.mask_steps / 2);
  args.rows = reinterpret_cast<uint2*>(workspace + layout.masks_at);
  if (layout.turns_masks(term)) {
    args.columns = reinterpret_cast<std::uint32_t*>(workspace + layout.turned_masks_at);
  }
  Launch how;
  how.grid = static_cast<unsigned>(layout.plan.tile_rows * 2 * layout.mask_steps / 2);
  how.block = kMaskThreads;
  how.overlaps = true;
  call.launch(how, make_masks, args);
}

// The outer products that are left to a launch after the tiles, by their coefficients as the tiles'
// kernel, or the one before it, leaves them: s·h of its own, and copies of those that are given.
void launch_outer(const char* op, const Call& call, const Layout& layout, const Term& term,
                  float h_scaling, std::byte* workspace) {
  std::array<HopperOuterJob, kMostOuterJobs> jobs;
  const std::size_t count = term.outer_products.size();
  for (std::size_t i = 0; i < count; ++i) {
    const OuterProduct& from = term.outer_products[i];
    const bool given = from.coefficients.present();
    HopperOuterJob& job = jobs[i];
    job.matrix = from.matrix;
    job.coefficients = workspace + (given ? layout.coefficients_at[i] : layout.h_at);
    job.stride = layout.h_stride();
    // s·h has one in it.
    job.factor = given ? from.scaling : h_scaling != 0.0f ? from.scaling / h_scaling : 0.0f;
    job.out = from.out;
    if (from.dropout == nullptr) continue;
    job.factor *= from.dropout->scale();
    job.turned_masks = reinterpret_cast<const std::uint32_t*>(workspace + layout.turned_masks_at);
    job.mask_steps = layout.mask_steps;
  }
  run_hopper_outer(op, call, {jobs.data(), count}, true);
}

// What the kernels of a call are given, part by part.
struct Filling {
  const char* op;
  const Layout& layout;
  std::span<const Term> terms;
  std::byte* workspace;
  Maps maps{};
  Arguments args{};

  const HopperPlan& plan = layout.plan;
  const Term& term = terms[0];
  const DType dtype = term.multiply;
  std::byte* const h = workspace + layout.h_at;
  Copies& copies = args.copies;

  // Rows of W's boxes. A block fetches half of a tile's W: as (K, N) in boxes of 64 columns and
  // rows, or half the rows if there is one box; as (N, K) in one of half a tile.
  int w_rows() const {
    if (!layout.w_is_kn) return plan.tile_n / 2;
    return plan.tile_n == 64 ? kTileK / 2 : kTileK;
  }

  // What a product without a pair has.
  void put_tiles() {
    maps.x = tensor_map(op, term.x.data(), dtype, layout.m, layout.k, term.x.stride(0), kTileM);
    if (const int end = static_cast<int>(layout.m % kTileM); end > 0) {
      maps.x_end = tensor_map(op, term.x.data(), dtype, layout.m, layout.k, term.x.stride(0), end);
      args.end_bytes = end * kRowBytes;
    }
    args.m = static_cast<int>(layout.m);
    args.k_blocks = static_cast<int>(layout.k_blocks);
    args.tile_rows = static_cast<int>(plan.tile_rows);
    args.tile_cols = static_cast<int>(plan.tile_cols);
    args.clusters = plan.clusters;
    args.by_tile_rows = Divisor(plan.tile_rows);
    args.by_group_tiles = Divisor(kGroupRows * plan.tile_cols);
    args.by_last_rows = Divisor((plan.tile_rows - 1) % kGroupRows + 1);
    args.layer_count = static_cast<int>(terms.size());
    int first_column = 0, first_rank = 0;
    for (std::size_t i = 0; i < terms.size(); ++i) {
      const Term& of = terms[i];
      const ConstTensorView w = layout.w_is_kn ? of.w : of.w.transposed();
      maps.w[i] = tensor_map(op, w.data(), dtype, w.dim(0), w.dim(1), w.stride(0), w_rows());
      maps.y[i] = tensor_map(op, of.y.data(), dtype, layout.m, of.y.dim(1), of.y.stride(0), kHalfM);
      Layer& layer = args.layers[i];
      layer.first_column = first_column;
      layer.first_rank = first_rank;
      layer.n = static_cast<int>(of.y.dim(1));
      layer.rank = static_cast<int>(of.pair.rank());
      layer.scaling = of.pair.scaling;
      layer.h_out = of.pair.h.present() ? of.pair.h.mutable_data_as<float>() : nullptr;
      set_bias(layer, of.bias);
      first_column += (layer.n + plan.tile_n - 1) / plan.tile_n;
      first_rank += (layer.rank + 15) / 16 * 16;
    }
  }

  // h, its masks, who makes it and by which flags.
  void put_h() {
    args.rank = static_cast<int>(layout.rank);
    args.rank_class = plan.rank_class;
    args.h_stride = static_cast<int>(layout.h_stride());
    args.h_scale = 1.0f;
    if (layout.dropout != nullptr) {
      // Masks alone are left to apply where what they scale is multiplied by h.
      args.layers[0].scaling *= layout.dropout->scale();
      args.masks = reinterpret_cast<const uint2*>(workspace + layout.masks_at);
      args.turned_masks = reinterpret_cast<const uint2*>(workspace + layout.turned_masks_at);
      args.mask_steps = static_cast<int>(layout.mask_steps);
      if (Layout::drops_x(term)) args.h_scale = layout.dropout->scale();
    }
    args.light_clusters = plan.h_before ? 0 : plan.light_clusters;
    args.light_rows = static_cast<int>(plan.light_rows());
    args.light_parts = plan.light_parts;
    args.h_parts = plan.h_parts;
    args.by_light_parts = Divisor(plan.light_parts);
    args.by_h_parts = Divisor(plan.h_parts);
    args.h_every = plan.h_every;
    args.h_first = plan.h_first;
    args.units = static_cast<int>(layout.units);
    args.units_of_part = static_cast<int>((layout.units + plan.h_parts - 1) / plan.h_parts);
    args.h_before = plan.h_before;
    args.h = h;
    args.partial = reinterpret_cast<float*>(workspace + layout.partial_at);
    args.flags = reinterpret_cast<std::uint32_t*>(workspace + layout.flags_at);
    args.flag_count = static_cast<int>(layout.flags);
    args.all_ready = args.flags + layout.row_flags();
    args.copied = args.all_ready + 1;
  }

  static Copy copy(const ConstTensorView& rows, std::int64_t stride, void* to) {
    return {rows.data(),
            rows.stride(0),
            rows.stride(1),
            rows.dtype(),
            static_cast<int>(rows.dim(0)),
            static_cast<int>(rows.dim(1)),
            static_cast<int>(stride),
            to};
  }
  void add(const Copy& each) { copies.list[copies.count++] = each; }

  // A matrix where it lies, or the copy of it that the kernel will make.
  CUtensorMap place(const ConstTensorView& rows, bool copied, std::int64_t stride, std::size_t at,
                    int box_rows) {
    if (copied) add(copy(rows, stride, workspace + at));
    return tensor_map(op, copied ? workspace + at : rows.data(), dtype, rows.dim(0), rows.dim(1),
                      copied ? stride : rows.stride(0), box_rows);
  }

  // S, of a launch before the tiles' if there is one.
  void put_shrink(const HopperShrinkPlan& shrink) {
    // Half of the columns of h, or 64 of them, in a box.
    const int s_rows = plan.h_before ? shrink.s_box_rows(false) : plan.rank_class / 2;
    if (layout.s_is_kn) {
      maps.s = place(term.pair.shrink, layout.copies_s, layout.s_stride(), layout.s_at,
                     shrink.s_box_rows(true));
    } else if (terms.size() == 1 && plan.ragged == 0) {
      maps.s = place(Layout::s_rows(term), layout.copies_s, layout.s_stride(), layout.s_at, s_rows);
    } else {
      // All S below each other. What is between them makes columns of h that nobody reads.
      std::byte* const s = workspace + layout.s_at;
      maps.s = tensor_map(op, s, dtype, layout.all_s_rows(), layout.k, layout.s_stride(), s_rows);
      for (std::size_t i = 0; i < terms.size(); ++i) {
        if (!terms[i].pair.present()) continue;
        add(copy(Layout::s_rows(terms[i]), layout.s_stride(),
                 s + args.layers[i].first_rank * layout.s_stride() * 2));
      }
      if (plan.ragged > 0) put_ragged(s);
    }
    copies.of_s = copies.count;
  }

  // The ragged columns: W's below S, at `s`; E's are read where they lie.
  void put_ragged(std::byte* s) {
    const std::int64_t n0 = term.y.dim(1) - plan.ragged;
    add(copy(columns_from(term.w, n0).transposed(), layout.s_stride(),
             s + layout.ragged_at() * layout.s_stride() * 2));
    Ragged& ragged = args.ragged;
    ragged.count = plan.ragged;
    ragged.ranks = static_cast<int>(layout.ragged_at());
    ragged.first = static_cast<int>(n0);
    ragged.y = term.y.mutable_data_as<std::uint16_t>() + n0;
    ragged.y_stride = term.y.stride(0);
    if (term.pair.present()) {
      const ConstTensorView e = columns_from(term.pair.expand, n0);
      ragged.e = e.data();
      ragged.e_rank_stride = e.stride(0), ragged.e_col_stride = e.stride(1);
      ragged.e_dtype = e.dtype();
    }
  }

  // E, and h as the tiles fetch it.
  void put_expand() {
    const bool narrow_h = layout.dropout != nullptr && layout.w_is_kn && !plan.h_before;
    for (std::size_t i = 0; i < terms.size(); ++i) {
      if (!terms[i].pair.present()) continue;
      maps.e[i] = place(layout.e_rows(terms[i]), layout.copies_e[i], layout.e_stride(terms[i]),
                        layout.e_at[i], w_rows());
      maps.h[i] =
          tensor_map(op, h + args.layers[i].first_rank * 2, dtype, layout.m, args.layers[i].rank,
                     layout.h_stride(), kTileM, narrow_h ? kNarrow : kTileK);
    }
    copies.of_pair = copies.count;
  }

  // Outer products beside the tiles.
  void put_outer() {
    OuterArguments& outer = args.outer;
    outer.every = layout.outer.every;
    outer.first = layout.outer.first;
    outer.of_first_tile = static_cast<int>(layout.outer.of_first_tile);
    outer.of_tile = static_cast<int>(layout.outer.of_tile);
    outer.late = layout.outer.late;
    outer.apart = layout.outer.apart;
    outer.ahead = static_cast<int>(layout.outer.ahead);
    outer.in_cluster = layout.outer.in_cluster;
    outer.segments = static_cast<int>(layout.outer.segments);
    outer.partial = reinterpret_cast<float*>(workspace + layout.outer_partial_at);
    outer.arrived = args.copied + 1;
    outer.rides = layout.outer.rides;
    outer.ridden_partial = reinterpret_cast<float*>(workspace + layout.ridden_partial_at);
    int first_block = 0;
    for (std::size_t i = 0; i < term.outer_products.size(); ++i) {
      const std::size_t of = layout.outer.order[i];
      const OuterProduct& from = term.outer_products[of];
      const bool rides = outer.rides && from.coefficients.present();
      const int at_part = outer.count;
      OuterPart& part = rides ? outer.ridden : outer.parts[outer.count++];
      part.out = from.out.mutable_data_as<float>();
      part.rank_stride = from.out.stride(0);
      part.col_stride = from.out.stride(1);
      part.cols = static_cast<int>(from.matrix.dim(1));
      part.first_block = first_block;
      part.units = static_cast<int>(layout.outer.units[of]);
      part.workers = static_cast<int>(layout.outer.workers[of]);
      part.by_units = Divisor(std::max(part.units, 1));
      part.by_workers = Divisor(std::max(part.workers, 1));
      first_block += part.units / args.tile_rows;
      part.of_h = !from.coefficients.present();
      // s·h has one in it.
      part.factor = part.of_h ? from.scaling / args.layers[0].scaling : from.scaling;
      part.masked = from.dropout != nullptr;
      if (part.masked) part.factor *= from.dropout->scale();
      if (rides) {
        outer.coefficients = from.coefficients.data_as<float>();
        continue;
      }
      maps.matrix[at_part] = tensor_map(op, from.matrix.data(), dtype, layout.m, from.matrix.dim(1),
                                        from.matrix.stride(0), kTileM);
      if (layout.outer.in_cluster && !part.of_h) {
        outer.coefficients = from.coefficients.data_as<float>();
        continue;
      }
      std::byte* const at = part.of_h ? h : workspace + layout.coefficients_at[of];
      if (!part.of_h) add(copy(from.coefficients, layout.h_stride(), at));
      maps.coefficients[at_part] =
          tensor_map(op, at, dtype, layout.m, layout.rank, layout.h_stride(), kTileM, kNarrow);
    }
  }

  // For outer products after the tiles: copies of the coefficients that are given.
  void put_outer_after() {
    args.outer_follows = true;
    for (std::size_t i = 0; i < term.outer_products.size(); ++i) {
      const ConstTensorView& given = term.outer_products[i].coefficients;
      if (given.present()) {
        add(copy(given, layout.h_stride(), workspace + layout.coefficients_at[i]));
      }
    }
  }
};

// How h is made by a launch before the tiles'.
HopperShrinkPlan shrink_plan(const Layout& layout, const Term& term, const DeviceFacts& facts) {
  const HopperPlan& plan = layout.plan;
  const bool masked = layout.dropout != nullptr && Layout::drops_x(term);
  HopperShrinkRoom room;  // unless tiles begin with h
  if (!layout.masks_first()) room = {plan.light_clusters * 2, plan.tile_n};
  return plan_hopper_shrink(layout.m, layout.k, layout.rank, facts, room, masked);
}

template <class T>
void run_as(const char* op, const Call& call, std::span<const Term> terms, std::byte* workspace) {
  const Layout layout(terms, call.facts());
  const Term& term = terms[0];
  Filling filling{op, layout, terms, workspace};
  filling.put_tiles();
  if (layout.plan.rank_class == 0) return launch<T>(call, layout, filling.maps, filling.args);

  HopperShrinkPlan shrink;
  if (layout.plan.h_before) shrink = shrink_plan(layout, term, call.facts());
  filling.put_h();
  filling.put_shrink(shrink);
  filling.put_expand();
  if (layout.makes_outer) filling.put_outer();
  if (layout.outer_after) filling.put_outer_after();

  if (layout.dropout != nullptr) launch_masks(call, layout, term, workspace);
  if (layout.plan.h_before) {
    launch_hopper_shrink(call, shrink, term.multiply, layout.s_is_kn, filling.maps, filling.args);
  }
  launch<T>(call, layout, filling.maps, filling.args);
  if (layout.outer_after) {
    launch_outer(op, call, layout, term, filling.args.layers[0].scaling, workspace);
  }
}

}  // namespace

std::size_t hopper_workspace_bytes(std::span<const Term> terms, const DeviceFacts& facts) {
  return Layout(terms, facts).bytes;
}

void run_hopper(const char* op, const Call& call, std::span<const Term> terms,
                std::byte* workspace) {
  if (terms[0].multiply == DType::kFloat16) return run_as<__half>(op, call, terms, workspace);
  return run_as<__nv_bfloat16>(op, call, terms, workspace);
}

}  // namespace graft::cuda
