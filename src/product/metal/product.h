#pragma once

#include "backend/metal/plan.h"
#include "graft/lora.h"
#include "graft/metal.h"
#include "graft/weight.h"

// The one idea on Metal: a product, and a low-rank pair's steps on the same accumulators.
namespace graft::metal {

// An operand with what is known of it.
struct ViewedOperand {
  Operand at = kAbsent;
  ConstTensorView view;

  bool present() const { return view.present(); }
  ViewedOperand transposed() const { return {at, view.transposed()}; }
};

// What kernels read for dropout: where it draws from, and on which elements. Nothing is dropped if
// there is no seed.
struct Drop {
  Operand seed = kAbsent, offset = kAbsent;
  std::uint32_t threshold = 0;  // 16 random bits below it drop their element
  float keep = 1.0f;            // others are multiplied by it

  bool any() const { return !is_absent(seed); }
};

// Of params whose threshold is above 0, their seed and offset the next two inputs; else nothing.
Drop next_drop(Numbering& inputs, const Dropout& dropout);

// The next input or output of a call, with its view.
inline ViewedOperand next(Numbering& numbering, const ConstTensorView& view) {
  return {numbering.next(view), view};
}

// What all operands of a product with `weight` are rounded to: its type, or x's if it is float16 or
// absent.
DType multiply_type(const ConstTensorView& x, const ConstTensorView& weight);

// h = drop(x)·A, or g = dy·Bᵀ, (rows, rank) float32; A in any strides.
struct Shrink {
  ViewedOperand x, a;
  DType multiply;
  Drop drop;
  Operand h;
};
void add_shrink(Plan& plan, const Shrink& shrink);

// y = x·Wᵀ + bias + scaling·h·B; or, not `transposed`, dx = dy·W + drop(scaling·g·Aᵀ), where dy is
// x, g is h, and Aᵀ is B. Without B it is the base product alone.
struct Product {
  ViewedOperand x, w;
  bool transposed = true;  // W is (columns, depth), as forward has it; else (depth, columns)
  ViewedOperand bias;      // absent: none
  ViewedOperand b;         // (rank, columns), any strides; absent: no pair
  float scaling = 1.0f;
  Operand h = kAbsent;  // (rows, rank) float32: read, or with `a` written
  ViewedOperand a;      // (depth, rank), any strides; present: h is made in the same launch
  Drop drop;            // on what the pair adds
  TensorView y_view;
  Operand y;
};
void add_product(Plan& plan, const Product& product);

// Whether h is better made in the product's launch than in one of its own before, by what each
// moves: a few rows, forward. Nothing in a launch may wait for another threadgroup, so each makes h
// for itself.
bool shrinks_within(std::int64_t rows, std::int64_t depth, std::int64_t columns, std::int64_t rank);

// What a product's kernels take: floating types, sizes that fit an int, W plain and without gaps.
Support product_on_metal(const ConstTensorView& x, const Weight& weight,
                         const ConstTensorView& bias);
Support pair_on_metal(const Adapter& adapter);

}  // namespace graft::metal
