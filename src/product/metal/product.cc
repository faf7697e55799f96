#include "product/metal/product.h"

#include <string>

#include "backend/metal/limits.h"
#include "backend/metal/shaders.h"
#include "checks.h"
#include "product/metal/tiles.h"

namespace graft::metal {
namespace {

constexpr int kFewRows = 4;  // up to so many: a pass over W for all
// Simdgroups of a threadgroup of a kernel for few rows, and the columns of y that it makes.
constexpr int kFewSimdgroups = 8, kFewGroupColumns = kFewSimdgroups * 4;  // as in few.metal

// As in the shaders.
struct ShrinkScalars {
  std::int64_t a_row, a_col;
  std::uint32_t rows, depth, threshold;
  float keep;
};
struct ProductScalars {
  std::int64_t a_row, a_col, b_row, b_col;
  std::uint32_t rows, depth, cols, rank;
  float scaling;
  std::uint32_t threshold;
  float keep;
};

std::uint32_t u32(std::int64_t value) { return static_cast<std::uint32_t>(value); }

std::int64_t stride_of(const ViewedOperand& tensor, int axis) {
  return tensor.present() ? tensor.view.stride(axis) : 0;
}

// The operand, or another in its place, which the kernel then does not touch.
Operand either(const Operand& operand, const Operand& other) {
  return is_absent(operand) ? other : operand;
}

DType dtype_or(const ViewedOperand& tensor, DType other) {
  return tensor.present() ? tensor.view.dtype() : other;
}

ProductScalars scalars_of(const Product& p) {
  ProductScalars scalars{};
  scalars.a_row = stride_of(p.a, 0), scalars.a_col = stride_of(p.a, 1);
  scalars.b_row = stride_of(p.b, 0), scalars.b_col = stride_of(p.b, 1);
  scalars.rows = u32(p.x.view.dim(0)), scalars.depth = u32(p.x.view.dim(1));
  scalars.cols = u32(p.y_view.dim(1));
  scalars.rank = p.b.present() ? u32(p.b.view.dim(0)) : 0;
  scalars.scaling = p.scaling;
  scalars.threshold = p.drop.threshold, scalars.keep = p.drop.keep;
  return scalars;
}

Step few_step(const Product& p) {
  const DType x = p.x.view.dtype();
  const int rows = static_cast<int>(p.x.view.dim(0));
  const bool shrinks = p.a.present();
  Step step;
  step.kernel = {
      shrinks ? "product_few_shrinks" : "product_few",
      {shaders::kPhilox, shaders::kView, shaders::kTile, shaders::kShrink, shaders::kFew},
      {multiply_type(p.x.view, p.w.view), x, p.w.view.dtype(), dtype_or(p.bias, x),
       dtype_or(p.b, x), p.bias.present(), rows}};
  step.reads = {p.x.at, p.w.at, either(p.bias.at, p.x.at), either(p.b.at, p.x.at),
                shrinks ? p.a.at : either(p.h, p.x.at)};
  step.writes = {p.y};
  if (shrinks) {
    const int rank = static_cast<int>(p.b.view.dim(0));
    step.kernel.arguments.insert(step.kernel.arguments.end(), {p.a.view.dtype(), rank});
    step.writes.push_back(p.h);
    step.threadgroup_bytes = (kFewSimdgroups + 1) * rows * rank * 4;
  }
  step.grid = {groups_of(p.y_view.dim(1), kFewGroupColumns) * kFewSimdgroups * kLanes, 1, 1};
  step.threadgroup = {kFewSimdgroups * kLanes, 1, 1};
  return step;
}

// Tiles of 64 x 64 ask for half of what those of 32 x 32 do, if there are enough to keep a GPU's
// cores busy; M-series chips have 8 to 40.
int tile_size(const TensorView& y) {
  constexpr int kManyTiles = 64;
  const std::int64_t tiles = std::int64_t{groups_of(y.dim(0), 64)} * groups_of(y.dim(1), 64);
  return tiles >= kManyTiles ? 64 : 32;
}

Step tile_step(const Product& p) {
  const DType x = p.x.view.dtype(), multiply = multiply_type(p.x.view, p.w.view);
  const int size = tile_size(p.y_view);
  Step step;
  step.kernel = {"product_tile",
                 {shaders::kPhilox, shaders::kView, shaders::kTile, shaders::kProductTile},
                 {multiply, x, p.w.view.dtype(), dtype_or(p.bias, x), dtype_or(p.b, x),
                  p.transposed, p.bias.present(), p.drop.any()}};
  step.reads = {p.x.at,
                p.w.at,
                either(p.bias.at, p.x.at),
                either(p.b.at, p.x.at),
                either(p.h, p.x.at),
                either(p.drop.seed, p.x.at),
                either(p.drop.offset, p.x.at)};
  step.writes = {p.y};
  set_tiles(step, size, size, groups_of(p.y_view.dim(0), size), groups_of(p.y_view.dim(1), size),
            multiply);
  return step;
}

}  // namespace

Drop next_drop(Numbering& inputs, const Dropout& dropout) {
  if (dropout.threshold() == 0) return {};
  const Operand seed = inputs.next(), offset = inputs.next();
  return {seed, offset, dropout.threshold(), dropout.scale()};
}

DType multiply_type(const ConstTensorView& x, const ConstTensorView& weight) {
  const bool any = !weight.present() || weight.dtype() == DType::kFloat16;
  return any ? x.dtype() : weight.dtype();
}

void add_shrink(Plan& plan, const Shrink& p) {
  const std::int64_t rows = p.x.view.dim(0);
  const int rank = static_cast<int>(p.a.view.dim(1));
  const bool tiles = rows >= kTileRows;
  Step step;
  step.kernel = {tiles ? "shrink_tile" : "shrink_row",
                 {shaders::kPhilox, shaders::kView, shaders::kTile, shaders::kShrink},
                 {p.multiply, p.x.view.dtype(), p.a.view.dtype(), rank, p.drop.any()}};
  step.reads = {p.x.at, p.a.at, either(p.drop.seed, p.x.at), either(p.drop.offset, p.x.at)};
  step.writes = {p.h};
  step.scalars = bytes_of(ShrinkScalars{p.a.view.stride(0), p.a.view.stride(1), u32(rows),
                                        u32(p.x.view.dim(1)), p.drop.threshold, p.drop.keep});
  if (tiles) {
    constexpr int kRows = 16;  // so few that there are many blocks
    set_tiles(step, kRows, shrink_columns(rank), groups_of(rows, kRows), 1, p.multiply);
  } else {
    step.grid = {static_cast<int>(rows) * kLanes, 1, 1};
    step.threadgroup = {kLanes, 1, 1};
  }
  plan.steps.push_back(std::move(step));
}

void add_product(Plan& plan, const Product& p) {
  Step step = p.transposed && p.x.view.dim(0) <= kFewRows ? few_step(p) : tile_step(p);
  step.scalars = bytes_of(scalars_of(p));
  plan.steps.push_back(std::move(step));
}

// Shrinking within the launch, each of its threadgroups reads x and A; a launch of its own reads
// them once, and h goes to memory and back. A launch that waits for the one before it costs some
// microseconds, in which a GPU reads about kLaunch bytes from its caches; that is an estimate.
bool shrinks_within(std::int64_t rows, std::int64_t depth, std::int64_t columns,
                    std::int64_t rank) {
  constexpr std::int64_t kLaunch = 1 << 20, kElement = 4, kMostH = 512;
  const std::int64_t h = rows * rank;
  if (rows > kFewRows || h > kMostH) return false;
  const std::int64_t groups = groups_of(columns, kFewGroupColumns);
  const std::int64_t read = depth * (rank + rows);
  return groups * read * kElement <= (read + h + groups * h) * kElement + kLaunch;
}

Support product_on_metal(const ConstTensorView& x, const Weight& weight,
                         const ConstTensorView& bias) {
  if (weight.is_packed()) return Support::no("the weight is packed for the CPU");
  const ConstTensorView& w = weight.view();
  return all_of({is_floating(x.dtype()), is_floating(w.dtype()),
                 bias.present() ? is_floating(bias.dtype()) : Support{},
                 sizes_fit({x.dim(0) * kLanes, x.dim(1), w.dim(0) * 8, w.dim(1) * 8}),
                 is_dense("w", w), is_dense("bias", bias)});
}

Support pair_on_metal(const Adapter& adapter) {
  const std::int64_t rank = adapter.a.dim(1);
  if (rank < 1 || rank > kMaxLoraRank) {
    return Support::no("Metal kernels take ranks of 1 to 256, not " + std::to_string(rank));
  }
  return all_of({is_floating(adapter.a.dtype()), is_floating(adapter.b.dtype()),
                 sizes_fit({adapter.a.dim(0), adapter.b.dim(1)})});
}

}  // namespace graft::metal
