#include "graft/mlx/detail/metal_linear.h"

#include <memory>
#include <optional>
#include <utility>

#include "graft/metal_lora.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/metal_adapter.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

// What is multiplied: the weight's type, for everything.
mx::Dtype multiply_type(const mx::array& x, const mx::array& w) {
  return w.dtype() == mx::float16 ? x.dtype() : w.dtype();
}

// `transposed`: y = x·Wᵀ, forward; else dx = dy·W.
metal::LoraLinear shape_of(const mx::array& x, const mx::array& w, bool transposed) {
  metal::LoraLinear shape;
  shape.rows = rows_of(x.shape());
  shape.depth = x.shape(-1);
  shape.columns = w.shape(transposed ? 0 : 1);
  shape.x = *dtype_of(x.dtype());
  shape.multiply = *dtype_of(multiply_type(x, w));
  shape.transposed = transposed;
  return shape;
}

std::shared_ptr<const RowLaunch> shared(RowLaunch launch) {
  return std::make_shared<const RowLaunch>(std::move(launch));
}

// ---- the base alone ----

// dx = dy·W. Inputs: dy, W.
mx::array launch_base_dx(const mx::array& dy, const mx::array& w, const Caller& caller,
                         mx::Stream s) {
  RowLaunch launch;
  launch.pass = Pass::kBackward;
  launch.has_rows = {true, false};
  launch.call = [](const Arrays& in) { return metal::lora_linear(shape_of(in[0], in[1], false)); };
  launch.outputs = [](const Arrays& in) {
    return Outputs{{{in[0].shape(0), in[1].shape(1)}}, {in[0].dtype()}};
  };
  launch.composed = [s](const Arrays& in) {
    return Arrays{composed_product(in[0], mx::transpose(in[1], s), s)};
  };
  launch.flat = true;
  return launch_rows(shared(std::move(launch)), {dy, w}, caller, s)[0];
}

// Inputs: x, W, [bias]. Output: y.
RowLaunch base_launch(const LinearCall& call, const Caller& caller, mx::Stream s) {
  RowLaunch launch;
  launch.has_rows = {true, false};
  if (call.bias) launch.has_rows.push_back(false);
  launch.call = [bias = call.bias](const Arrays& in) {
    metal::LoraLinear shape = shape_of(in[0], in[1], true);
    shape.bias = bias;
    return metal::lora_linear(shape);
  };
  launch.outputs = [](const Arrays& in) {
    return Outputs{{{in[0].shape(0), in[1].shape(0)}}, {in[0].dtype()}};
  };
  launch.composed = [call, s](const Arrays& in) { return Arrays{composed_linear(call, in, s)}; };
  launch.gradients = [caller, s](const Arrays& primals, const Arrays& cotangents,
                                 const std::vector<int>& argnums, const Arrays&) {
    const mx::array &x = primals[0], &w = primals[1], &dy = cotangents[0];
    Arrays results;
    for (const int i : argnums) {
      results.push_back(i == 0   ? launch_base_dx(dy, w, caller, s)
                        : i == 1 ? weight_gradient(x, dy, w.dtype(), s)
                                 : bias_gradient(dy, primals[2].dtype(), s));
    }
    return results;
  };
  launch.flat = true;
  return launch;
}

// ---- with an adapter ----

// h = drop(x)·A, or g = dy·Bᵀ, of a launch of its own, not to be differentiated: the derivatives of
// what reads it make it again.
mx::array launch_shrink(const LoraCall& call, const mx::array& x, const mx::array& a,
                        mx::Dtype multiply, const Arrays& dropout, const Caller& caller, Pass pass,
                        mx::Stream s) {
  Arrays inputs{mx::stop_gradient(x, s), mx::stop_gradient(a, s)};
  inputs.insert(inputs.end(), dropout.begin(), dropout.end());
  RowLaunch launch;
  launch.pass = pass;
  launch.has_rows.resize(inputs.size());
  launch.has_rows[0] = true;
  launch.call = [multiply](const Arrays& in) {
    metal::LoraShrink shrink;
    shrink.rows = in[0].shape(0);
    shrink.in_features = in[1].shape(0);
    shrink.rank = in[1].shape(1);
    shrink.x = *dtype_of(in[0].dtype());
    shrink.multiply = *dtype_of(multiply);
    shrink.dropout = in.size() > 2;
    return metal::lora_shrink(shrink);
  };
  launch.outputs = [](const Arrays& in) {
    return Outputs{{{in[0].shape(0), in[1].shape(1)}}, {mx::float32}};
  };
  launch.composed = [call, s](const Arrays& in) {
    return Arrays{product(dropped(call, in[0], Arrays(in.begin() + 2, in.end()), s), in[1], s)};
  };
  launch.counts = false;
  launch.flat = true;
  launch.folds = dropout.empty();
  return launch_rows(shared(std::move(launch)), inputs, caller, s)[0];
}

// dx = dy·W + drop(scaling·g·Aᵀ). Inputs: dy, W, g, Aᵀ, scaling, [dropout], and the sources.
mx::array launch_dx(const LoraCall& call, const mx::array& g, const mx::array& w,
                    const Sources& sources, const Caller& caller, mx::Stream s) {
  Arrays inputs{sources.dy, w, g, mx::transpose(sources.a, s), mx::array(call.scaling)};
  inputs.insert(inputs.end(), sources.dropout.begin(), sources.dropout.end());
  RowLaunch launch;
  launch.pass = Pass::kBackward;
  launch.read = inputs.size();
  launch.has_rows = sources.has_rows(launch.read, {2});
  launch.call = [drops = call.dropout > 0](const Arrays& in) {
    metal::LoraLinear shape = shape_of(in[0], in[1], false);
    shape.rank = in[2].shape(1);
    shape.dropout = drops;
    return metal::lora_linear(shape);
  };
  launch.outputs = [](const Arrays& in) {
    return Outputs{{{in[0].shape(0), in[1].shape(1)}}, {in[0].dtype()}};
  };
  launch.composed = [call, s, read = launch.read](const Arrays& in) {
    const Sources all = Sources::of(in, read);
    const auto base = composed_product(all.dy, mx::transpose(in[1], s), s);
    return Arrays{mx::astype(mx::add(base, all.pair(call, s), s), all.dy.dtype(), s)};
  };
  launch.flat = true;
  launch.folds = call.dropout == 0;
  sources.append_to(inputs);
  return launch_rows(shared(std::move(launch)), inputs, caller, s)[0];
}

// Where the inputs of the forward launch are: those its kernel reads, and behind them what only its
// derivatives do. The kernel reads h, or A if it makes h itself.
struct LinearInputs {
  std::size_t x = 0, w = 1, h = 2, b = 3, scaling = 4, bias = 5, dropout = 5, a = 2;

  LinearInputs(const LoraCall& call, bool shrinks) {
    dropout = bias + (call.bias ? 1u : 0u);
    if (!shrinks) a = dropout + (call.dropout > 0 ? 4u : 0u);
  }
  bool shrinks() const { return a == h; }
  std::size_t read() const { return dropout; }
  std::size_t count() const { return shrinks() ? dropout : a + 1; }
  std::size_t end_of_dropout() const { return shrinks() ? dropout : a; }
};

// {x, w, ...} as the kernel takes them; forward, so that a mask is on x and so in h.
metal::LoraLinear forward_shape(const LoraCall& call, const mx::array& x, const mx::array& w,
                                int rank) {
  metal::LoraLinear shape = shape_of(x, w, true);
  shape.rank = rank;
  shape.bias = call.bias;
  return shape;
}

Arrays gradients(const LoraCall& call, const LinearInputs& at, const Arrays& primals,
                 const mx::array& dy, const mx::array& h, const std::vector<int>& argnums,
                 const Caller& caller, mx::Stream s) {
  const auto asked = [&](std::size_t i) { return asks_for(argnums, static_cast<int>(i)); };
  const mx::array &x = primals[at.x], &w = primals[at.w], &b = primals[at.b];
  const Sources sources{x, primals[at.a], b, dy,
                        Arrays(primals.begin() + static_cast<int>(at.dropout),
                               primals.begin() + static_cast<int>(at.end_of_dropout()))};
  std::optional<mx::array> g;
  if (asked(at.x) || asked(at.a)) {
    g = launch_shrink(call, dy, mx::transpose(b, s), multiply_type(x, w), {}, caller,
                      Pass::kBackward, s);
  }
  Arrays results;
  for (const int argnum : argnums) {
    const auto i = static_cast<std::size_t>(argnum);
    if (i == at.x) {
      results.push_back(launch_dx(call, *g, w, sources, caller, s));
    } else if (i == at.a) {
      results.push_back(launch_da(call, *g, sources, !asked(at.x), caller, s));
    } else if (i == at.b) {
      results.push_back(launch_db(call, h, sources, !g, caller, s));
    } else if (i == at.w) {
      results.push_back(weight_gradient(x, dy, w.dtype(), s));
    } else if (call.bias && i == at.bias) {
      results.push_back(bias_gradient(dy, primals[i].dtype(), s));
    } else {
      results.push_back(mx::zeros_like(primals[i], s));
    }
  }
  return results;
}

// y = x·Wᵀ + bias + scaling·h·B, and h if the kernel makes it.
RowLaunch linear_launch(const LoraCall& call, const LinearInputs& at, const Caller& caller,
                        mx::Stream s) {
  RowLaunch launch;
  launch.read = at.read();
  launch.has_rows.resize(at.count());
  launch.has_rows[at.x] = true;
  if (!at.shrinks()) launch.has_rows[at.h] = true;
  launch.call = [call, at](const Arrays& in) {
    metal::LoraLinear shape = forward_shape(call, in[at.x], in[at.w], in[at.b].shape(0));
    shape.shrinks = at.shrinks();
    return metal::lora_linear(shape);
  };
  launch.outputs = [at](const Arrays& in) {
    const int rows = in[at.x].shape(0);
    Outputs outputs{{{rows, in[at.w].shape(0)}}, {in[at.x].dtype()}};
    if (at.shrinks()) outputs.shapes.push_back({rows, in[at.b].shape(0)});
    if (at.shrinks()) outputs.dtypes.push_back(mx::float32);
    return outputs;
  };
  launch.composed = [call, at, s](const Arrays& in) {
    Arrays operands{in[at.x], in[at.a], in[at.b], in[at.w]};
    if (call.bias) operands.push_back(in[at.bias]);
    if (call.dropout > 0) operands.insert(operands.end(), {in[at.dropout], in[at.dropout + 1]});
    Arrays outputs = composed_lora(call, operands, s);
    if (!at.shrinks()) outputs.pop_back();
    return outputs;
  };
  launch.gradients = [call, at, caller, s](const Arrays& primals, const Arrays& cotangents,
                                           const std::vector<int>& argnums, const Arrays& outputs) {
    const mx::array& h = at.shrinks() ? outputs[1] : primals[at.h];
    return gradients(call, at, primals, cotangents[0], h, argnums, caller, s);
  };
  launch.flat = true;
  launch.folds = call.dropout == 0;
  return launch;
}

// {y, h} of x, W, A, B, [bias], [dropout].
Arrays launch_linear(const LoraCall& call, const Arrays& operands, const Arrays& dropout,
                     const Caller& caller, mx::Stream s) {
  const mx::array &x = operands[0], &w = operands[1], &a = operands[2], &b = operands[3];
  const metal::LoraLinear shape = forward_shape(call, x, w, b.shape(0));
  const LinearInputs at(call, dropout.empty() && metal::shrinks_within(shape));
  const mx::array h = at.shrinks() ? a
                                   : launch_shrink(call, x, a, multiply_type(x, w), dropout, caller,
                                                   Pass::kForward, s);
  Arrays inputs{x, w, h, b, mx::array(call.scaling)};
  if (call.bias) inputs.push_back(operands[4]);
  inputs.insert(inputs.end(), dropout.begin(), dropout.end());
  RowLaunch launch = linear_launch(call, at, caller, s);
  if (at.shrinks()) {
    launch.of_more = [call, caller, s](const Arrays& in) {
      Arrays more{in[0], in[1], in[2], in[3]};
      if (call.bias) more.push_back(in[5]);
      return launch_linear(call, more, {}, caller, s);
    };
  } else {
    inputs.push_back(a);
  }
  Arrays outputs = launch_rows(shared(std::move(launch)), inputs, caller, s);
  if (!at.shrinks()) outputs.push_back(h);
  return outputs;
}

Support packed_for_cpu() { return Support::no("the weight is packed for the CPU"); }

}  // namespace

Support linear_on_metal(const LinearCall& call, const Arrays& inputs) {
  if (auto support = takes_on_metal(inputs); !support) return support;
  if (!call.plain()) return packed_for_cpu();
  return metal::supports(shape_of(inputs[0], inputs[1], true));
}

Support lora_linear_on_metal(const LoraCall& call, const Arrays& inputs) {
  const Arrays floats(inputs.begin(), inputs.begin() + static_cast<int>(call.seed()));
  if (auto support = takes_on_metal(floats); !support) return support;
  if (!call.plain) return packed_for_cpu();
  metal::LoraLinear shape = shape_of(inputs[0], inputs[call.w()], true);
  shape.rank = inputs[1].shape(1);
  return metal::supports(shape);
}

// With nothing to sum over, y is the bias: not what an empty launch gives.
mx::array metal_linear(const LinearCall& call, const Arrays& inputs, const Caller& caller,
                       mx::Stream s) {
  if (any_empty(inputs)) return composed_linear(call, inputs, s);
  return launch_rows(shared(base_launch(call, caller, s)), inputs, caller, s)[0];
}

mx::array metal_lora_linear(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                            mx::Stream s) {
  if (any_empty(inputs)) return composed_lora(call, inputs, s)[0];
  Arrays operands{inputs[0], inputs[call.w()], inputs[1], inputs[2]};
  if (call.bias) operands.push_back(inputs[call.bias_index()]);
  return launch_linear(call, operands, dropout_inputs(call, inputs, s), caller, s)[0];
}

}  // namespace graft::mlx::detail
