#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "graft/context.h"
#include "graft/lora.h"
#include "graft/tensor_view.h"

// The one product behind linear and LoRA on a GPU, forward and backward. A term is
//
//     y = [ x | s·h ] · [ W ; E ] + bias        h = drop(x) · S
//
// with S = A, E = B forward and x = dy, S = Bᵀ, E = Aᵀ backward (h is called g there). All operands
// are views with strides, so that a transposed operand is another view of the same memory: w is
// (K, N) here, Weight's view transposed forward and as it is backward.

namespace graft::cuda {

/// The low-rank pair that a term goes on over.
struct LowRank {
  ConstTensorView shrink;                   ///< S (K, rank); absent: no pair.
  ConstTensorView expand;                   ///< E (rank, N).
  float scaling = 1.0f;                     ///< s.
  const Dropout* input_dropout = nullptr;   ///< On x before the shrink; null: none.
  const Dropout* output_dropout = nullptr;  ///< On s·h·E, element by element of y; null: none.
  TensorView h;                             ///< (M, rank) float32, dense, overwritten; optional.

  bool present() const { return shrink.present(); }
  std::int64_t rank() const { return present() ? shrink.dim(1) : 0; }
};

/// out (rank, cols) = scaling · coefficientsᵀ · matrix, summed over all rows; or of drop(matrix).
struct OuterProduct {
  ConstTensorView coefficients;  ///< (M, rank) float32, dense; absent: the h that the term makes.
  ConstTensorView matrix;        ///< (M, cols).
  const Dropout* dropout = nullptr;  ///< On the matrix; null: none.
  float scaling = 1.0f;              ///< Multiplies the sum.
  TensorView out;                    ///< (rank, cols) float32, any strides; overwritten.
};

struct Term {
  ConstTensorView x;     ///< (M, K), any strides.
  ConstTensorView w;     ///< (K, N), any strides; absent: no base product.
  ConstTensorView bias;  ///< (N), any stride; optional.
  LowRank pair;
  bool accumulate = false;  ///< y += instead of y =.
  TensorView y;             ///< (M, N), rows dense; absent: only h and outer products are wanted.
  /// What x, w, S and E are rounded to before they are multiplied; sums are float32. float32 is
  /// true float32.
  DType multiply = DType::kFloat32;
  std::vector<OuterProduct> outer_products;
};

/// Puts a bias, if there is one, into a kernel's arguments.
template <class Args>
void set_bias(Args& args, const ConstTensorView& bias) {
  if (!bias.present()) return;
  args.bias = bias.data();
  args.bias_stride = bias.stride(0);
  args.bias_dtype = bias.dtype();
}

/// The same with y, for kernels that write it in either of its types or add to it.
template <class Args>
void set_output(Args& args, const Term& term) {
  set_bias(args, term.bias);
  args.y = term.y.mutable_data();
  args.y_stride = term.y.stride(0);
  args.y_float = term.y.dtype() == DType::kFloat32;
  args.accumulate = term.accumulate;
}

/// Runs the terms one after another. `reaches` and shapes have been checked.
void run(const char* op, Context& context, std::span<const Term> terms);

/// Bytes of workspace that `run` takes on the device. Reads no tensor's data.
std::size_t scratch_bytes(std::span<const Term> terms);

}  // namespace graft::cuda
