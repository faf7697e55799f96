#pragma once

#include <cstdint>
#include <vector>

#include "backend/cpu/kernels.h"
#include "graft/context.h"
#include "graft/lora.h"
#include "graft/packed_weight.h"
#include "graft/tensor_view.h"

// The one product behind linear and LoRA, forward and backward:
//
//     y (M, N) = [ x | s·h ] · [ W ; E ] + bias        h = drop(x) · S
//
// with S = A, E = B forward and x = dy, S = Bᵀ, E = Aᵀ backward. While a chunk of rows is in cache
// it also yields the outer products that the gradients of A and B are sums of.

namespace graft::cpu {

/// The low-rank pair that a product goes on over.
struct LowRank {
  Source shrink;  // S (K, rank)
  Source expand;  // E (rank, N)
  std::int64_t rank = 0;
  float scaling = 1.0f;
  const Dropout* input_dropout = nullptr;   // on x before the shrink, null for none
  const Dropout* output_dropout = nullptr;  // on s·h·E and outer products, null for none
  float* h = nullptr;                       // (M, rank) dense, overwritten with unscaled h, or null
};

/// out (rank, cols) = scaling · coefficientsᵀ · matrix, summed over all rows; or of drop(matrix),
/// with the output dropout of the low-rank pair, the columns of y being its own.
struct OuterProduct {
  const float* coefficients = nullptr;  // (M, rank) dense; null: the h that this product makes
  Source matrix;                        // (M, cols)
  std::int64_t cols = 0;
  bool dropped = false;
  float scaling = 1.0f;
  TensorView out;  // (rank, cols) float32, any strides
};

/// Which way a weight is multiplied.
enum class Direction { kForward, kBackward };

struct Product {
  std::int64_t m = 0, k = 0, n = 0;
  Source x;                            // (M, K)
  const BaseWeight* weight = nullptr;  // null: no base product
  Direction direction = Direction::kForward;
  DType multiply = DType::kFloat32;  // without a weight; with one, its dtype decides
  ConstTensorView bias;              // (N) or absent
  const LowRank* low_rank = nullptr;
  TensorView y;  // (M, N), rows dense; absent: only h and outer products are wanted
  bool accumulate = false;
  std::vector<OuterProduct> outer_products;
};

/// Runs the product on the pool. Arguments have been checked.
void run(Context& context, const Product& product);

}  // namespace graft::cpu
