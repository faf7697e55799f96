#include <algorithm>
#include <span>

#include "backend/cuda/integers.h"
#include "product/cuda/ampere.h"
#include "product/cuda/ampere_outer.cuh"
#include "product/cuda/ampere_shrink.cuh"
#include "product/cuda/ampere_tile.cuh"

namespace graft::cuda {

using namespace ampere;

namespace {

// Blocks of a launch over so many elements, 256 at a time.
unsigned blocks_for(std::int64_t elements, std::int64_t most) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(divide_up(elements, 256), 1, most));
}

// What a call's workspace is cut into; null where a part is not needed.
struct Workspace {
  std::byte* shrink = nullptr;
  std::byte* expand = nullptr;
  std::byte* scaled = nullptr;
  std::byte* h = nullptr;
  std::byte* ready = nullptr;
  std::byte* parts = nullptr;
  std::byte* shares = nullptr;
  std::int64_t share_floats = 0;  // of each of two outer products
  std::size_t bytes = 0;
};

struct Sizes {
  std::int64_t m = 0, n = 0, k = 0, padded_k = 0, padded_n = 0;
  int rank = 0, ranks = 0;

  explicit Sizes(const AmpereShape& shape)
      : m(shape.m),
        n(shape.n),
        k(shape.k),
        padded_k(round_up(shape.k, kShrinkTurn)),
        padded_n(round_up(shape.n, 8)),
        rank(shape.rank),
        ranks(static_cast<int>(round_up(shape.rank, 16))) {}
};

// Flags of h, where it is made beside tiles.
std::int64_t flags_of(std::int64_t m) { return divide_up(m, kTileRows); }

bool needs_own_h(const Term& term) {
  if (term.pair.h.present()) return false;
  return std::any_of(term.outer_products.begin(), term.outer_products.end(),
                     [](const OuterProduct& each) { return !each.coefficients.present(); });
}

int rank_of(const OuterProduct& each) { return static_cast<int>(each.out.dim(0)); }

std::int64_t blocks_of(const OuterProduct& each) {
  return divide_up(each.matrix.dim(1), kOuterCols) * divide_up(rank_of(each), kOuterRanks);
}

AmpereShares cut_of(const Term& term, const DeviceFacts& facts) {
  std::int64_t blocks = 0;
  for (const OuterProduct& each : term.outer_products) blocks += blocks_of(each);
  return plan_ampere_outer(term.x.dim(0), blocks, facts);
}

// Whether tiles make h, K cut into parts, where it doesn't ride with those of y: they read x once
// for all ranks. For 16 ranks of many rows, and for dropout, the shrink's own kernel is better.
bool shrinks_by_tiles(const AmpereShape& shape, const AmperePlan& plan) {
  return shape.rank > 0 && plan.shrink_blocks == 0 && !shape.dropped &&
         (shape.rank > 16 || shape.m < 2048);
}

Workspace lay_out(const Term& term, const DeviceFacts& facts, std::byte* start) {
  const AmpereShape shape = AmpereShape::of(term);
  const AmperePlan plan = plan_ampere(shape, facts);
  const Sizes sizes(shape);
  Workspace result;
  const auto take = [&](std::int64_t bytes) {
    std::byte* at = start == nullptr ? nullptr : start + result.bytes;
    result.bytes += static_cast<std::size_t>(round_up(bytes, 256));
    return at;
  };
  if (sizes.rank > 0) {
    result.shrink = take(sizes.ranks * sizes.padded_k * 2);
    if (plan.tiles > 0) {
      result.expand = take(sizes.ranks * sizes.padded_n * 2);
      result.scaled = take(sizes.m * sizes.ranks * 2);
    }
    if (needs_own_h(term)) result.h = take(sizes.m * sizes.rank * 4);
    if (plan.shrink_blocks > 0) result.ready = take(flags_of(sizes.m) * 4);
  }
  std::int64_t parts = plan.splits > 1 ? plan.splits * sizes.m * sizes.n : 0;
  if (shrinks_by_tiles(shape, plan)) {  // h's are summed before y's are made
    const AmperePlan of_h = plan_ampere(AmpereShape::of_shrink(term), facts);
    parts = std::max(parts, of_h.splits * sizes.m * sizes.ranks);
  }
  if (parts > 0) result.parts = take(parts * 4);
  if (!term.outer_products.empty()) {  // two at a time
    const std::int64_t count = cut_of(term, facts).count;
    std::int64_t sums = 0;
    for (const OuterProduct& each : term.outer_products) {
      sums = std::max(sums, round_up(rank_of(each), 16) * each.matrix.dim(1));
    }
    result.share_floats = round_up(count * sums, 64);
    result.shares = take(2 * result.share_floats * 4);
  }
  return result;
}

// Kernels of a term that are launched one after another. On sm_90 and later each may start while
// the one before it ends: all of them wait before they touch memory.
struct Launches {
  const Call& call;
  bool overlaps;

  template <class Args>
  void operator()(dim3 grid, std::size_t shared_bytes, void (*kernel)(Args),
                  const Args& args) const {
    Launch how;
    how.grid = grid;
    how.block = 256;
    how.shared_bytes = shared_bytes;
    how.overlaps = overlaps;
    call.launch(how, kernel, args);
  }
};

template <class T>
void (*tile_kernel(Way way, int tile_n))(TileArgs) {
  using Wide = TileShape<256, 64, 3>;
  using Narrow = TileShape<128, 64, 3>;
  if (way == Way::kAny) return tiles<T, Narrow, Way::kAny>;
  if (tile_n == 256) {
    return way == Way::kAlongK ? tiles<T, Wide, Way::kAlongK> : tiles<T, Wide, Way::kAlongN>;
  }
  return way == Way::kAlongK ? tiles<T, Narrow, Way::kAlongK> : tiles<T, Narrow, Way::kAlongN>;
}

// Launches tiles: each multiprocessor makes one after another.
template <class T>
void launch_tiles(const Launches& launch, const AmperePlan& plan, Way way, TileArgs& args) {
  args.splits = plan.splits;
  args.split_depth = plan.split_depth;
  args.tiles = static_cast<unsigned>(plan.tiles * plan.splits);
  launch(std::min(args.tiles, static_cast<unsigned>(launch.call.facts().multiprocessors)) +
             args.shrink_blocks,
         plan.shared_bytes, tile_kernel<T>(way, plan.tile_n), args);
}

Way way_of(const AmpereShape& shape, const Operand& w) {
  return shape.elements ? Way::kAny : w.copies ? Way::kAlongK : Way::kAlongN;
}

template <class T>
void shrink_by_tiles(const Launches& launch, const Term& term, const ShrinkArgs& shrink,
                     float* parts, const DeviceFacts& facts) {
  const AmperePlan plan = plan_ampere(AmpereShape::of_shrink(term), facts);
  TileArgs args;
  args.x = shrink.x;
  args.w.data = shrink.packed;
  args.w.outer = shrink.padded_k, args.w.inner = 1;
  args.w.dtype = term.multiply;
  args.w.copies = true;  // zeros after whole eights
  args.m = shrink.m, args.n = shrink.ranks, args.k = shrink.k;
  args.y = parts;
  args.y_stride = shrink.ranks;
  args.y_float = args.y_vectors = true;
  args.split_stride = shrink.m * shrink.ranks;
  launch_tiles<T>(launch, plan, shrink.x.copies ? Way::kAlongK : Way::kAny, args);
  FinishArgs finish_args;
  finish_args.parts = parts;
  finish_args.m = shrink.m;
  finish_args.dtype = term.multiply;
  finish_args.count = plan.splits;
  finish_args.rank = shrink.rank, finish_args.ranks = shrink.ranks;
  finish_args.scaling = shrink.scaling;
  finish_args.h = shrink.h, finish_args.scaled = shrink.scaled;
  launch(blocks_for(shrink.m * shrink.ranks, 4 * facts.multiprocessors), 0, finish<256>,
         finish_args);
}

// Adds up the parts of y.
void finish_parts(const Launches& launch, const Term& term, const AmpereShape& shape,
                  const AmperePlan& plan, const Workspace& workspace) {
  FinishRowsArgs args;
  args.parts = reinterpret_cast<const float*>(workspace.parts);
  args.count = plan.splits;
  args.m = shape.m, args.n = shape.n;
  args.dtype = term.multiply;
  set_output(args, term);
  launch(dim3(static_cast<unsigned>(divide_up(shape.n, 256)),
              static_cast<unsigned>(divide_up(shape.m, kFinishRows))),
         0, finish_rows<256>, args);
}

// One or two outer products.
template <class T>
void run_outer(const Launches& launch, const Term& term, std::span<const OuterProduct> products,
               const AmpereShares& cut, const float* own_h, const Workspace& workspace) {
  OuterArgs args;
  args.m = term.x.dim(0);
  args.share_rows = cut.rows;
  args.shares = static_cast<unsigned>(cut.count);
  SumArgs sum;
  sum.count = cut.count;
  std::int64_t outputs = 0;
  for (std::size_t i = 0; i < products.size(); ++i) {
    const OuterProduct& each = products[i];
    OuterJob& job = args.jobs[i];
    job.coefficients = each.coefficients.present() ? each.coefficients.data_as<float>() : own_h;
    job.matrix = operand_of(each.matrix, 0, 1, term.multiply);
    job.cols = each.matrix.dim(1);
    job.rank = rank_of(each), job.ranks = static_cast<int>(round_up(job.rank, 16));
    job.scaling = each.scaling;
    job.dropout = DropoutArgs(each.dropout);
    job.shares = reinterpret_cast<float*>(workspace.shares) +
                 static_cast<std::int64_t>(i) * workspace.share_floats;
    job.blocks = static_cast<unsigned>(blocks_of(each) * cut.count);
    SumJob& out = sum.jobs[i];
    out.shares = job.shares;
    out.cols = job.cols;
    out.rank = job.rank, out.ranks = job.ranks;
    out.dropout = job.dropout;
    out.out = each.out.mutable_data_as<float>();
    out.rank_stride = each.out.stride(0), out.col_stride = each.out.stride(1);
    outputs += job.rank * job.cols;
  }
  if (outputs == 0) return;
  if (const unsigned blocks = args.jobs[0].blocks + args.jobs[1].blocks; blocks > 0) {
    launch(blocks, 0, outer<T>, args);
  }
  launch(static_cast<unsigned>(divide_up(outputs, 256)), 0, sum_shares<256>, sum);
}

// h, then tiles that go on over the pair.
template <class T>
void run_tiles(const Launches& launch, const Term& term, const AmpereShape& shape,
               const AmperePlan& plan, const Workspace& workspace, float* h) {
  const Sizes sizes(shape);
  const LowRank& pair = term.pair;
  const bool tiled = plan.tiles > 0;
  ShrinkArgs shrink_args;
  const bool shrinks = sizes.rank > 0 && sizes.m > 0 && (tiled || h != nullptr);
  if (shrinks) {
    PrepareArgs prepare_args;
    prepare_args.shrink = operand_of(pair.shrink, 1, 0, term.multiply);
    prepare_args.k = sizes.k, prepare_args.padded_k = sizes.padded_k;
    prepare_args.n = sizes.n;
    prepare_args.dtype = term.multiply;
    prepare_args.rank = sizes.rank, prepare_args.ranks = sizes.ranks;
    prepare_args.packed_shrink = workspace.shrink;
    std::int64_t work = sizes.ranks * sizes.padded_k;
    if (tiled) {
      prepare_args.expand = operand_of(pair.expand, 1, 0, term.multiply);
      prepare_args.packed_expand = workspace.expand;
      prepare_args.expand_along_n = false;
      prepare_args.padded_n = sizes.n;
    }
    if (tiled && shape.base &&
        way_of(shape, operand_of(term.w, 1, 0, term.multiply)) == Way::kAlongN) {
      prepare_args.expand_along_n = true;
      prepare_args.padded_n = sizes.padded_n;
    }
    if (plan.shrink_blocks > 0) {
      prepare_args.zeroed = reinterpret_cast<unsigned*>(workspace.ready);
      prepare_args.zeros = flags_of(sizes.m);
    }
    work = std::max(work, sizes.ranks * prepare_args.padded_n);
    launch(blocks_for(work, 4 * launch.call.facts().multiprocessors), 0, prepare<256>,
           prepare_args);

    shrink_args.x = operand_of(term.x, 0, 1, term.multiply);
    shrink_args.m = sizes.m, shrink_args.k = sizes.k;
    shrink_args.packed = workspace.shrink;
    shrink_args.padded_k = sizes.padded_k;
    shrink_args.rank = sizes.rank, shrink_args.ranks = sizes.ranks;
    shrink_args.scaling = pair.scaling;
    shrink_args.dropout = DropoutArgs(pair.input_dropout);
    shrink_args.h = h;
    shrink_args.scaled = workspace.scaled;
    if (shrinks_by_tiles(shape, plan)) {
      shrink_by_tiles<T>(launch, term, shrink_args, reinterpret_cast<float*>(workspace.parts),
                         launch.call.facts());
    } else if (plan.shrink_blocks == 0) {
      const std::int64_t blocks = std::min<std::int64_t>(divide_up(sizes.m, kShrinkRows), 1 << 20);
      launch(static_cast<unsigned>(blocks), kShrinkSharedBytes, shrink<T>, shrink_args);
    }
  }
  if (tiled) {
    TileArgs args;
    args.m = sizes.m, args.n = sizes.n;
    Way way = Way::kAlongK;
    if (shape.base) {
      args.k = sizes.k;
      args.x = operand_of(term.x, 0, 1, term.multiply);
      args.w = operand_of(term.w, 1, 0, term.multiply);
      way = way_of(shape, args.w);
    }
    if (shrinks) {
      args.scaled = workspace.scaled;
      args.expand = workspace.expand;
      args.expand_stride = way == Way::kAlongN ? sizes.padded_n : sizes.ranks;
      args.ranks = sizes.ranks;
      args.mask = DropoutArgs(pair.output_dropout);
    }
    set_output(args, term);
    if (plan.splits > 1) {
      args.y = workspace.parts;
      args.y_stride = sizes.n;
      args.y_float = true;
      args.accumulate = false;
      args.bias = nullptr;
      args.split_stride = sizes.m * sizes.n;
    }
    args.y_vectors = (args.y_stride % (args.y_float ? 4 : 8) == 0 || sizes.m == 1) &&
                     args.split_stride % 4 == 0 &&
                     reinterpret_cast<std::uintptr_t>(args.y) % 16 == 0;
    if (plan.shrink_blocks > 0) {
      args.shrink_blocks = plan.shrink_blocks;
      args.shrink = shrink_args;
      args.ready = reinterpret_cast<unsigned*>(workspace.ready);
    }
    launch_tiles<T>(launch, plan, way, args);
    if (plan.splits > 1) {
      finish_parts(launch, term, shape, plan, workspace);
    }
  }
}

template <class T>
void run_typed(const Call& call, const Term& term, std::byte* start) {
  const DeviceFacts& facts = call.facts();
  const AmpereShape shape = AmpereShape::of(term);
  const AmperePlan plan = plan_ampere(shape, facts);
  const Workspace workspace = lay_out(term, facts, start);
  const Launches launch{call, facts.major >= 9};
  const LowRank& pair = term.pair;
  float* h =
      pair.h.present() ? pair.h.mutable_data_as<float>() : reinterpret_cast<float*>(workspace.h);

  run_tiles<T>(launch, term, shape, plan, workspace, h);
  const std::span<const OuterProduct> products(term.outer_products);
  for (std::size_t i = 0; i < products.size(); i += 2) {
    run_outer<T>(launch, term, products.subspan(i, std::min<std::size_t>(2, products.size() - i)),
                 cut_of(term, facts), h, workspace);
  }
}

}  // namespace

std::size_t ampere_workspace(const Term& term, const DeviceFacts& facts) {
  return lay_out(term, facts, nullptr).bytes;
}

void run_ampere(const Call& call, const Term& term, std::byte* workspace) {
  if (term.multiply == DType::kFloat16) {
    run_typed<__half>(call, term, workspace);
  } else {
    run_typed<__nv_bfloat16>(call, term, workspace);
  }
}

}  // namespace graft::cuda
