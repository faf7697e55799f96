#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/small_vector.h"
#include "graft/context.h"
#include "graft/lora.h"
#include "graft/tensor_view.h"
#include "graft/weight.h"
#include "product/cpu/kernels.h"

// The one product behind linear and LoRA, forward and backward. A term is
//
//     [ x | s·h ] · [ W ; E ] + bias        h = drop(x) · S
//
// with S = A, E = B forward and x = dy, S = Bᵀ, E = Aᵀ backward. Layers that read one x (q, k and
// v) are the terms of one product: forward each writes its own y (M, N) from an x (M, K) that is
// packed once, backward each reads its own x and all sum to one y, which is written once. While a
// chunk of rows is in cache it also yields the outer products that the gradients of A and B are
// sums of.

namespace graft::cpu {

/// A tensor that may have been left out: null if it was.
template <class View>
const View* given(const View& view) {
  return view.present() ? &view : nullptr;
}

/// The low-rank pair that a term goes on over.
struct LowRank {
  Source shrink;          // S (K, rank)
  Source expand;          // E (rank, N)
  std::int64_t rank = 0;  // 0: no pair
  float scaling = 1.0f;
  const Dropout* input_dropout = nullptr;   // on x before the shrink, null for none
  const Dropout* output_dropout = nullptr;  // on s·h·E and outer products, null for none
  float* h = nullptr;                       // (M, rank) dense, overwritten with unscaled h, or null
};

struct Term {
  std::int64_t k = 0, n = 0;
  Source x;                        // (M, K)
  const Weight* weight = nullptr;  // null: no base product
  std::int64_t weight_k = 0;       // where the term's K begins in the weight's; an even number
  const ConstTensorView* bias = nullptr;  // (N); null: none
  LowRank pair;
  const TensorView* y = nullptr;  // (M, N), rows dense; null: only h and outer products are wanted
};

/// out (rank, cols) = scaling · coefficientsᵀ · matrix, summed over all rows; or of drop(matrix),
/// with the output dropout of the term's pair, whose y has the same columns.
struct OuterProduct {
  std::size_t term = 0;                 // whose rank it has
  const float* coefficients = nullptr;  // (M, rank) dense; null: the h that the term makes
  Source matrix;                        // (M, cols)
  std::int64_t cols = 0;
  bool dropped = false;
  float scaling = 1.0f;
  float* out = nullptr;  // (rank, cols), of any strides:
  std::int64_t row_stride = 0, col_stride = 0;
};

struct Product {
  std::int64_t m = 0;
  Direction direction = Direction::kForward;
  DType multiply = DType::kFloat32;  // the weights' dtype
  SmallVector<Term, 3> terms;        // of one x (forward) or one y (backward)
  bool accumulate = false;           // y += instead of y =
  SmallVector<OuterProduct, 2> outer_products;
};

/// Runs the product on the context's threads. Arguments have been checked.
void run(Context& context, const Product& product);

/// Bytes of scratch that `run` takes from a context of so many threads. Reads no tensor's data.
std::size_t scratch_bytes(const Product& product, int threads);

}  // namespace graft::cpu
