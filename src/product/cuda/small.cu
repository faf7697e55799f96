// A pair alone in one launch, for shapes where a launch takes longer than the arithmetic:
//
//     h = x·A        y = s·h·B
//
// A block has some rows of x, and nothing of another block's: h stays in its shared memory.
//
//            K                 rank                                  N
//     x [ rows of a block ] ·  A   ->  sums of each warp   ->   h   ·  B  ->  y
//
// Each warp has a part of K, then a part of N. All loads of a block are under way before the first
// is used: what such a kernel takes is the latency of one read of memory, two barriers, the launch,
// and its instructions, of which a warp makes one in some five cycles.
//
//     row    whole 512s, A and B dense    1 row a block, up to 132 rows; in float32 4 up to 528
//     half   half types                   16 rows at a time in the matrix units
//     parts  float32                      16 or 32 rows at a time there, a float in two parts
//
// Backward is the same with dy, B and A transposed, and one launch more for dA and dB
// (small_outer.cuh), or two.
//
// Bytes: x and y once, A and B once a block, from L2. The kernels wait for the kernels before them
// before they read anything (griddepcontrol.wait), so that they may be launched while those end;
// until then they ask for their operands to be brought to L2, which has no effect that can be seen.

#include <algorithm>

#include "backend/cuda/call.h"
#include "backend/cuda/integers.h"
#include "product/cuda/paths.h"
#include "product/cuda/small.cuh"
#include "product/cuda/small_half.cuh"
#include "product/cuda/small_long.cuh"
#include "product/cuda/small_outer.cuh"
#include "product/cuda/small_parts.cuh"
#include "product/cuda/small_row.cuh"

namespace graft::cuda {
namespace small {
namespace {

constexpr std::int64_t kMostRows = 16384, kMostFeatures = 4096;

// Rows of whole vectors of `bytes`, as loads and copies of that size take them.
bool is_vectors(const ConstTensorView& view, std::int64_t bytes) {
  const std::int64_t size = size_of(view.dtype()), vector = bytes / size;
  return view.stride(1) == 1 && view.stride(0) >= view.dim(1) && view.stride(0) % vector == 0 &&
         view.dim(1) % vector == 0 && reinterpret_cast<std::uintptr_t>(view.data()) % bytes == 0;
}

// Fours of ranks of a half type are 8 bytes.
bool ranks_are_vectors(const ConstTensorView& a) {
  return is_vectors(a, a.dtype() != DType::kFloat32 && a.dim(1) % 16 != 0 ? 8 : 16);
}

enum class Kind : std::uint8_t { kOneRow, kFourRows, kHalf, kParts16, kParts32 };

struct Plan {
  Kind kind;
  int rows;             // at a time
  unsigned threads;     // of a block
  unsigned row_blocks;  // that share the rows
  int block_cols;
  std::size_t shared_bytes;
};

std::size_t half_bytes(std::int64_t rank) {
  return rank <= 16 ? HalfShared<16>::kBytes : HalfShared<32>::kBytes;
}

template <class Shared>
std::size_t bytes_of(std::int64_t rank) {
  return static_cast<std::size_t>(Shared(static_cast<int>(rank)).size) * sizeof(float);
}

Plan plan_of(const Term& term, const DeviceFacts& facts) {
  const LowRank& pair = term.pair;
  const std::int64_t rows = term.x.dim(0), depth = term.x.dim(1), cols = term.y.dim(1);
  const std::int64_t rank = pair.rank(), processors = facts.multiprocessors;
  const bool floats = term.multiply == DType::kFloat32;
  const auto blocks = [&](std::int64_t at_once) { return divide_up(rows, at_once); };
  const auto is_whole = [&](const ConstTensorView& view) {
    return view.dtype() == term.multiply && view.stride(0) == view.dim(1) &&
           is_vectors(view, std::min<std::int64_t>(16, 4 * size_of(view.dtype())));
  };
  const bool whole = is_whole(pair.shrink) && is_whole(pair.expand) && depth % 512 == 0 &&
                     cols % 512 == 0 && (rank & (rank - 1)) == 0;
  const auto plan = [&](Kind kind, int at_once, std::int64_t most, std::size_t bytes) -> Plan {
    const int block_cols =
        static_cast<int>(round_up(divide_up(cols, divide_up(cols, kAtOnce)), kSlice));
    const bool in_parts = kind == Kind::kParts16 || kind == Kind::kParts32;
    return {kind,
            at_once,
            static_cast<unsigned>(in_parts ? parts::kThreads : kThreads),
            static_cast<unsigned>(std::min(blocks(at_once), most)),
            block_cols,
            bytes};
  };
  if (whole && rows <= processors) return plan(Kind::kOneRow, 1, rows, 0);
  if (whole && floats && rows <= 4 * processors) return plan(Kind::kFourRows, 4, rows, 0);
  if (!floats) return plan(Kind::kHalf, kHalfRows, 2 * processors, half_bytes(rank));
  const std::size_t most = bytes_of<parts::PartsShared<8>>(rank);
  if (facts.major >= 9 && blocks(32) > processors && most <= facts.shared_bytes) {
    return plan(Kind::kParts32, 32, processors, most);
  }
  return plan(Kind::kParts16, 16, processors, bytes_of<parts::PartsShared<4>>(rank));
}

// Of a kernel for one, two or four eights of ranks.
using Kernel = void (*)(SmallArgs);
Kernel of_rank(std::int64_t rank, Kernel eight, Kernel sixteen, Kernel all) {
  return rank <= 8 ? eight : rank <= 16 ? sixteen : all;
}

Kernel kernel_of(Kind kind, DType dtype, const SmallArgs& args) {
  const bool dense = args.a_vectors || args.b_vectors;
  const bool along = !dense && args.a_along && args.b_along;
  switch (kind) {
    case Kind::kOneRow:
      return with_type(dtype, [&]<class T>(std::type_identity<T>) {
        return of_rank(args.rank, small_row<T, 8, 1>, small_row<T, 16, 1>, small_row<T, 32, 1>);
      });
    case Kind::kFourRows:
      return of_rank(args.rank, small_row<float, 8, 4>, small_row<float, 16, 4>,
                     small_row<float, 32, 4>);
    case Kind::kHalf:
      return with_half(dtype, [&]<class T>(std::type_identity<T>) -> Kernel {
        if (along) return args.rank <= 16 ? small_half<T, 16, true> : small_half<T, 32, true>;
        return args.rank <= 16 ? small_half<T, 16, false> : small_half<T, 32, false>;
      });
    case Kind::kParts16:
      return parts::small_parts<4>;
    case Kind::kParts32:
      return parts::small_parts<8>;
  }
  return nullptr;
}

// How the rows of outer products are split: over blocks of a cluster, which add up their sums, and
// where that leaves most of the device idle, over several clusters.
struct OuterPlan {
  static constexpr int kTurn = kTurnRows * kRowWarps, kCluster = 8;

  int blocks[2] = {}, cluster = 1, splits = 1, split_rows = 0;

  bool is_long;  // many rows in float32
  int cols;      // of a block

  OuterPlan(const Term& term, const DeviceFacts& facts)
      : is_long(term.x.dtype() == DType::kFloat32 && term.x.dim(0) > 4096),
        cols(is_long ? kLongCols : kOuterCols) {
    std::int64_t all = 0, index = 0;
    for (const OuterProduct& outer : term.outer_products) {
      blocks[index] = static_cast<int>((outer.out.dim(1) + cols - 1) / cols);
      all += blocks[index++];
    }
    if (all == 0) return;
    if (is_long) {
      const std::int64_t rows = term.x.dim(0),
                         ranks = (term.pair.rank() + kLongRanks - 1) / kLongRanks;
      const std::int64_t parts =
          std::clamp<std::int64_t>(facts.multiprocessors / (all * ranks), 1, (rows + 31) / 32);
      split_rows = static_cast<int>((rows + parts - 1) / parts);
      splits = static_cast<int>((rows + split_rows - 1) / split_rows);
      return;
    }
    const std::int64_t turns = (term.x.dim(0) + kTurn - 1) / kTurn;
    std::int64_t parts = std::clamp<std::int64_t>(facts.multiprocessors / all, 1, turns);
    if (facts.major == 9 && facts.clusters_of[kCluster] > 0) {
      while (cluster < kCluster && cluster < turns) cluster *= 2;
      splits = static_cast<int>(std::max<std::int64_t>(1, parts / cluster));
      parts = cluster * splits;
    } else {
      splits = static_cast<int>(parts);
    }
    split_rows = static_cast<int>((turns + parts - 1) / parts) * kTurn;
  }
  std::size_t part_bytes(std::int64_t rank) const {
    if (splits == 1) return 0;
    return static_cast<std::size_t>(splits * rank * (blocks[0] + blocks[1]) * cols) * sizeof(float);
  }
};

bool outer_fits(const OuterProduct& outer, const Term& term) {
  const ConstTensorView& c = outer.coefficients;
  const bool coefficients =
      !c.present() || (c.dtype() == DType::kFloat32 && c.dim(1) == term.pair.rank() &&
                       c.stride(0) == c.dim(1) && is_vectors(c, 16));
  return outer.matrix.present() && !outer.dropout && coefficients &&
         outer.matrix.dtype() == term.x.dtype() && outer.matrix.dim(0) == term.x.dim(0) &&
         outer.matrix.dim(1) <= kMostFeatures && outer.matrix.dim(1) >= 8 &&
         is_vectors(outer.matrix, 16);
}

// Whether so much is read over and over that the path after this one is faster, for all its
// launches: a block for each 512 columns reads its rows of x, and of more than 512 features A too
// for every 16 rows. All of that comes from L2, which bounds the time.
//
// Where both paths were measured on an H200, the other one won by a tenth or more from here on: at
// 40M elements of x that are read, with 8M (features by features), and an A of 64 KB. An A of
// float32, which half types round by way of registers, costs more: less than half of each is
// enough. True float32 is slower on its way elsewhere, above all where y is read; the launch for dA
// and dB is good at any size, so that with it the rest has to lose twice as much.
bool reads_too_often(const Term& term) {
  constexpr std::int64_t kMillion = std::int64_t{1} << 20;
  const std::int64_t depth = term.x.dim(1), cols = term.y.dim(1);
  const std::int64_t reads = term.x.dim(0) * depth * divide_up(cols, kAtOnce);
  const std::int64_t weight = depth * cols, of_a = depth * term.pair.rank();
  const bool outer = !term.outer_products.empty();
  if (term.multiply == DType::kFloat32) {
    return !outer && !term.accumulate && reads >= 40 * kMillion && weight >= 16 * kMillion &&
           of_a >= 32 * 1024;
  }
  if (term.pair.shrink.dtype() == DType::kFloat32) {
    return reads >= (outer ? 32 : 16) * kMillion && weight >= 4 * kMillion && of_a >= 16 * 1024;
  }
  return reads >= (outer ? 80 : 40) * kMillion && weight >= 8 * kMillion && of_a >= 32 * 1024;
}

bool asks_for_h(const OuterProduct& outer) { return !outer.coefficients.present(); }

// An h that only outer products ask for.
std::size_t h_bytes(const Term& term) {
  const auto& outers = term.outer_products;
  if (term.pair.h.present() || std::none_of(outers.begin(), outers.end(), asks_for_h)) return 0;
  return (static_cast<std::size_t>(term.x.dim(0) * term.pair.rank()) * sizeof(float) + 255) / 256 *
         256;
}

void run_outer(const Call& call, const Term& term, const float* h, std::byte* workspace) {
  const OuterPlan plan(term, call.facts());
  OuterArgs args{};
  args.rows = static_cast<int>(term.x.dim(0)), args.rank = static_cast<int>(term.pair.rank());
  args.dtype = term.x.dtype(), args.block_cols = plan.cols;
  args.split_rows = plan.split_rows, args.splits = plan.splits, args.cluster = plan.cluster;
  args.parts = plan.splits == 1 ? nullptr : reinterpret_cast<float*>(workspace);
  const bool halves = term.x.dtype() != DType::kFloat32;
  for (std::size_t i = 0; i < term.outer_products.size(); ++i) {
    const OuterProduct& outer = term.outer_products[i];
    OuterSide& side = args.sides[i];
    side.matrix = outer.matrix.data(), side.stride = outer.matrix.stride(0);
    side.coefficients = outer.coefficients.present() ? outer.coefficients.data_as<float>() : h;
    side.out = outer.out.mutable_data_as<float>();
    side.out_row = outer.out.stride(0), side.out_col = outer.out.stride(1);
    side.cols = static_cast<int>(outer.out.dim(1)), side.blocks = plan.blocks[i];
    // What is rounded to a half type is s·c, which may fit it where c does not.
    side.before = halves ? outer.scaling : 1, side.after = halves ? 1 : outer.scaling;
  }
  const auto blocks = static_cast<unsigned>(plan.blocks[0] + plan.blocks[1]);
  if (plan.is_long) {
    const auto splits = static_cast<unsigned>(plan.splits),
               ranks = static_cast<unsigned>(args.rank);
    const dim3 grid{blocks, splits, (ranks + kLongRanks - 1) / kLongRanks};
    call.launch({.grid = grid, .block = kThreads, .overlaps = true}, long_outer, args);
  } else {
    const std::size_t shared_bytes = with_type(args.dtype, [&]<class T>(std::type_identity<T>) {
      return OuterShared<T>::kBytes + (plan.cluster > 1 ? OuterShared<T>::kLetters : 0);
    });
    call.launch({.grid = {static_cast<unsigned>(plan.splits * plan.cluster), blocks, 1},
                 .block = kThreads,
                 .shared_bytes = shared_bytes,
                 .cluster = plan.cluster,
                 .overlaps = true},
                halves ? small_half_outer : small_outer, args);
  }
  if (plan.splits == 1) return;
  const unsigned sums = static_cast<unsigned>(args.rank * plan.cols) * blocks;
  call.launch({.grid = (sums + kThreads - 1) / kThreads, .block = kThreads, .overlaps = true},
              sum_outer, args);
}

}  // namespace
}  // namespace small

bool fits_small(const Term& term, const DeviceFacts& facts) {
  using namespace small;
  const LowRank& pair = term.pair;
  if (term.w.present() || term.bias.present() || !pair.present() || !term.y.present()) return false;
  if (pair.input_dropout || pair.output_dropout || term.outer_products.size() > 2) return false;
  const std::int64_t rows = term.x.dim(0), depth = term.x.dim(1), cols = term.y.dim(1);
  if (rows < 1 || rows > kMostRows || pair.rank() % 4 != 0 || pair.rank() > kMostRank) return false;
  if (depth < 8 || depth > kMostFeatures || depth % 8 != 0) return false;
  if (cols < 8 || cols > kMostFeatures || cols % 8 != 0) return false;
  const DType type = term.x.dtype(), adapter = pair.shrink.dtype();
  return term.multiply == type && term.y.dtype() == type && pair.expand.dtype() == adapter &&
         (adapter == type || adapter == DType::kFloat32) && is_vectors(term.x, 16) &&
         is_vectors(term.y, 16) && !reads_too_often(term) &&
         plan_of(term, facts).shared_bytes <= facts.shared_bytes &&
         std::all_of(term.outer_products.begin(), term.outer_products.end(),
                     [&](const OuterProduct& outer) { return outer_fits(outer, term); });
}

std::size_t small_bytes(const Term& term, const DeviceFacts& facts) {
  using namespace small;
  if (term.outer_products.empty()) return 0;
  return h_bytes(term) + OuterPlan(term, facts).part_bytes(term.pair.rank());
}

void run_small(const Call& call, const Term& term, std::byte* workspace) {
  using namespace small;
  const LowRank& pair = term.pair;
  const Plan plan = plan_of(term, call.facts());
  SmallArgs args{};
  args.x = term.x.data(), args.a = pair.shrink.data(), args.b = pair.expand.data();
  args.y = term.y.mutable_data();
  const std::size_t own_h = h_bytes(term);
  args.h = own_h > 0          ? reinterpret_cast<float*>(workspace)
           : pair.h.present() ? pair.h.mutable_data_as<float>()
                              : nullptr;
  args.rows = term.x.dim(0), args.x_stride = term.x.stride(0), args.y_stride = term.y.stride(0);
  args.a_row = pair.shrink.stride(0), args.a_col = pair.shrink.stride(1);
  args.b_row = pair.expand.stride(0), args.b_col = pair.expand.stride(1);
  args.depth = static_cast<int>(term.x.dim(1)), args.cols = static_cast<int>(term.y.dim(1));
  args.rank = static_cast<int>(pair.rank());
  args.block_cols = plan.block_cols;
  args.scaling = pair.scaling;
  args.accumulate = term.accumulate;
  args.a_vectors = ranks_are_vectors(pair.shrink), args.b_vectors = is_vectors(pair.expand, 16);
  const std::int64_t four = 4 * static_cast<std::int64_t>(size_of(pair.shrink.dtype()));
  args.a_along = is_vectors(pair.shrink.transposed(), 16);
  args.b_along = is_vectors(pair.expand.transposed(), four);
  args.float_adapter = pair.shrink.dtype() == DType::kFloat32;
  const bool rows_only = plan.kind == Kind::kOneRow || plan.kind == Kind::kFourRows;
  const unsigned parts =
      rows_only ? 1u : static_cast<unsigned>((args.cols + plan.block_cols - 1) / plan.block_cols);
  const Launch how{.grid = {plan.row_blocks, parts, 1},
                   .block = plan.threads,
                   .shared_bytes = plan.shared_bytes,
                   .overlaps = true};
  call.launch(how, kernel_of(plan.kind, term.multiply, args), args);
  if (!term.outer_products.empty()) run_outer(call, term, args.h, workspace + own_h);
}

}  // namespace graft::cuda
