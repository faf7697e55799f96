// Plans and launches of the general path: which tiles make a term, and how many share a depth.
//
//     h      (M, rank)    = drop(x) · S              narrow tiles, depth K
//     y      (M, N)       = [s·h | x]·[E ; W] + bias  tiles, depth rank + K
//     outᵀ   (cols, rank) = drop(matrix)ᵀ · c         narrow tiles, depth M
//
// Where there are too few tiles for the device, several blocks share one, each with a part of its
// depth: partial sums go to the workspace, and a kernel adds them up in order. What the parts are
// depends on the shapes and the device alone, so results are the same bits every time.

#include <algorithm>

#include "backend/cuda/call.h"
#include "backend/cuda/integers.h"
#include "product/cuda/general.cuh"
#include "product/cuda/paths.h"

namespace graft::cuda {
namespace {

constexpr int kWideTile = 128, kWideDepth = 16;
constexpr int kSmallTile = 64, kSmallDepth = 32;
constexpr int kNarrowRows = 128, kNarrowCols = 32, kNarrowDepth = 32;
constexpr std::int64_t kLeastSplit = 256;  // depths that are worth a block and a partial sum
constexpr int kMostSplits = 64;

// How a product is cut up.
struct Cut {
  std::int64_t tiles = 0;
  int splits = 1;
  std::int64_t split_depth = 0;

  // `blocks` that fill the device once.
  Cut(std::int64_t rows, std::int64_t cols, std::int64_t depth, int tile_rows, int tile_cols,
      int step, std::int64_t blocks)
      : tiles(divide_up(rows, tile_rows) * divide_up(cols, tile_cols)) {
    std::int64_t parts = 1;
    if (tiles > 0) {
      parts =
          std::clamp<std::int64_t>(std::min(blocks / tiles, depth / kLeastSplit), 1, kMostSplits);
    }
    split_depth = std::max<std::int64_t>(round_up(divide_up(depth, parts), step), step);
    splits = static_cast<int>(std::max<std::int64_t>(1, divide_up(depth, split_depth)));
  }

  std::size_t partial_bytes(std::int64_t rows, std::int64_t cols) const {
    if (splits == 1) return 0;
    return static_cast<std::size_t>(splits * rows * cols) * sizeof(float);
  }
  dim3 grid() const { return {static_cast<unsigned>(tiles), static_cast<unsigned>(splits), 1}; }
};

Cut narrow_cut(std::int64_t rows, std::int64_t cols, std::int64_t depth, const DeviceFacts& facts) {
  return {rows, cols, depth, kNarrowRows, kNarrowCols, kNarrowDepth, 2 * facts.multiprocessors};
}

std::int64_t base_depth(const Term& term) { return term.w.present() ? term.x.dim(1) : 0; }

// Large tiles, unless most of one would be empty, or too few blocks would have one.
int tile_size(const Term& term, const DeviceFacts& facts) {
  const std::int64_t rows = term.y.dim(0), cols = term.y.dim(1);
  const std::int64_t parts =
      std::clamp<std::int64_t>(base_depth(term) / kLeastSplit, 1, kMostSplits);
  const std::int64_t blocks = divide_up(rows, kWideTile) * divide_up(cols, kWideTile) * parts;
  const bool large = std::min(rows, cols) > kSmallTile && 2 * blocks > facts.multiprocessors;
  return large ? kWideTile : kSmallTile;
}

Cut term_cut(const Term& term, const DeviceFacts& facts) {
  const int size = tile_size(term, facts);
  const bool wide = size == kWideTile;
  const int step = wide ? kWideDepth : kSmallDepth, blocks = (wide ? 1 : 2) * facts.multiprocessors;
  return {term.y.dim(0), term.y.dim(1), base_depth(term), size, size, step, blocks};
}

bool makes_y(const Term& term) { return term.y.present() && term.y.size() > 0; }

bool makes_h(const Term& term) {
  if (!term.pair.present() || term.x.dim(0) == 0) return false;
  if (makes_y(term) || term.pair.h.present()) return true;
  return std::any_of(term.outer_products.begin(), term.outer_products.end(),
                     [](const OuterProduct& outer) { return !outer.coefficients.present(); });
}

std::size_t h_bytes(const Term& term) {
  if (!makes_h(term) || term.pair.h.present()) return 0;
  const auto bytes = static_cast<std::size_t>(term.x.dim(0) * term.pair.rank()) * sizeof(float);
  return (bytes + 255) / 256 * 256;
}

Cut outer_cut(const OuterProduct& outer, const DeviceFacts& facts) {
  return narrow_cut(outer.out.dim(1), outer.out.dim(0), outer.matrix.dim(0), facts);
}

Side side_of(const ConstTensorView& view, int wide_axis) {
  Side side;
  side.data = view.data();
  side.wide_stride = view.stride(wide_axis), side.deep_stride = view.stride(1 - wide_axis);
  side.dtype = view.dtype();
  side.deep_is_near = std::abs(side.deep_stride) <= std::abs(side.wide_stride);
  return side;
}

bool is_aligned(const Side& side, std::int64_t far_stride) {
  return side.dtype == DType::kFloat32 && reinterpret_cast<std::uintptr_t>(side.data) % 16 == 0 &&
         far_stride % 4 == 0;
}
bool reads_along_depth(const Side& side) {
  return side.deep_stride == 1 && is_aligned(side, side.wide_stride);
}
bool reads_along_wide(const Side& side) {
  return side.wide_stride == 1 && is_aligned(side, side.deep_stride);
}

// Also if it is absent.
bool is_float(const Phase& phase) {
  return phase.a.dtype == DType::kFloat32 && phase.b.dtype == DType::kFloat32;
}

TileOutput output_of(const TensorView& view, bool accumulate) {
  TileOutput out;
  out.data = view.mutable_data();
  out.row_stride = view.stride(0), out.col_stride = view.stride(1);
  out.dtype = view.dtype();
  out.accumulate = accumulate;
  out.vectors = out.dtype == DType::kFloat32 && out.col_stride == 1 && out.row_stride % 4 == 0 &&
                reinterpret_cast<std::uintptr_t>(out.data) % 16 == 0;
  return out;
}

TileOutput partials_of(float* partials, std::int64_t rows, std::int64_t cols) {
  TileOutput out;
  out.data = partials;
  out.row_stride = cols, out.col_stride = 1, out.split_stride = rows * cols;
  out.vectors = cols % 4 == 0;
  return out;
}

// out (rows, cols) = scale · drop(a) (rows, depth) · b (depth, cols), in narrow tiles.
void run_narrow(const Call& call, TileArgs args, const TensorView& out, float* partials) {
  if (out.size() == 0) return;
  args.rows = out.dim(0), args.cols = out.dim(1);
  args.scale *= args.input_dropout.scale;
  const Cut cut = narrow_cut(args.rows, args.cols, args.base.depth, call.facts());
  args.split_depth = cut.split_depth;
  args.out = cut.splits == 1 ? output_of(out, false) : partials_of(partials, args.rows, args.cols);
  const Launch how{.grid = cut.grid(), .block = kTileThreads};
  constexpr int kRows = kNarrowRows, kCols = kNarrowCols, kDepth = kNarrowDepth;
  args.floats = args.multiply == DType::kFloat32 && is_float(args.base);
  call.launch(how, narrow_tile<kRows, kCols, kDepth>, args);
  if (cut.splits > 1) sum_partials(call, partials, cut.splits, {}, false, out);
}

// h = drop(x) · S
void run_shrink(const Call& call, const Term& term, const TensorView& h, float* partials) {
  TileArgs args;
  args.base = {side_of(term.x, 0), side_of(term.pair.shrink, 1), term.x.dim(1)};
  args.multiply = term.multiply;
  args.input_dropout = DropoutArgs(term.pair.input_dropout);
  args.drop_row = term.x.dim(1), args.drop_deep = 1;
  run_narrow(call, args, h, partials);
}

// outᵀ = scaling · drop(matrix)ᵀ · coefficients
void run_outer(const Call& call, const OuterProduct& outer, const ConstTensorView& coefficients,
               float* partials) {
  TileArgs args;
  args.base = {side_of(outer.matrix, 1), side_of(coefficients, 1), outer.matrix.dim(0)};
  args.scale = outer.scaling;
  args.input_dropout = DropoutArgs(outer.dropout);
  args.drop_row = 1, args.drop_deep = outer.matrix.dim(1);
  const TensorView& out = outer.out;
  const std::int64_t shape[] = {out.dim(1), out.dim(0)}, strides[] = {out.stride(1), out.stride(0)};
  run_narrow(call, args, TensorView(out.mutable_data(), out.dtype(), shape, strides, out.device()),
             partials);
}

void launch_tiles(const Call& call, const Launch& how, bool small, TileArgs args) {
  args.floats = args.multiply == DType::kFloat32 && is_float(args.base) && is_float(args.pair);
  const bool vectors = args.floats && reads_along_depth(args.base.a);
  constexpr int kWide = kWideTile, kDepth = kWideDepth, kSmall = kSmallTile;
  if (small) {
    call.launch(how, elements_tile<kSmall, kSmall, kSmallDepth>, args);
  } else if (vectors && reads_along_depth(args.base.b)) {
    call.launch(how, vectors_tile<kWide, kWide, kDepth, Read::kAlongDepth, Read::kAlongDepth>,
                args);
  } else if (vectors && reads_along_wide(args.base.b)) {
    call.launch(how, vectors_tile<kWide, kWide, kDepth, Read::kAlongDepth, Read::kAlongWide>, args);
  } else {
    call.launch(how, elements_tile<kWide, kWide, kDepth>, args);
  }
}

void run_tiles(const Call& call, const Term& term, const ConstTensorView& h, float* partials) {
  const Cut cut = term_cut(term, call.facts());
  TileArgs args;
  args.rows = term.y.dim(0), args.cols = term.y.dim(1);
  args.multiply = term.multiply;
  if (term.pair.present()) {
    args.pair = {side_of(h, 0), side_of(term.pair.expand, 1), term.pair.rank(), term.pair.scaling};
    args.output_dropout = DropoutArgs(term.pair.output_dropout);
  }
  if (term.w.present()) args.base = {side_of(term.x, 0), side_of(term.w, 1), term.x.dim(1)};
  args.split_depth = cut.split_depth;
  if (cut.splits > 1) {
    args.out = partials_of(partials, args.rows, args.cols);
  } else {
    args.out = output_of(term.y, term.accumulate);
    set_bias(args, term.bias);
  }
  launch_tiles(call, {.grid = cut.grid(), .block = kTileThreads},
               tile_size(term, call.facts()) == kSmallTile, args);
  if (cut.splits > 1) {
    sum_partials(call, partials, cut.splits, term.bias, term.accumulate, term.y);
  }
}

// A block takes kSumRun columns of one row at a time.
constexpr int kSumThreads = 256, kSumRun = 4 * kSumThreads;

struct SumArgs {
  const float* partials;
  std::int64_t rows, cols;
  int splits;
  const void* bias;
  std::int64_t bias_stride;
  DType bias_dtype;
  TileOutput out;
};

__global__ void __launch_bounds__(kSumThreads) sum_kernel(const __grid_constant__ SumArgs args) {
  const std::int64_t chunks = (args.cols + kSumRun - 1) / kSumRun;
  const std::int64_t row = blockIdx.x / chunks, size = args.rows * args.cols;
  const std::int64_t first = (blockIdx.x % chunks) * kSumRun + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kSumRun / kSumThreads; ++i) {
    const std::int64_t col = first + i * kSumThreads;
    if (col >= args.cols) return;
    float sum = 0;
    for (int split = 0; split < args.splits; ++split) {
      sum += args.partials[split * size + row * args.cols + col];
    }
    if (args.bias != nullptr) {
      sum += load_as_float(args.bias, args.bias_dtype, col * args.bias_stride);
    }
    const std::int64_t at = row * args.out.row_stride + col * args.out.col_stride;
    if (args.out.accumulate) sum += load_as_float(args.out.data, args.out.dtype, at);
    store_from_float(args.out.data, args.out.dtype, at, sum);
  }
}

}  // namespace

void sum_partials(const Call& call, const float* partials, int splits, const ConstTensorView& bias,
                  bool accumulate, const TensorView& out) {
  if (out.size() == 0) return;
  SumArgs args{};
  args.partials = partials;
  args.rows = out.dim(0), args.cols = out.dim(1), args.splits = splits;
  set_bias(args, bias);
  args.out = output_of(out, accumulate);
  const std::int64_t blocks = args.rows * divide_up(args.cols, kSumRun);
  call.launch({.grid = static_cast<unsigned>(blocks), .block = kSumThreads}, sum_kernel, args);
}

std::size_t general_bytes(const Term& term, const DeviceFacts& facts) {
  const std::int64_t rows = term.x.dim(0), rank = term.pair.rank();
  std::size_t partials = 0;  // one product after another uses them
  if (makes_h(term)) {
    partials = narrow_cut(rows, rank, term.x.dim(1), facts).partial_bytes(rows, rank);
  }
  if (makes_y(term)) {
    const Cut cut = term_cut(term, facts);
    partials = std::max(partials, cut.partial_bytes(term.y.dim(0), term.y.dim(1)));
  }
  for (const OuterProduct& outer : term.outer_products) {
    const Cut cut = outer_cut(outer, facts);
    partials = std::max(partials, cut.partial_bytes(outer.out.dim(0), outer.out.dim(1)));
  }
  return h_bytes(term) + partials;
}

void run_general(const Call& call, const Term& term, std::byte* workspace) {
  float* const partials = reinterpret_cast<float*>(workspace + h_bytes(term));
  ConstTensorView h;
  if (term.pair.present()) {
    const TensorView made = term.pair.h.present()
                                ? term.pair.h
                                : TensorView(workspace, DType::kFloat32,
                                             {term.x.dim(0), term.pair.rank()}, term.x.device());
    if (makes_h(term)) run_shrink(call, term, made, partials);
    h = made;
  }
  if (makes_y(term)) run_tiles(call, term, h, partials);
  for (const OuterProduct& outer : term.outer_products) {
    run_outer(call, outer, outer.coefficients.present() ? outer.coefficients : h, partials);
  }
}

}  // namespace graft::cuda
