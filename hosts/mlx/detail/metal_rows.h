#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "graft/metal_rows.h"
#include "graft/mlx/detail/metal.h"

namespace graft::mlx::detail {

// A launch in which every row of the outputs is made from one row of each matrix among the inputs,
// so that a batch of matrices is more rows, and any number of leading dimensions are.
struct RowLaunch {
  using Gradients = std::function<Arrays(const Arrays& primals, const Arrays& cotangents,
                                         const std::vector<int>& argnums, const Arrays& outputs)>;

  Pass pass = Pass::kForward;
  std::vector<bool> has_rows;                             // of each input
  std::function<metal::Call(const Arrays& inputs)> call;  // if there is anything to do
  std::function<Outputs(const Arrays& inputs)> outputs;
  ArraysFunction composed;  // the same from MLX ops
  Gradients gradients;      // composed, too, if not given
  std::size_t read = 0;     // the kernel reads so many inputs, the first ones; all if 0
  bool counts = true;       // as an evaluation
  bool flat = false;        // the kernel wants matrices: leading dimensions are folded before
  bool folds = true;        // under vmap; not if what a row gives depends on which row it is
  ArraysFunction of_more;   // then, of more rows; if not given, the same launch is
};

// The first input has rows. Where an input is empty, the outputs are zeros.
Arrays launch_rows(const std::shared_ptr<const RowLaunch>& row_launch, const Arrays& inputs,
                   const Caller& caller, mx::Stream s);

// x itself, or a vector as a row: a number a row is not 0-d then, which MLX hands to kernels as no
// array.
mx::array at_least_matrix(const mx::array& x, mx::Stream s);

// A number a row as (rows).
mx::array as_column(const mx::array& x, mx::Stream s);

// Why no kernel takes these, whatever the operation.
Support takes_on_metal(const Arrays& inputs);

// Sums over the rows of a matrix that is never there: `call` is a launch that sums blocks of rows
// of it apart, and `terms` makes it from MLX ops, a matrix for each output.
struct RowSums {
  metal::Call call;
  std::int64_t rows = 0;
  int features = 0;
  std::vector<mx::Dtype> dtypes;  // of the sums
  ArraysFunction terms;           // of the inputs
  bool counts = false;            // as an evaluation backward
};

// Its sums, (features) each: two launches, or zeros if there are no rows.
Arrays launch_sums(const RowSums& sums, const Arrays& inputs, const Caller& caller, mx::Stream s);

}  // namespace graft::mlx::detail
