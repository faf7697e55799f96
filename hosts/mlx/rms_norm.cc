#include "graft/mlx/rms_norm.h"

#include <mlx/fast.h>

#include <algorithm>

#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/metal_rms_norm.h"
#include "graft/mlx/detail/primitive.h"
#include "graft/mlx/detail/views.h"
#include "graft/rms_norm.h"

namespace graft::mlx {
namespace {

using detail::Arrays;

constexpr const char* kOp = "rms_norm";

mx::Shape without_last(mx::Shape shape) {
  shape.pop_back();
  return shape;
}

// {y} from x and weight, or {y, sum} from x, weight and residual.
Arrays composed_norm(const Arrays& inputs, float eps, mx::Stream s) {
  if (inputs.size() == 2) return {mx::fast::rms_norm(inputs[0], inputs[1], eps, s)};
  const auto sum = mx::add(inputs[0], inputs[2], s);
  return {mx::fast::rms_norm(sum, inputs[1], eps, s), sum};
}

// Inputs: dy, s, weight, rstd, [dsum]. Outputs: the wanted of ds and dweight, which is float32.
class Backward : public detail::FusedPrimitive {
 public:
  Backward(mx::Stream stream, const detail::Caller& caller, float eps, bool ds, bool dweight)
      : FusedPrimitive(stream, caller, Pass::kBackward), eps_(eps), ds_(ds), dweight_(dweight) {}

  static Arrays make(const Arrays& inputs, const detail::Caller& caller, float eps, bool ds,
                     bool dweight, mx::Stream s) {
    auto node = std::make_shared<Backward>(s, caller, eps, ds, dweight);
    std::vector<mx::Dtype> dtypes;
    if (ds) dtypes.push_back(inputs[1].dtype());
    if (dweight) dtypes.push_back(mx::float32);
    return mx::array::make_arrays(node->output_shapes(inputs), dtypes, node, inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    RmsNormBackward params;
    params.dy = detail::rows_view(inputs[0], stream(), true);
    params.s = detail::rows_view(inputs[1], stream(), true);
    params.weight = detail::flat_view(inputs[2], stream());
    params.eps = eps_;
    params.rstd = detail::flat_view(inputs[3], stream());
    if (inputs.size() == 5) params.dsum = detail::rows_view(inputs[4], stream(), true);
    if (ds_) params.ds = detail::allocate_rows(outputs[0]);
    if (dweight_) params.dweight = detail::allocate_flat(outputs.back());
    dispatch(outputs, [params](Context& context) { rms_norm_backward(context, params); });
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    bool rows = !dweight_;
    for (std::size_t i = 0; i < axes.size(); ++i) rows &= (axes[i] >= 0) == (i != 2);
    if (!rows) return FusedPrimitive::vmap(inputs, axes);
    return {make(detail::batch_first(inputs, axes), caller(), eps_, true, false, stream()), {0}};
  }

  const char* name() const override { return "GraftRmsNormBackward"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const Backward&>(other);
    return o.eps_ == eps_ && o.ds_ == ds_ && o.dweight_ == dweight_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    std::vector<mx::Shape> shapes;
    if (ds_) shapes.push_back(inputs[1].shape());
    if (dweight_) shapes.push_back(inputs[2].shape());
    return shapes;
  }

 protected:
  // Makes rstd again from s instead of reading it, so that derivatives of this see all of s.
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<Backward*>(this)->stream();
    const auto y = [&](const Arrays& values) { return composed_norm(values, eps_, s); };
    Arrays gradients = detail::vjp_in(y, {inputs[1], inputs[2]}, {inputs[0]}, {0, 1});
    if (inputs.size() == 5) gradients[0] = mx::add(gradients[0], inputs[4], s);
    Arrays wanted;
    if (ds_) wanted.push_back(gradients[0]);
    if (dweight_) wanted.push_back(mx::astype(gradients[1], mx::float32, s));
    return wanted;
  }

 private:
  float eps_;
  bool ds_;
  bool dweight_;
};

// Inputs: x, weight, [residual]. Outputs: y, [sum], and 1 / √(mean(s²) + eps) for backward, which
// no caller sees.
class Forward : public detail::FusedPrimitive {
 public:
  Forward(mx::Stream stream, const detail::Caller& caller, float eps)
      : FusedPrimitive(stream, caller, Pass::kForward), eps_(eps) {}

  static Arrays make(const Arrays& inputs, const detail::Caller& caller, float eps, mx::Stream s) {
    auto node = std::make_shared<Forward>(s, caller, eps);
    std::vector<mx::Dtype> dtypes(inputs.size() - 1, inputs[0].dtype());
    dtypes.push_back(mx::float32);
    return mx::array::make_arrays(node->output_shapes(inputs), dtypes, node, inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    RmsNormForward params;
    params.x = detail::rows_view(inputs[0], stream(), true);
    params.weight = detail::flat_view(inputs[1], stream());
    params.eps = eps_;
    params.y = detail::allocate_rows(outputs[0]);
    if (inputs.size() == 3) {
      params.residual = detail::rows_view(inputs[2], stream(), true);
      params.sum = detail::allocate_rows(outputs[1]);
    }
    params.rstd = detail::allocate_flat(outputs.back());
    dispatch(outputs, [params](Context& context) { rms_norm_forward(context, params); });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    const auto asks = [&](int i) {
      return std::find(argnums.begin(), argnums.end(), i) != argnums.end();
    };
    const bool with_sum = primals.size() == 3;
    const bool ds = asks(0) || asks(2);
    const bool dweight = asks(1);
    if (const auto support = supported(primals, ds, dweight); !support) {
      Arrays visible(cotangents.begin(), cotangents.end() - 1);
      return composed_vjp(primals, visible, argnums, support.reason);
    }
    Arrays inputs{cotangents[0], with_sum ? outputs[1] : primals[0], primals[1], outputs.back()};
    if (with_sum) inputs.push_back(cotangents[1]);
    const Arrays computed = Backward::make(inputs, caller(), eps_, ds, dweight, stream());
    Arrays gradients;
    for (const int argnum : argnums) {
      gradients.push_back(argnum == 1 ? mx::astype(computed.back(), primals[1].dtype(), stream())
                                      : computed[0]);
    }
    return gradients;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    for (std::size_t i = 0; i < axes.size(); ++i) {
      if ((axes[i] >= 0) != (i != 1)) return FusedPrimitive::vmap(inputs, axes);
    }
    return {make(detail::batch_first(inputs, axes), caller(), eps_, stream()),
            std::vector<int>(inputs.size(), 0)};
  }

  const char* name() const override { return "GraftRmsNorm"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const Forward&>(other).eps_ == eps_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    std::vector<mx::Shape> shapes(inputs.size() - 1, inputs[0].shape());
    shapes.push_back(without_last(inputs[0].shape()));
    return shapes;
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<Forward*>(this)->stream();
    Arrays outputs = composed_norm(inputs, eps_, s);
    const auto wide = mx::astype(inputs.size() == 3 ? outputs[1] : inputs[0], mx::float32, s);
    const auto mean = mx::mean(mx::square(wide, s), -1, false, s);
    outputs.push_back(mx::rsqrt(mx::add(mean, mx::array(eps_), s), s));
    return outputs;
  }

 private:
  Support supported(const Arrays& primals, bool ds, bool dweight) {
    if (auto support = detail::allowed(stream()); !support) return support;
    const auto& x = primals[0];
    const auto rows = detail::rows_of(x.shape());
    RmsNormBackward params;
    const TensorView matrix = detail::rows_only(x.shape(), x.dtype());
    params.dy = matrix;
    params.s = matrix;
    params.weight = detail::shape_only(primals[1].dtype(), {x.shape(-1)});
    params.rstd = detail::shape_only(mx::float32, {rows});
    if (primals.size() == 3) params.dsum = matrix;
    if (ds) params.ds = matrix;
    if (dweight) params.dweight = detail::shape_only(mx::float32, {x.shape(-1)});
    return graft::supports(params);
  }

  float eps_;
};

Support supported(const Arrays& inputs, float eps, mx::Stream s) {
  if (auto support = detail::allowed(s); !support) return support;
  if (auto support = detail::dtypes_known(inputs, inputs.size()); !support) return support;
  const auto& x = inputs[0];
  const TensorView matrix = detail::rows_only(x.shape(), x.dtype());
  RmsNormForward params;
  params.x = matrix;
  params.weight = detail::shape_only(inputs[1].dtype(), {x.shape(-1)});
  params.eps = eps;
  params.y = matrix;
  if (inputs.size() == 3) {
    params.residual = matrix;
    params.sum = matrix;
  }
  params.rstd = detail::shape_only(mx::float32, {detail::rows_of(x.shape())});
  return graft::supports(params);
}

Arrays run(const Arrays& inputs, float eps, mx::StreamOrDevice device) {
  const mx::array& x = inputs[0];
  if (x.ndim() == 0) detail::reject(kOp, "x", "at least one dimension", "a scalar");
  if (!mx::issubdtype(x.dtype(), mx::floating)) {
    detail::reject(kOp, "x", "a floating-point dtype", "integers");
  }
  detail::expect_shape(kOp, "weight", inputs[1], {x.shape(-1)});
  if (inputs.size() == 3) {
    detail::expect_shape(kOp, "residual", inputs[2], x.shape());
    if (inputs[2].dtype() != x.dtype()) detail::reject(kOp, "residual", "x's dtype", "another");
  }
  const mx::Stream s = mx::to_stream(device);
  const detail::Caller caller{kOp};
  const bool metal = detail::on_metal(s);
  const Support support = metal ? detail::rms_norm_on_metal(inputs) : supported(inputs, eps, s);
  if (support && metal) {
    const auto composed = [eps, s](const Arrays& in) { return composed_norm(in, eps, s); };
    return detail::metal_rms_norm(inputs, eps, composed, caller, s);
  }
  if (support) return Forward::make(inputs, caller, eps, s);
  Arrays outputs = composed_norm(inputs, eps, s);
  outputs[0] = detail::counted(outputs[0], caller, Pass::kForward, support.reason, s);
  return outputs;
}

}  // namespace

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps, mx::StreamOrDevice s) {
  return run({x, weight}, eps, s)[0];
}

std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x, const mx::array& residual,
                                             const mx::array& weight, float eps,
                                             mx::StreamOrDevice s) {
  const Arrays outputs = run({x, weight, residual}, eps, s);
  return {outputs[0], outputs[1]};
}

}  // namespace graft::mlx
