#include "lora/metal.h"

#include "backend/metal/limits.h"
#include "backend/metal/shaders.h"
#include "backend/table.h"
#include "product/metal/product.h"
#include "product/metal/tiles.h"

namespace graft::metal {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kFewRows = 4;  // up to so many: a simdgroup a row

// As in metal.metal.
struct DeltaScalars {
  std::int64_t a_row, a_col, b_row, b_col;
  std::uint32_t rows, in_features, out_features;
  float scaling;
  std::uint32_t threshold;
  float keep;
};
struct OuterScalars {
  std::int64_t col_stride, rank_stride;
  std::uint32_t rows, columns;
  float scaling;
  std::uint32_t threshold;
  float keep;
};

std::uint32_t u32(std::int64_t value) { return static_cast<std::uint32_t>(value); }

// y = drop_y(scaling·(drop_x(x)·A)·B) and h. Backward, dx is the same of dy, Bᵀ and Aᵀ.
struct Delta {
  ViewedOperand x, a, b;
  float scaling;
  Drop drop;
  bool drops_y;  // else x
  Operand y, h;
};

void add_delta(Plan& plan, const Delta& p) {
  const DType x = p.x.view.dtype();
  const std::int64_t rows = p.x.view.dim(0), out_features = p.b.view.dim(1);
  const int rank = static_cast<int>(p.a.view.dim(1));
  const bool drops = p.drop.any();
  Step step;
  step.kernel.parts = {shaders::kPhilox, shaders::kView, shaders::kTile, shaders::kShrink,
                       shaders::kLora};
  step.kernel.arguments = {x,    p.a.view.dtype(),    p.b.view.dtype(),
                           rank, drops && !p.drops_y, drops && p.drops_y};
  step.reads = {p.x.at, p.a.at, p.b.at, drops ? p.drop.seed : p.x.at,
                drops ? p.drop.offset : p.x.at};
  step.writes = {p.y, p.h};
  step.scalars = bytes_of(DeltaScalars{
      p.a.view.stride(0), p.a.view.stride(1), p.b.view.stride(0), p.b.view.stride(1), u32(rows),
      u32(p.a.view.dim(0)), u32(out_features), p.scaling, p.drop.threshold, p.drop.keep});
  if (rows <= kFewRows) {  // a simdgroup a row
    step.kernel.function = "lora_delta_row";
    step.grid = {static_cast<int>(rows) * kLanes, 1, 1};
    step.threadgroup = {kLanes, 1, 1};
  } else if (rows < kTileRows) {
    constexpr int kRows = 8;  // few, so that small inputs make many blocks
    step.kernel.function = "lora_delta_block";
    step.kernel.arguments.push_back(kRows);
    step.grid = {groups_of(rows, kRows) * kBlockThreads, 1, 1};
    step.threadgroup = {kBlockThreads, 1, 1};
    step.threadgroup_bytes = kRows * rank * 4;
  } else {
    // Blocks of 32 rows ask for A and B half as often as blocks of 16, which is what h leaves room
    // for at high ranks, and what makes enough blocks of fewer rows.
    constexpr int kCols = 64;
    const int block = rows >= 1024 && rank <= 64 ? 32 : 16;
    step.kernel.function = "lora_delta_tile";
    set_tiles(step, block, kCols, groups_of(rows, block), 1, x);
    step.threadgroup_bytes += block * ((rank + 15) / 16 * 16) * static_cast<int>(size_of(x));
  }
  plan.steps.push_back(std::move(step));
}

// scaling·drop(matrix)ᵀ·coefficients, (columns, rank): the gradient of A, of x and g, or,
// transposed, of B, of dy and h. Any strides.
void add_outer(Plan& plan, const ViewedOperand& matrix, const Operand& coefficients, float scaling,
               const Drop& drop, const Operand& out, const ConstTensorView& gradient) {
  constexpr int kSimdgroups = kBlockThreads / kLanes, kOuterColumns = 8;  // as in metal.metal
  if (gradient.size() == 0) return;
  const int rank = static_cast<int>(gradient.dim(1));
  Step step;
  step.kernel = {
      "lora_outer",
      {shaders::kPhilox, shaders::kView, shaders::kTile, shaders::kShrink, shaders::kLora},
      {matrix.view.dtype(), rank, drop.any(), kSimdgroups}};
  step.reads = {matrix.at, coefficients, drop.any() ? drop.seed : matrix.at,
                drop.any() ? drop.offset : matrix.at};
  step.writes = {out};
  step.scalars =
      bytes_of(OuterScalars{gradient.stride(0), gradient.stride(1), u32(matrix.view.dim(0)),
                            u32(matrix.view.dim(1)), scaling, drop.threshold, drop.keep});
  step.grid = {groups_of(gradient.dim(0), kLanes) * kBlockThreads, groups_of(rank, kOuterColumns),
               1};
  step.threadgroup = {kBlockThreads, 1, 1};
  step.threadgroup_bytes = kSimdgroups * kOuterColumns * kLanes * 4;
  plan.steps.push_back(std::move(step));
}

// Operands of a backward call that both ops have.
struct BackwardOperands {
  ViewedOperand dy, x, a, b;
  Operand h, dx, da, db;
  Drop drop;
};

// da and db, if they are asked for.
template <class Params>
void add_gradients(Plan& plan, const BackwardOperands& at, const Operand& g, const Params& p) {
  const float scaling = p.adapter.scaling;
  if (p.da.present()) add_outer(plan, at.x, g, scaling, at.drop, at.da, p.da);
  if (p.db.present()) add_outer(plan, at.dy, at.h, scaling, {}, at.db, p.db.transposed());
}

template <class Params>
void number_outputs(BackwardOperands& at, const Params& p) {
  Numbering outputs(Operand::Of::kOutputs);
  at.dx = outputs.next(p.dx), at.da = outputs.next(p.da), at.db = outputs.next(p.db);
}

Operand new_g(Plan& plan, const BackwardOperands& at) {
  return temporary(plan, DType::kFloat32, {at.dy.view.dim(0), at.b.view.dim(0)});
}

}  // namespace

Support supports(const LoraDeltaForward& p) {
  if (p.accumulate) return Support::no("Metal kernels overwrite y");
  return all_of({pair_on_metal(p.adapter), is_floating(p.x.dtype()),
                 sizes_fit({p.x.dim(0) * kLanes}), is_dense("x", p.x), is_dense("y", p.y),
                 dropout_by_value(p.dropout)});
}

Support supports(const LoraDeltaBackward& p) {
  return all_of({pair_on_metal(p.adapter), is_floating(p.dy.dtype()),
                 sizes_fit({p.dy.dim(0) * kLanes}), is_dense("dy", p.dy), is_dense("x", p.x),
                 is_dense("dx", p.dx), dropout_by_value(p.dropout)});
}

Support supports(const LoraLinearForward& p) {
  return all_of({product_on_metal(p.x, p.weight, p.bias), pair_on_metal(p.adapter),
                 is_dense("x", p.x), is_dense("y", p.y), dropout_by_value(p.dropout)});
}

Support supports(const LoraLinearBackward& p) {
  return all_of({product_on_metal(p.dy, p.weight, {}), pair_on_metal(p.adapter),
                 is_dense("dy", p.dy), is_dense("x", p.x), is_dense("dx", p.dx),
                 dropout_by_value(p.dropout)});
}

Plan lora_delta_forward(const LoraDeltaForward& p) {
  Plan plan;
  const std::int64_t rows = p.x.dim(0);
  if (rows == 0) return plan;
  Numbering inputs(Operand::Of::kInputs), outputs(Operand::Of::kOutputs);
  const ViewedOperand x = next(inputs, p.x), a = next(inputs, p.adapter.a),
                      b = next(inputs, p.adapter.b);
  const Drop drop = next_drop(inputs, p.dropout);
  const Operand y = outputs.next(p.y);
  const Operand h = given_or(plan, outputs.next(p.h), DType::kFloat32, {rows, p.adapter.a.dim(1)});
  add_delta(plan, {x, a, b, p.adapter.scaling, drop, false, y, h});
  return plan;
}

Plan lora_delta_backward(const LoraDeltaBackward& p) {
  Plan plan;
  Numbering inputs(Operand::Of::kInputs);
  BackwardOperands at;
  at.dy = next(inputs, p.dy), at.x = next(inputs, p.x), at.h = inputs.next(p.h);
  at.a = next(inputs, p.adapter.a), at.b = next(inputs, p.adapter.b);
  at.drop = next_drop(inputs, p.dropout);
  number_outputs(at, p);
  const Operand g = new_g(plan, at);
  if (at.dy.view.dim(0) > 0) {
    if (p.dx.present()) {
      add_delta(plan, {at.dy, at.b.transposed(), at.a.transposed(), p.adapter.scaling, at.drop,
                       true, at.dx, g});
    } else if (p.da.present()) {
      add_shrink(plan, {at.dy, at.b.transposed(), p.dy.dtype(), {}, g});
    }
  }
  add_gradients(plan, at, g, p);
  return plan;
}

Plan lora_linear_forward(const LoraLinearForward& p) {
  Plan plan;
  const std::int64_t rows = p.x.dim(0), rank = p.adapter.a.dim(1);
  if (rows == 0) return plan;
  Numbering inputs(Operand::Of::kInputs), outputs(Operand::Of::kOutputs);
  Product product;
  product.x = next(inputs, p.x);
  product.w = next(inputs, p.weight.view());
  product.bias = next(inputs, p.bias);
  const ViewedOperand a = next(inputs, p.adapter.a);
  product.b = next(inputs, p.adapter.b);
  product.scaling = p.adapter.scaling;
  const Drop drop = next_drop(inputs, p.dropout);
  product.y = outputs.next(p.y), product.y_view = p.y;
  product.h = given_or(plan, outputs.next(p.h), DType::kFloat32, {rows, rank});
  const bool within =
      !drop.any() && p.y.size() > 0 && shrinks_within(rows, p.x.dim(1), p.y.dim(1), rank);
  if (within) {
    product.a = a;
  } else {
    add_shrink(plan, {product.x, a, multiply_type(p.x, p.weight.view()), drop, product.h});
  }
  if (p.y.size() > 0) add_product(plan, product);
  return plan;
}

Plan lora_linear_backward(const LoraLinearBackward& p) {
  Plan plan;
  Numbering inputs(Operand::Of::kInputs);
  BackwardOperands at;
  at.dy = next(inputs, p.dy), at.x = next(inputs, p.x), at.h = inputs.next(p.h);
  const ViewedOperand w = next(inputs, p.weight.view());
  at.a = next(inputs, p.adapter.a), at.b = next(inputs, p.adapter.b);
  at.drop = next_drop(inputs, p.dropout);
  number_outputs(at, p);
  const Operand g = new_g(plan, at);
  if (at.dy.view.dim(0) > 0 && (p.dx.present() || p.da.present())) {
    add_shrink(plan, {at.dy, at.b.transposed(), multiply_type(p.dy, p.weight.view()), {}, g});
  }
  if (p.dx.present() && p.dx.size() > 0) {
    Product product;
    product.x = at.dy;
    product.w = w;
    product.transposed = false;
    product.b = at.a.transposed();
    product.scaling = p.adapter.scaling;
    product.h = g;
    product.drop = at.drop;
    product.y = at.dx, product.y_view = p.dx;
    add_product(plan, product);
  }
  add_gradients(plan, at, g, p);
  return plan;
}

}  // namespace graft::metal
