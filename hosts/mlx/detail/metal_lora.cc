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

// Seed and offset as kernels read them, and what else they want for dropout. Nothing without
// dropout.
Arrays dropout_inputs(const LoraCall& call, const Arrays& primals, mx::Stream s) {
  if (call.dropout == 0) return {};
  return {mx::reshape(primals[call.seed()], {}, s), mx::reshape(primals[call.offset()], {}, s),
          mx::array(dropout_threshold(call.dropout)), mx::array(1.0f / (1.0f - call.dropout))};
}

// Where those begin among lora_delta's inputs.
constexpr std::size_t kDeltaDropout = 4;

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

// x with dropout, whose seed and offset are at `at` if there is dropout.
mx::array dropped(const LoraCall& call, const mx::array& x, const Arrays& arrays, std::size_t at,
                  mx::Stream s) {
  return call.dropout > 0 ? composed_dropout(x, call.dropout, arrays[at], arrays[at + 1], s) : x;
}

mx::array product(const mx::array& left, const mx::array& right, mx::Stream s) {
  return mx::matmul(mx::astype(left, mx::float32, s), mx::astype(right, mx::float32, s), s);
}

// What all derivatives of a backward launch are of. Its kernel reads h or g, which were made from
// these; the derivatives make them again, so they see all that the gradient depends on. They stand
// behind what the kernel reads: x, A, B, dy, [seed, offset].
struct Sources {
  mx::array x, a, b, dy;
  Arrays dropout;  // seed and offset first

  void append_to(Arrays& inputs) const {
    inputs.insert(inputs.end(), {x, a, b, dy});
    if (!dropout.empty()) inputs.insert(inputs.end(), {dropout[0], dropout[1]});
  }
  static Sources of(const Arrays& inputs, std::size_t at) {
    return {inputs[at], inputs[at + 1], inputs[at + 2], inputs[at + 3],
            Arrays(inputs.begin() + static_cast<int>(at + 4), inputs.end())};
  }
  mx::array g(mx::Stream s) const { return product(dy, mx::transpose(b, s), s); }
  mx::array dropped_x(const LoraCall& call, mx::Stream s) const {
    return dropped(call, x, dropout, 0, s);
  }
  // What the pair adds to dx.
  mx::array pair(const LoraCall& call, mx::Stream s) const {
    const auto plain =
        mx::multiply(product(g(s), mx::transpose(a, s), s), mx::array(call.scaling), s);
    return dropped(call, plain, dropout, 0, s);
  }
};

Outputs outputs_of(const Arrays& inputs) {
  const int rows = inputs[0].shape(0);
  return {{{rows, inputs[2].shape(1)}, {rows, inputs[1].shape(1)}},
          {inputs[0].dtype(), mx::float32}};
}

bool is_empty(const Arrays& inputs) {
  return inputs[0].size() == 0 || inputs[1].size() == 0 || inputs[2].size() == 0;
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
      [=](const Arrays& p) {
        const mx::array x = dropped(call, p[0], p, kDeltaDropout, s);
        const auto y = composed_delta(x, p[1], p[2], call.scaling, s);
        return Arrays{mx::astype(y, x.dtype(), s), product(x, p[1], s)};
      });
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs);
}

// {dx, g}. Inputs: dy, transposed B, transposed A, scaling, [dropout_inputs].
Arrays launch_dx(const LoraCall& call, Arrays inputs, const Sources& sources, const Caller& caller,
                 mx::Stream s) {
  const auto drops = call.dropout > 0 ? metal::Drops::kOutput : metal::Drops::kNothing;
  const Outputs outputs = outputs_of(inputs);
  if (is_empty(inputs)) return zeros(outputs, s);
  const auto shape = shape_of(inputs[0], inputs[1], inputs[2], drops);
  auto kernel = kernel_of(metal::lora_delta(shape), inputs, outputs, s);
  const std::size_t read = inputs.size();
  sources.append_to(inputs);
  const auto composed = [=](const Arrays& p) {
    const Sources all = Sources::of(p, read);
    return Arrays{mx::astype(all.pair(call, s), all.dy.dtype(), s), all.g(s)};
  };
  auto node = std::make_shared<MetalNode>(s, caller, Direction::kBackward, true, std::move(kernel),
                                          composed, read);
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs);
}

// The gradient of A, of x and g, or that of B, of dy and h: float32. Inputs: those two, scaling,
// [dropout_inputs] with x.
mx::array launch_outer(const LoraCall& call, Arrays inputs, const Sources& sources, bool of_a,
                       bool counts, const Caller& caller, mx::Stream s) {
  const mx::array &matrix = inputs[0], &coefficients = inputs[1];
  const int columns = matrix.shape(1), rank = coefficients.shape(1);
  const Outputs outputs{{of_a ? mx::Shape{columns, rank} : mx::Shape{rank, columns}},
                        {mx::float32}};
  if (matrix.size() == 0) return zeros(outputs, s)[0];
  metal::LoraOuter outer;
  outer.rows = matrix.shape(0);
  outer.columns = columns;
  outer.rank = rank;
  outer.matrix = *dtype_of(matrix.dtype());
  outer.dropout = of_a && call.dropout > 0;
  outer.by_column = of_a;
  auto kernel = kernel_of(metal::lora_outer(outer), inputs, outputs, s);
  const std::size_t read = inputs.size();
  sources.append_to(inputs);
  const auto composed = [=](const Arrays& p) {
    const Sources all = Sources::of(p, read);
    const mx::array x = all.dropped_x(call, s);
    const auto gradient = of_a ? product(mx::transpose(x, s), all.g(s), s)
                               : product(mx::transpose(product(x, all.a, s), s), all.dy, s);
    return Arrays{mx::multiply(gradient, mx::array(call.scaling), s)};
  };
  auto node = std::make_shared<MetalNode>(s, caller, Direction::kBackward, counts,
                                          std::move(kernel), composed, read);
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs)[0];
}

// h's cotangent is not looked at: no caller sees h. The backward launch is counted once.
Arrays MetalForward::vjp(const Arrays& primals, const Arrays& cotangents,
                         const std::vector<int>& argnums, const Arrays& outputs) {
  const mx::Stream s = stream();
  const mx::array &x = primals[0], &a = primals[1], &b = primals[2], &dy = cotangents[0];
  const Arrays dropout(primals.begin() + kDeltaDropout, primals.end());
  const auto with_dropout = [&](Arrays inputs) {
    inputs.insert(inputs.end(), dropout.begin(), dropout.end());
    return inputs;
  };
  const Sources sources{x, a, b, dy, dropout};
  std::optional<Arrays> dx;
  if (asks_for(argnums, 0) || asks_for(argnums, 1)) {
    dx = launch_dx(call_, with_dropout({dy, mx::transpose(b, s), mx::transpose(a, s), primals[3]}),
                   sources, caller(), s);
  }
  Arrays gradients;
  for (const int argnum : argnums) {
    const auto i = static_cast<std::size_t>(argnum);
    if (i == 0) {
      gradients.push_back((*dx)[0]);
    } else if (i == 1) {
      const auto da = launch_outer(call_, with_dropout({x, (*dx)[1], primals[3]}), sources, true,
                                   false, caller(), s);
      gradients.push_back(mx::astype(da, a.dtype(), s));
    } else if (i == 2) {
      const auto db = launch_outer(call_, {dy, outputs[1], primals[3]}, sources, false,
                                   !dx.has_value(), caller(), s);
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
  folded[0] = as_matrix(folded[0], s);
  Arrays outputs = launch_forward(call_, folded, caller(), s);
  for (mx::array& output : outputs) {
    output = mx::reshape(output, with_last(batch, output.shape(-1)), s);
  }
  return {outputs, {0, 0}};
}

// What is multiplied: the weight's type, for everything.
mx::Dtype multiply_type(const mx::array& x, const mx::array& w) {
  return w.dtype() == mx::float16 ? x.dtype() : w.dtype();
}

metal::LoraLinear linear_shape(const mx::array& x, const mx::array& w, bool transposed) {
  metal::LoraLinear shape;
  shape.rows = rows_of(x.shape());
  shape.depth = x.shape(-1);
  shape.columns = w.shape(transposed ? 0 : 1);
  shape.x = *dtype_of(x.dtype());
  shape.multiply = *dtype_of(multiply_type(x, w));
  shape.transposed = transposed;
  return shape;
}

// h = drop(x)·A of a launch of its own, not to be differentiated: the derivatives of what reads it
// make it again.
mx::array launch_shrink(const LoraCall& call, const mx::array& x, const mx::array& a,
                        const mx::array& w, const Arrays& dropout, const Caller& caller,
                        Direction direction, mx::Stream s) {
  const Outputs outputs{{{x.shape(0), a.shape(1)}}, {mx::float32}};
  if (x.size() == 0 || a.size() == 0) return zeros(outputs, s)[0];
  metal::LoraShrink shrink;
  shrink.rows = x.shape(0);
  shrink.in_features = a.shape(0);
  shrink.rank = a.shape(1);
  shrink.x = *dtype_of(x.dtype());
  shrink.multiply = *dtype_of(multiply_type(x, w));
  shrink.dropout = !dropout.empty();
  Arrays inputs{mx::stop_gradient(x, s), mx::stop_gradient(a, s)};
  inputs.insert(inputs.end(), dropout.begin(), dropout.end());
  const auto composed = [=](const Arrays& p) {
    const mx::array dropped =
        p.size() > 2 ? composed_dropout(p[0], call.dropout, p[2], p[3], s) : p[0];
    return Arrays{
        mx::matmul(mx::astype(dropped, mx::float32, s), mx::astype(p[1], mx::float32, s), s)};
  };
  auto node = std::make_shared<MetalNode>(s, caller, direction, false,
                                          kernel_of(metal::lora_shrink(shrink), inputs, outputs, s),
                                          composed);
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs)[0];
}

// Where the inputs of a MetalLinear are: those its kernel reads, and behind them what only its
// derivatives do.
struct LinearInputs {
  std::size_t x = 0, w = 1, h = 2, b = 3, scaling = 4, bias = 5, dropout = 5, a = 5;

  explicit LinearInputs(const LoraCall& call) {
    dropout = bias + (call.bias ? 1u : 0u);
    a = dropout + (call.dropout > 0 ? 4u : 0u);
  }
};

// One launch of lora_linear, whose gradients have kernels. h is made from x and A before it, and is
// not differentiated: the derivatives here are of all that y depends on.
class MetalLinear : public MetalNode {
 public:
  MetalLinear(LoraCall call, mx::Stream stream, const Caller& caller,
              std::shared_ptr<mx::Primitive> kernel, ArraysFunction composed, std::size_t read)
      : MetalNode(stream, caller, Direction::kForward, true, std::move(kernel), std::move(composed),
                  read),
        call_(std::move(call)) {}

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override;

 private:
  LoraCall call_;
};

// y of x, W, A, B, [bias], [dropout_inputs]: arrays of rows.
mx::array launch_linear(const LoraCall& call, const mx::array& x, const mx::array& a,
                        const mx::array& b, const mx::array& w,
                        const std::optional<mx::array>& bias, const Arrays& dropout,
                        const Caller& caller, mx::Stream s) {
  const LinearInputs at(call);
  Arrays inputs{x, w, launch_shrink(call, x, a, w, dropout, caller, Direction::kForward, s), b,
                mx::array(call.scaling)};
  if (bias) inputs.push_back(*bias);
  // Forward, the mask is on x and so in h; the kernel itself has none.
  metal::LoraLinear shape = linear_shape(x, w, true);
  shape.rank = b.shape(0);
  shape.bias = bias.has_value();
  const Outputs outputs{{{x.shape(0), w.shape(0)}}, {x.dtype()}};
  auto kernel = kernel_of(metal::lora_linear(shape), inputs, outputs, s);
  const std::size_t read = inputs.size();
  inputs.insert(inputs.end(), dropout.begin(), dropout.end());
  inputs.push_back(a);
  const auto composed = [=](const Arrays& p) {
    Arrays operands{p[at.x], p[at.a], p[at.b], p[at.w]};
    if (call.bias) operands.push_back(p[at.bias]);
    if (call.dropout > 0) operands.insert(operands.end(), {p[at.dropout], p[at.dropout + 1]});
    return Arrays{composed_lora(call, operands, s)[0]};
  };
  auto node = std::make_shared<MetalLinear>(call, s, caller, std::move(kernel), composed, read);
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs)[0];
}

// dx = dy·W + drop(scaling·g·Aᵀ).
mx::array launch_linear_dx(const LoraCall& call, const mx::array& dy, const mx::array& g,
                           const mx::array& w, const Sources& sources, const Caller& caller,
                           mx::Stream s) {
  Arrays inputs{dy, w, g, mx::transpose(sources.a, s), mx::array(call.scaling)};
  inputs.insert(inputs.end(), sources.dropout.begin(), sources.dropout.end());
  metal::LoraLinear shape = linear_shape(dy, w, false);
  shape.rank = g.shape(1);
  shape.dropout = call.dropout > 0;
  const Outputs outputs{{{dy.shape(0), w.shape(1)}}, {dy.dtype()}};
  auto kernel = kernel_of(metal::lora_linear(shape), inputs, outputs, s);
  const std::size_t read = inputs.size();
  sources.append_to(inputs);
  const auto composed = [=](const Arrays& p) {
    const Sources all = Sources::of(p, read);
    const auto base = composed_product(all.dy, mx::transpose(p[1], s), s);
    return Arrays{mx::astype(mx::add(base, all.pair(call, s), s), all.dy.dtype(), s)};
  };
  auto node = std::make_shared<MetalNode>(s, caller, Direction::kBackward, true, std::move(kernel),
                                          composed, read);
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs)[0];
}

Arrays MetalLinear::vjp(const Arrays& primals, const Arrays& cotangents,
                        const std::vector<int>& argnums, const Arrays&) {
  const mx::Stream s = stream();
  const LinearInputs at(call_);
  const auto asked = [&](std::size_t i) { return asks_for(argnums, static_cast<int>(i)); };
  const mx::array &x = primals[at.x], &w = primals[at.w], &a = primals[at.a], &b = primals[at.b];
  const mx::array& dy = cotangents[0];
  const Arrays dropout(primals.begin() + static_cast<int>(at.dropout),
                       primals.begin() + static_cast<int>(at.a));
  const Sources sources{x, a, b, dy, dropout};
  std::optional<mx::array> g;
  if (asked(at.x) || asked(at.a)) {
    g = launch_shrink(call_, dy, mx::transpose(b, s), w, {}, caller(), Direction::kBackward, s);
  }
  Arrays gradients;
  for (const int argnum : argnums) {
    const auto i = static_cast<std::size_t>(argnum);
    if (i == at.x) {
      gradients.push_back(launch_linear_dx(call_, dy, *g, w, sources, caller(), s));
    } else if (i == at.a) {
      Arrays inputs{x, *g, primals[at.scaling]};
      inputs.insert(inputs.end(), dropout.begin(), dropout.end());
      const auto da = launch_outer(call_, inputs, sources, true, !asked(at.x), caller(), s);
      gradients.push_back(mx::astype(da, a.dtype(), s));
    } else if (i == at.b) {
      const bool counts = !asked(at.x) && !asked(at.a);
      const auto db = launch_outer(call_, {dy, primals[at.h], primals[at.scaling]}, sources, false,
                                   counts, caller(), s);
      gradients.push_back(mx::astype(db, b.dtype(), s));
    } else if (i == at.w) {
      gradients.push_back(weight_gradient(x, dy, w.dtype(), s));
    } else if (call_.bias && i == at.bias) {
      gradients.push_back(bias_gradient(dy, primals[i].dtype(), s));
    } else {
      gradients.push_back(mx::zeros_like(primals[i], s));
    }
  }
  return gradients;
}

}  // namespace

Support supports_metal(const LoraCall& call, const Arrays& inputs) {
  if (!fused_enabled()) return Support::no("fusion is turned off");
  if (auto support = dtypes_known(inputs, call.seed()); !support) return support;
  if (call.weight != nullptr) return Support::no("the weight is packed for the CPU");
  if (call.plain) {
    metal::LoraLinear shape = linear_shape(inputs[0], inputs[call.w()], true);
    shape.rank = inputs[1].shape(1);
    if (auto support = metal::supports(shape); !support) return support;
  }
  return metal::supports(shape_of(inputs[0], inputs[1], inputs[2], metal::Drops::kNothing));
}

mx::array metal_lora(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                     mx::Stream s) {
  const mx::array x = as_matrix(inputs[0], s);
  const mx::Shape shape = with_last(inputs[0].shape(), inputs[2].shape(1));
  const Arrays dropout = dropout_inputs(call, inputs, s);
  if (call.plain && !is_empty({x, inputs[1], inputs[2]})) {
    std::optional<mx::array> bias;
    if (call.bias) bias = inputs[call.bias_index()];
    return mx::reshape(
        launch_linear(call, x, inputs[1], inputs[2], inputs[call.w()], bias, dropout, caller, s),
        shape, s);
  }
  if (call.plain) return composed_lora(call, inputs, s)[0];
  Arrays launched{x, inputs[1], inputs[2], mx::array(call.scaling)};
  launched.insert(launched.end(), dropout.begin(), dropout.end());
  return mx::reshape(launch_forward(call, launched, caller, s)[0], shape, s);
}

}  // namespace graft::mlx::detail
