#include "graft/mlx/detail/metal_lora.h"

#include <memory>
#include <optional>
#include <utility>

#include "graft/metal_lora.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/metal_adapter.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

// Where dropout's inputs begin, if there are any.
constexpr std::size_t kDropout = 4;

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

// {y, h} of inputs that begin with x, A, B.
Outputs outputs_of(const Arrays& inputs) {
  const int rows = inputs[0].shape(0);
  return {{{rows, inputs[2].shape(1)}, {rows, inputs[1].shape(1)}},
          {inputs[0].dtype(), mx::float32}};
}

// What both directions have in common: the same kernels, of (x, A, B) or of (dy, Bᵀ, Aᵀ).
RowLaunch launch_of(const LoraCall& call, Pass pass) {
  RowLaunch launch;
  launch.pass = pass;
  const auto drops = call.dropout == 0        ? metal::Drops::kNothing
                     : pass == Pass::kForward ? metal::Drops::kInput
                                              : metal::Drops::kOutput;
  launch.call = [drops](const Arrays& in) {
    return metal::lora_delta(shape_of(in[0], in[1], in[2], drops));
  };
  launch.outputs = outputs_of;
  launch.flat = true;
  launch.folds = call.dropout == 0;  // dropout counts elements of x
  return launch;
}

// {dx, g}.
Arrays launch_dx(const LoraCall& call, const Sources& sources, const mx::array& scaling,
                 const Caller& caller, mx::Stream s) {
  Arrays inputs{sources.dy, mx::transpose(sources.b, s), mx::transpose(sources.a, s), scaling};
  inputs.insert(inputs.end(), sources.dropout.begin(), sources.dropout.end());
  RowLaunch launch = launch_of(call, Pass::kBackward);
  launch.read = inputs.size();
  launch.has_rows = sources.has_rows(launch.read, {});
  launch.composed = [call, s, read = launch.read](const Arrays& in) {
    const Sources all = Sources::of(in, read);
    return Arrays{mx::astype(all.pair(call, s), all.dy.dtype(), s), all.g(s)};
  };
  sources.append_to(inputs);
  return launch_rows(std::make_shared<const RowLaunch>(std::move(launch)), inputs, caller, s);
}

// h's cotangent is not looked at: no caller sees h.
Arrays gradients(const LoraCall& call, const Arrays& primals, const mx::array& dy,
                 const mx::array& h, const std::vector<int>& argnums, const Caller& caller,
                 mx::Stream s) {
  const Sources sources{primals[0], primals[1], primals[2], dy,
                        Arrays(primals.begin() + kDropout, primals.end())};
  std::optional<Arrays> dx;
  if (asks_for(argnums, 0) || asks_for(argnums, 1)) {
    dx = launch_dx(call, sources, primals[3], caller, s);
  }
  Arrays results;
  for (const int i : argnums) {
    if (i == 0) {
      results.push_back((*dx)[0]);
    } else if (i == 1) {
      results.push_back(launch_da(call, (*dx)[1], sources, false, caller, s));
    } else if (i == 2) {
      results.push_back(launch_db(call, h, sources, !dx, caller, s));
    } else {
      results.push_back(mx::zeros_like(primals[static_cast<std::size_t>(i)], s));
    }
  }
  return results;
}

}  // namespace

Support delta_on_metal(const Arrays& inputs) {
  if (auto support = takes_on_metal({inputs[0], inputs[1], inputs[2]}); !support) return support;
  return metal::supports(shape_of(inputs[0], inputs[1], inputs[2], metal::Drops::kNothing));
}

// Inputs of the launch: x, A, B, scaling, [dropout]. Outputs: y, h.
mx::array metal_delta(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                      mx::Stream s) {
  Arrays launched{inputs[0], inputs[1], inputs[2], mx::array(call.scaling)};
  const Arrays dropout = dropout_inputs(call, inputs, s);
  launched.insert(launched.end(), dropout.begin(), dropout.end());
  RowLaunch launch = launch_of(call, Pass::kForward);
  launch.has_rows.resize(launched.size());
  launch.has_rows[0] = true;
  launch.composed = [call, s](const Arrays& in) {
    const mx::array x = dropped(call, in[0], Arrays(in.begin() + kDropout, in.end()), s);
    const mx::array y = composed_delta(x, in[1], in[2], call.scaling, s);
    return Arrays{mx::astype(y, x.dtype(), s), product(x, in[1], s)};
  };
  launch.gradients = [call, caller, s](const Arrays& primals, const Arrays& cotangents,
                                       const std::vector<int>& argnums, const Arrays& outputs) {
    return gradients(call, primals, cotangents[0], outputs[1], argnums, caller, s);
  };
  return launch_rows(std::make_shared<const RowLaunch>(std::move(launch)), launched, caller, s)[0];
}

}  // namespace graft::mlx::detail
