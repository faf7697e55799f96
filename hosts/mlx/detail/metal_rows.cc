#include "graft/mlx/detail/metal_rows.h"

#include <utility>

#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

class RowsNode : public MetalNode {
 public:
  RowsNode(mx::Stream stream, const Caller& caller, std::shared_ptr<const RowLaunch> row_launch,
           std::shared_ptr<mx::Primitive> kernel)
      : MetalNode(stream, caller, row_launch->pass, row_launch->counts, std::move(kernel),
                  row_launch->composed, row_launch->read),
        row_launch_(std::move(row_launch)) {}

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    if (!row_launch_->gradients) return MetalNode::vjp(primals, cotangents, argnums, outputs);
    return row_launch_->gradients(primals, cotangents, argnums, outputs);
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    bool folds = row_launch_->folds;
    for (std::size_t i = 0; i < axes.size(); ++i) {
      folds &= (axes[i] >= 0) == row_launch_->has_rows[i];
    }
    if (!folds) return MetalNode::vmap(inputs, axes);
    const Arrays moved = batch_first(inputs, axes);
    const Arrays outputs = row_launch_->of_more
                               ? row_launch_->of_more(moved)
                               : launch_rows(row_launch_, moved, caller(), stream());
    return {outputs, std::vector<int>(outputs.size(), 0)};
  }

 private:
  std::shared_ptr<const RowLaunch> row_launch_;
};

// Sums of blocks of `each` rows of a matrix, (blocks, features) float32.
mx::array sums_of_blocks(const mx::array& matrix, int blocks, int each, mx::Stream s) {
  const int features = matrix.shape(1), missing = blocks * each - matrix.shape(0);
  const mx::array wide = mx::astype(matrix, mx::float32, s);
  const mx::array whole =
      mx::concatenate({wide, mx::zeros({missing, features}, mx::float32, s)}, 0, s);
  return mx::sum(mx::reshape(whole, {blocks, each, features}, s), 1, false, s);
}

// {sums of blocks} to their sum.
mx::array launch_add(const mx::array& blocks, const RowSums& sums, mx::Dtype dtype,
                     const Caller& caller, mx::Stream s) {
  const Outputs outputs{{{sums.features}}, {dtype}};
  const metal::Call call = metal::add_blocks({sums.features, *dtype_of(dtype)});
  const auto composed = [dtype, s](const Arrays& in) {
    return Arrays{mx::astype(mx::sum(in[0], 0, false, s), dtype, s)};
  };
  auto node = std::make_shared<MetalNode>(s, caller, Pass::kBackward, false,
                                          kernel_of(call, {blocks}, outputs, s), composed);
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, {blocks})[0];
}

}  // namespace

Arrays launch_rows(const std::shared_ptr<const RowLaunch>& row_launch, const Arrays& given,
                   const Caller& caller, mx::Stream s) {
  Arrays inputs = given;
  for (std::size_t i = 0; row_launch->flat && i < inputs.size(); ++i) {
    if (row_launch->has_rows[i]) inputs[i] = as_matrix(inputs[i], s);
  }
  const Outputs made = row_launch->outputs(inputs);
  Arrays outputs;
  if (any_empty(inputs)) {
    outputs = zeros(made, s);
  } else {
    const Arrays read(inputs.begin(), row_launch->read == 0
                                          ? inputs.end()
                                          : inputs.begin() + static_cast<int>(row_launch->read));
    const metal::Call call = row_launch->call(read);
    inputs = arranged(call, inputs, s);
    auto node = std::make_shared<RowsNode>(s, caller, row_launch, kernel_of(call, read, made, s));
    outputs = mx::array::make_arrays(made.shapes, made.dtypes, node, inputs);
  }
  if (!row_launch->flat || given[0].ndim() == 2) return outputs;
  for (mx::array& output : outputs) {
    output = mx::reshape(output, with_last(given[0].shape(), output.shape(-1)), s);
  }
  return outputs;
}

mx::array at_least_matrix(const mx::array& x, mx::Stream s) {
  return x.ndim() == 1 ? mx::reshape(x, {1, x.shape(0)}, s) : x;
}

mx::array as_column(const mx::array& x, mx::Stream s) {
  return mx::reshape(x, {static_cast<int>(x.size())}, s);
}

Support takes_on_metal(const Arrays& inputs) {
  if (!fused_enabled()) return Support::no("fusion is turned off");
  return dtypes_known(inputs, inputs.size());
}

Arrays launch_sums(const RowSums& sums, const Arrays& inputs, const Caller& caller, mx::Stream s) {
  Arrays results;
  if (sums.rows == 0 || sums.features == 0) {
    for (const mx::Dtype dtype : sums.dtypes) {
      results.push_back(mx::zeros({sums.features}, dtype, s));
    }
    return results;
  }
  const int blocks = static_cast<int>(metal::row_blocks(sums.rows));
  const int each = metal::rows_of_block(sums.rows);
  const Outputs outputs{std::vector<mx::Shape>(sums.dtypes.size(), {blocks, sums.features}),
                        std::vector<mx::Dtype>(sums.dtypes.size(), mx::float32)};
  const auto composed = [terms = sums.terms, blocks, each, s](const Arrays& in) {
    Arrays matrices = terms(in);
    for (mx::array& matrix : matrices) matrix = sums_of_blocks(matrix, blocks, each, s);
    return matrices;
  };
  auto node = std::make_shared<MetalNode>(s, caller, Pass::kBackward, sums.counts,
                                          kernel_of(sums.call, inputs, outputs, s), composed);
  const Arrays apart = mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs);
  for (std::size_t i = 0; i < apart.size(); ++i) {
    results.push_back(launch_add(apart[i], sums, sums.dtypes[i], caller, s));
  }
  return results;
}

}  // namespace graft::mlx::detail
