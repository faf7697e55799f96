#include "graft/mlx/detail/metal_rms_norm.h"

#include <memory>
#include <optional>
#include <utility>

#include "graft/metal_rms_norm.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/metal_rows.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

// What all launches of one call know.
struct Norm {
  float eps;
  ArraysFunction composed;  // {y, ...} of {x, weight, ...}
  Caller caller;
  mx::Stream s;
};

metal::RmsNorm shape_of(const mx::array& x, mx::Dtype weight, bool residual) {
  return {rows_of(x.shape()), x.shape(-1), *dtype_of(x.dtype()), *dtype_of(weight), residual};
}

mx::Shape without_last(mx::Shape shape) {
  shape.pop_back();
  return shape;
}

// (..., 1) float32 of s (..., features).
mx::array composed_rstd(const mx::array& values, const Norm& norm) {
  const mx::array wide = mx::astype(values, mx::float32, norm.s);
  const mx::array mean = mx::mean(mx::square(wide, norm.s), -1, true, norm.s);
  return mx::rsqrt(mx::add(mean, mx::array(norm.eps), norm.s), norm.s);
}

// Inputs: dy, s, weight, rstd, [dsum]. Output: ds. Composed, rstd is made again from s, so that
// derivatives of this see all of s; and so below.
std::shared_ptr<const RowLaunch> backward(const Norm& norm, bool residual) {
  RowLaunch launch;
  launch.pass = Pass::kBackward;
  launch.has_rows = {true, true, false, true};
  if (residual) launch.has_rows.push_back(true);
  launch.call = [residual](const Arrays& in) {
    return metal::rms_norm_backward(shape_of(in[0], in[2].dtype(), residual));
  };
  launch.outputs = [](const Arrays& in) { return Outputs{{in[1].shape()}, {in[1].dtype()}}; };
  launch.composed = [norm, residual](const Arrays& in) {
    const mx::Stream s = norm.s;
    const auto y = [&](const Arrays& v) {
      return Arrays{norm.composed({mx::astype(v[0], in[1].dtype(), s), in[2]})[0]};
    };
    const mx::array dy = mx::astype(in[0], y({in[1]})[0].dtype(), s);
    const mx::array ds = mx::vjp(y, {in[1]}, {dy}).second[0];
    return Arrays{residual ? mx::add(ds, in[4], s) : ds};
  };
  return std::make_shared<const RowLaunch>(std::move(launch));
}

// dy, s and rstd to dweight.
mx::array dweight(const Norm& norm, const mx::array& dy, const mx::array& values,
                  const mx::array& rstd, mx::Dtype dtype, bool counts) {
  RowSums sums;
  sums.rows = rows_of(dy.shape());
  sums.features = dy.shape(-1);
  sums.dtypes = {dtype};
  sums.counts = counts;
  sums.call = metal::rms_norm_dweight(shape_of(dy, dtype, false));
  sums.terms = [norm](const Arrays& in) {
    const mx::array wide = mx::multiply(in[1], composed_rstd(in[1], norm), norm.s);
    return Arrays{mx::multiply(in[0], wide, norm.s)};
  };
  const Arrays inputs{as_matrix(dy, norm.s), as_matrix(values, norm.s), as_column(rstd, norm.s)};
  return launch_sums(sums, inputs, norm.caller, norm.s)[0];
}

// rstd's cotangent is not looked at: no caller sees it.
Arrays gradients(const Norm& norm, const Arrays& primals, const Arrays& cotangents,
                 const std::vector<int>& argnums, const Arrays& outputs) {
  const bool residual = primals.size() == 4;
  const mx::array& values = residual ? outputs[1] : primals[0];
  const mx::array &weight = primals[1], &rstd = outputs.back();
  std::optional<mx::array> ds;
  if (asks_for(argnums, 0) || (residual && asks_for(argnums, 2))) {
    Arrays inputs{cotangents[0], values, weight, rstd};
    if (residual) inputs.push_back(cotangents[1]);
    ds = launch_rows(backward(norm, residual), inputs, norm.caller, norm.s)[0];
  }
  Arrays results;
  for (const int i : argnums) {
    if (i == 1) {
      results.push_back(dweight(norm, cotangents[0], values, rstd, weight.dtype(), !ds));
    } else if (i == 0 || (residual && i == 2)) {
      results.push_back(*ds);
    } else {
      results.push_back(mx::zeros_like(primals[static_cast<std::size_t>(i)], norm.s));
    }
  }
  return results;
}

// Inputs: x, weight, [residual], eps, of which nobody asks the gradient. Outputs: y, [sum], rstd.
std::shared_ptr<const RowLaunch> forward(const Norm& norm, bool residual) {
  RowLaunch launch;
  launch.has_rows = residual ? std::vector<bool>{true, false, true, false}
                             : std::vector<bool>{true, false, false};
  launch.call = [residual](const Arrays& in) {
    return metal::rms_norm_forward(shape_of(in[0], in[1].dtype(), residual));
  };
  launch.outputs = [residual](const Arrays& in) {
    Outputs outputs{{in[0].shape()}, {in[0].dtype()}};
    if (residual) outputs.shapes.push_back(in[0].shape());
    if (residual) outputs.dtypes.push_back(in[0].dtype());
    outputs.shapes.push_back(without_last(in[0].shape()));
    outputs.dtypes.push_back(mx::float32);
    return outputs;
  };
  launch.composed = [norm](const Arrays& in) {
    Arrays outputs = norm.composed(Arrays(in.begin(), in.end() - 1));
    const mx::array& values = outputs.size() == 2 ? outputs[1] : in[0];
    const mx::array rstd = mx::squeeze(composed_rstd(values, norm), -1, norm.s);
    outputs[0] = mx::astype(outputs[0], in[0].dtype(), norm.s);
    outputs.push_back(rstd);
    return outputs;
  };
  launch.gradients = [norm](const Arrays& primals, const Arrays& cotangents,
                            const std::vector<int>& argnums, const Arrays& outputs) {
    return gradients(norm, primals, cotangents, argnums, outputs);
  };
  return std::make_shared<const RowLaunch>(std::move(launch));
}

}  // namespace

Support rms_norm_on_metal(const Arrays& inputs) {
  if (auto support = takes_on_metal(inputs); !support) return support;
  return metal::supports(shape_of(inputs[0], inputs[1].dtype(), inputs.size() == 3));
}

Arrays metal_rms_norm(const Arrays& inputs, float eps, const ArraysFunction& composed,
                      const Caller& caller, mx::Stream s) {
  Arrays launched = inputs;
  launched[0] = at_least_matrix(inputs[0], s);
  if (inputs.size() == 3) launched[2] = at_least_matrix(inputs[2], s);
  launched.push_back(mx::array(eps));
  const Norm norm{eps, composed, caller, s};
  Arrays outputs = launch_rows(forward(norm, inputs.size() == 3), launched, caller, s);
  outputs.pop_back();
  for (mx::array& output : outputs) output = mx::reshape(output, inputs[0].shape(), s);
  return outputs;
}

}  // namespace graft::mlx::detail
