#include "graft/mlx/detail/metal_lora.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "graft/metal_lora.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/philox.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

metal::LoraDelta shape_of(const mx::array& x, const mx::array& a, const mx::array& b,
                          metal::Drops drops) {
  metal::LoraDelta shape;
  shape.rows = rows_of(x.shape());
  shape.in_features = a.shape(0);
  shape.out_features = b.shape(1);
  shape.rank = a.shape(1);
  shape.x = *dtype_of(x.dtype());
  shape.a = *dtype_of(a.dtype());
  shape.b = *dtype_of(b.dtype());
  shape.drops = drops;
  return shape;
}

mx::array as_rows(const mx::array& x, mx::Stream s) {
  return mx::reshape(x, {static_cast<int>(rows_of(x.shape())), x.shape(-1)}, s);
}

// Seed and offset as kernels read them, and what else they want for dropout. Nothing without
// dropout.
Arrays dropout_inputs(const LoraCall& call, const Arrays& primals, mx::Stream s) {
  if (call.dropout == 0) return {};
  return {mx::reshape(primals[call.seed()], {}, s), mx::reshape(primals[call.offset()], {}, s),
          mx::array(dropout_threshold(call.dropout)), mx::array(1.0f / (1.0f - call.dropout))};
}

// Where those begin among a launch's inputs: after its matrices and the scaling.
constexpr std::size_t kDeltaDropout = 4, kOuterDropout = 3;

// lora_delta forward, whose gradients have kernels. Inputs: x, A, B, scaling, [dropout_inputs];
// outputs: y, h.
class MetalForward : public MetalNode {
 public:
  MetalForward(LoraCall call, mx::Stream stream, const Caller& caller,
               std::shared_ptr<mx::Primitive> kernel, ArraysFunction composed)
      : MetalNode(stream, caller, Direction::kForward, true, std::move(kernel),
                  std::move(composed)),
        call_(std::move(call)) {}

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override;
  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override;

 private:
  LoraCall call_;
};

// A launch's y and h from MLX ops.
ArraysFunction composed_launch(const LoraCall& call, metal::Drops drops, mx::Stream s) {
  return [=](const Arrays& p) {
    const auto drop = [&](const mx::array& x) {
      return composed_dropout(x, call.dropout, p[kDeltaDropout], p[kDeltaDropout + 1], s);
    };
    const mx::array x = drops == metal::Drops::kInput ? drop(p[0]) : p[0];
    const mx::array y = mx::astype(composed_delta(x, p[1], p[2], call.scaling, s), x.dtype(), s);
    const mx::array h =
        mx::matmul(mx::astype(x, mx::float32, s), mx::astype(p[1], mx::float32, s), s);
    return Arrays{drops == metal::Drops::kOutput ? drop(y) : y, h};
  };
}

Outputs outputs_of(const Arrays& inputs) {
  const int rows = inputs[0].shape(0);
  return {{{rows, inputs[2].shape(1)}, {rows, inputs[1].shape(1)}},
          {inputs[0].dtype(), mx::float32}};
}

bool is_empty(const Arrays& inputs) {
  return inputs[0].size() == 0 || inputs[1].size() == 0 || inputs[2].size() == 0;
}

Arrays zeros(const Outputs& outputs, mx::Stream s) {
  Arrays arrays;
  for (std::size_t i = 0; i < outputs.shapes.size(); ++i) {
    arrays.push_back(mx::zeros(outputs.shapes[i], outputs.dtypes[i], s));
  }
  return arrays;
}

// {y, h} forward.
Arrays launch_forward(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                      mx::Stream s) {
  const auto drops = call.dropout > 0 ? metal::Drops::kInput : metal::Drops::kNothing;
  const Outputs outputs = outputs_of(inputs);
  if (is_empty(inputs)) return zeros(outputs, s);
  const auto shape = shape_of(inputs[0], inputs[1], inputs[2], drops);
  auto node = std::make_shared<MetalForward>(
      call, s, caller, kernel_of(metal::lora_delta(shape), inputs, outputs, s),
      composed_launch(call, drops, s));
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs);
}

// {dx, g} of dy.
Arrays launch_dx(const LoraCall& call, const Arrays& inputs, const Caller& caller, mx::Stream s) {
  const auto drops = call.dropout > 0 ? metal::Drops::kOutput : metal::Drops::kNothing;
  const Outputs outputs = outputs_of(inputs);
  if (is_empty(inputs)) return zeros(outputs, s);
  const auto shape = shape_of(inputs[0], inputs[1], inputs[2], drops);
  auto node = std::make_shared<MetalNode>(s, caller, Direction::kBackward, true,
                                          kernel_of(metal::lora_delta(shape), inputs, outputs, s),
                                          composed_launch(call, drops, s));
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs);
}

// scaling·drop(matrix)ᵀ·coefficients, or its transpose. Inputs: matrix, coefficients, scaling,
// [dropout_inputs].
mx::array launch_outer(const LoraCall& call, const Arrays& inputs, bool by_column, bool counts,
                       const Caller& caller, mx::Stream s) {
  const mx::array &matrix = inputs[0], &coefficients = inputs[1];
  const bool dropout = inputs.size() > kOuterDropout;
  const int columns = matrix.shape(1), rank = coefficients.shape(1);
  const mx::Shape shape = by_column ? mx::Shape{columns, rank} : mx::Shape{rank, columns};
  const Outputs outputs{{shape}, {mx::float32}};
  if (matrix.size() == 0) return zeros(outputs, s)[0];
  metal::LoraOuter outer;
  outer.rows = matrix.shape(0);
  outer.columns = columns;
  outer.rank = rank;
  outer.matrix = *dtype_of(matrix.dtype());
  outer.dropout = dropout;
  outer.by_column = by_column;
  const auto composed = [=](const Arrays& p) {
    const mx::array dropped =
        dropout ? composed_dropout(p[0], call.dropout, p[kOuterDropout], p[kOuterDropout + 1], s)
                : p[0];
    const mx::array wide = mx::astype(dropped, mx::float32, s);
    const mx::array gradient = by_column ? mx::matmul(mx::transpose(wide, s), p[1], s)
                                         : mx::matmul(mx::transpose(p[1], s), wide, s);
    return Arrays{mx::multiply(gradient, mx::array(call.scaling), s)};
  };
  auto node = std::make_shared<MetalNode>(s, caller, Direction::kBackward, counts,
                                          kernel_of(metal::lora_outer(outer), inputs, outputs, s),
                                          composed);
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs)[0];
}

// h's cotangent is not looked at: no caller sees h. The backward launch is counted once.
Arrays MetalForward::vjp(const Arrays& primals, const Arrays& cotangents,
                         const std::vector<int>& argnums, const Arrays& outputs) {
  const mx::Stream s = stream();
  const auto asked = [&](int i) {
    return std::find(argnums.begin(), argnums.end(), i) != argnums.end();
  };
  const mx::array &x = primals[0], &a = primals[1], &b = primals[2], &dy = cotangents[0];
  const Arrays dropout(primals.begin() + kDeltaDropout, primals.end());
  const auto with_dropout = [&](Arrays inputs) {
    inputs.insert(inputs.end(), dropout.begin(), dropout.end());
    return inputs;
  };
  std::optional<Arrays> dx;
  if (asked(0) || asked(1)) {
    dx = launch_dx(call_, with_dropout({dy, mx::transpose(b, s), mx::transpose(a, s), primals[3]}),
                   caller(), s);
  }
  Arrays gradients;
  for (const int argnum : argnums) {
    const auto i = static_cast<std::size_t>(argnum);
    if (i == 0) {
      gradients.push_back((*dx)[0]);
    } else if (i == 1) {
      const auto da =
          launch_outer(call_, with_dropout({x, (*dx)[1], primals[3]}), true, false, caller(), s);
      gradients.push_back(mx::astype(da, a.dtype(), s));
    } else if (i == 2) {
      const auto db =
          launch_outer(call_, {dy, outputs[1], primals[3]}, false, !dx.has_value(), caller(), s);
      gradients.push_back(mx::astype(db, b.dtype(), s));
    } else {
      gradients.push_back(mx::zeros_like(primals[i], s));
    }
  }
  return gradients;
}

std::pair<Arrays, std::vector<int>> MetalForward::vmap(const Arrays& inputs,
                                                       const std::vector<int>& axes) {
  const bool only_x = std::all_of(axes.begin() + 1, axes.end(), [](int axis) { return axis < 0; });
  // Dropout counts elements of x: a batch folded into rows would get other masks.
  if (!only_x || call_.dropout > 0) return FusedPrimitive::vmap(inputs, axes);
  const mx::Stream s = stream();
  Arrays folded = batch_first(inputs, axes);
  const mx::Shape batch = folded[0].shape();
  folded[0] = as_rows(folded[0], s);
  Arrays outputs = launch_forward(call_, folded, caller(), s);
  for (mx::array& output : outputs) {
    output = mx::reshape(output, with_last(batch, output.shape(-1)), s);
  }
  return {outputs, {0, 0}};
}

}  // namespace

Support supports_metal(const LoraCall& call, const Arrays& inputs) {
  if (!fused_enabled()) return Support::no("fusion is turned off");
  if (auto support = dtypes_known(inputs, call.seed()); !support) return support;
  if (call.has_weight()) return Support::no("Metal kernels for lora_linear are not there yet");
  return metal::supports(shape_of(inputs[0], inputs[1], inputs[2], metal::Drops::kNothing));
}

mx::array metal_lora(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                     mx::Stream s) {
  Arrays launched{as_rows(inputs[0], s), inputs[1], inputs[2], mx::array(call.scaling)};
  for (const mx::array& input : dropout_inputs(call, inputs, s)) launched.push_back(input);
  const mx::array y = launch_forward(call, launched, caller, s)[0];
  return mx::reshape(y, with_last(inputs[0].shape(), inputs[2].shape(1)), s);
}

}  // namespace graft::mlx::detail
