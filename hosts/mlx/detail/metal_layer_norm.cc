#include "graft/mlx/detail/metal_layer_norm.h"

#include <memory>
#include <utility>

#include "graft/metal_layer_norm.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/metal_rows.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

// What all launches of one call know.
struct Norm {
  bool weight, bias;
  float eps;
  std::function<mx::array(const LayerNormCall&)> composed;
  Caller caller;
  mx::Stream s;

  // Among the inputs forward, where there is one.
  int bias_index() const { return weight ? 2 : 1; }
};

std::optional<DType> dtype_of(const std::optional<mx::array>& vector) {
  return vector ? detail::dtype_of(vector->dtype()) : std::nullopt;
}

metal::LayerNorm shape_of(const LayerNormCall& call) {
  return {rows_of(call.x.shape()), call.x.shape(-1), *detail::dtype_of(call.x.dtype()),
          dtype_of(call.weight), dtype_of(call.bias)};
}

// The call that inputs forward, x, [weight], [bias], ..., are of.
LayerNormCall call_of(const Norm& norm, const Arrays& in) {
  LayerNormCall call{in[0], std::nullopt, std::nullopt, norm.eps};
  if (norm.weight) call.weight = in[1];
  if (norm.bias) call.bias = in[static_cast<std::size_t>(norm.bias_index())];
  return call;
}

struct Moments {
  mx::array mean, rstd, normal;  // (..., 1), (..., 1), (..., features), all float32
};

Moments composed_moments(const mx::array& x, const Norm& norm) {
  const mx::array wide = mx::astype(x, mx::float32, norm.s);
  const mx::array mean = mx::mean(wide, -1, true, norm.s);
  const mx::array apart = mx::subtract(wide, mean, norm.s);
  const mx::array variance = mx::mean(mx::square(apart, norm.s), -1, true, norm.s);
  const mx::array rstd = mx::rsqrt(mx::add(variance, mx::array(norm.eps), norm.s), norm.s);
  return {mean, rstd, mx::multiply(apart, rstd, norm.s)};
}

// Inputs: dy, x, mean, rstd, [weight]. Output: dx. Composed, mean and rstd are made again from x,
// so that derivatives of this see all of x; and so below.
std::shared_ptr<const RowLaunch> backward(const Norm& norm) {
  const auto call = [norm](const Arrays& in) {
    return LayerNormCall{in[1], norm.weight ? std::optional(in[4]) : std::nullopt, std::nullopt,
                         norm.eps};
  };
  RowLaunch launch;
  launch.pass = Pass::kBackward;
  launch.has_rows = {true, true, true, true};
  if (norm.weight) launch.has_rows.push_back(false);
  launch.call = [call](const Arrays& in) { return metal::layer_norm_backward(shape_of(call(in))); };
  launch.outputs = [](const Arrays& in) { return Outputs{{in[1].shape()}, {in[1].dtype()}}; };
  launch.composed = [norm, call](const Arrays& in) {
    const auto y = [&](const Arrays& v) {
      LayerNormCall of_x = call(in);
      of_x.x = v[0];
      return Arrays{norm.composed(of_x)};
    };
    return mx::vjp(y, {in[1]}, {in[0]}).second;
  };
  return std::make_shared<const RowLaunch>(std::move(launch));
}

// {dweight, dbias}; of what there is not, or is not asked for, nothing is evaluated.
Arrays affine_gradients(const Norm& norm, const LayerNormCall& call, const Arrays& inputs,
                        bool counts) {
  const metal::LayerNorm shape = shape_of(call);
  RowSums sums;
  sums.rows = shape.rows;
  sums.features = call.x.shape(-1);
  sums.dtypes = {call.weight ? call.weight->dtype() : mx::float32,
                 call.bias ? call.bias->dtype() : mx::float32};
  sums.counts = counts;
  sums.call = metal::layer_norm_sums(shape);
  sums.terms = [norm](const Arrays& in) {
    return Arrays{mx::multiply(in[0], composed_moments(in[1], norm).normal, norm.s), in[0]};
  };
  const Arrays flat{as_matrix(inputs[0], norm.s), as_matrix(inputs[1], norm.s),
                    as_column(inputs[2], norm.s), as_column(inputs[3], norm.s)};
  return launch_sums(sums, flat, norm.caller, norm.s);
}

// Cotangents of mean and rstd are not looked at: no caller sees those.
Arrays gradients(const Norm& norm, const Arrays& primals, const Arrays& cotangents,
                 const std::vector<int>& argnums, const Arrays& outputs) {
  const LayerNormCall call = call_of(norm, primals);
  const Arrays inputs{cotangents[0], call.x, outputs[1], outputs[2]};
  const auto is_weight = [&](int i) { return norm.weight && i == 1; };
  const auto is_bias = [&](int i) { return norm.bias && i == norm.bias_index(); };
  std::optional<Arrays> affine;
  if ((norm.weight && asks_for(argnums, 1)) ||
      (norm.bias && asks_for(argnums, norm.bias_index()))) {
    affine = affine_gradients(norm, call, inputs, !asks_for(argnums, 0));
  }
  Arrays results;
  for (const int i : argnums) {
    if (i == 0) {
      Arrays of_dx = inputs;
      if (norm.weight) of_dx.push_back(*call.weight);
      results.push_back(launch_rows(backward(norm), of_dx, norm.caller, norm.s)[0]);
    } else if (is_weight(i) || is_bias(i)) {
      results.push_back((*affine)[is_weight(i) ? 0 : 1]);
    } else {
      results.push_back(mx::zeros_like(primals[static_cast<std::size_t>(i)], norm.s));
    }
  }
  return results;
}

// Inputs: x, [weight], [bias], eps, of which nobody asks the gradient. Outputs: y, mean, rstd.
std::shared_ptr<const RowLaunch> forward(const Norm& norm) {
  RowLaunch launch;
  launch.has_rows.assign(2 + (norm.weight ? 1 : 0) + (norm.bias ? 1 : 0), false);
  launch.has_rows[0] = true;
  launch.call = [norm](const Arrays& in) {
    return metal::layer_norm_forward(shape_of(call_of(norm, in)));
  };
  launch.outputs = [](const Arrays& in) {
    mx::Shape of_rows = in[0].shape();
    of_rows.pop_back();
    return Outputs{{in[0].shape(), of_rows, of_rows}, {in[0].dtype(), mx::float32, mx::float32}};
  };
  launch.composed = [norm](const Arrays& in) {
    const Moments moments = composed_moments(in[0], norm);
    return Arrays{norm.composed(call_of(norm, in)), mx::squeeze(moments.mean, -1, norm.s),
                  mx::squeeze(moments.rstd, -1, norm.s)};
  };
  launch.gradients = [norm](const Arrays& primals, const Arrays& cotangents,
                            const std::vector<int>& argnums, const Arrays& outputs) {
    return gradients(norm, primals, cotangents, argnums, outputs);
  };
  return std::make_shared<const RowLaunch>(std::move(launch));
}

}  // namespace

Support layer_norm_on_metal(const LayerNormCall& call) {
  Arrays inputs{call.x};
  if (call.weight) inputs.push_back(*call.weight);
  if (call.bias) inputs.push_back(*call.bias);
  if (auto support = takes_on_metal(inputs); !support) return support;
  return metal::supports(shape_of(call));
}

mx::array metal_layer_norm(const LayerNormCall& call,
                           const std::function<mx::array(const LayerNormCall&)>& composed,
                           const Caller& caller, mx::Stream s) {
  Arrays inputs{at_least_matrix(call.x, s)};
  if (call.weight) inputs.push_back(*call.weight);
  if (call.bias) inputs.push_back(*call.bias);
  inputs.push_back(mx::array(call.eps));
  const Norm norm{call.weight.has_value(), call.bias.has_value(), call.eps, composed, caller, s};
  return mx::reshape(launch_rows(forward(norm), inputs, caller, s)[0], call.x.shape(), s);
}

}  // namespace graft::mlx::detail
