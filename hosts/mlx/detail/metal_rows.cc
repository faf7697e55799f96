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
      : MetalNode(stream, caller, row_launch->direction, row_launch->counts, std::move(kernel),
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

Support takes_on_metal(const Arrays& inputs) {
  if (!fused_enabled()) return Support::no("fusion is turned off");
  return dtypes_known(inputs, inputs.size());
}

}  // namespace graft::mlx::detail
