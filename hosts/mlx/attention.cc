#include "graft/mlx/attention.h"

#include <mlx/fast.h>

#include <algorithm>
#include <string>

#include "graft/mlx/detail/primitive.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx {
namespace {

using detail::Arrays;

constexpr const char* kOp = "attention";

bool equal(const AttentionOptions& a, const AttentionOptions& b) {
  const bool rotary = a.rotary.enabled == b.rotary.enabled && a.rotary.theta == b.rotary.theta &&
                      a.rotary.interleaved == b.rotary.interleaved &&
                      a.rotary.position == b.rotary.position;
  return rotary && a.scale == b.scale && a.causal == b.causal;
}

// MLX's own ops keep heads before tokens.
mx::array composed_attention(const Arrays& inputs, const AttentionOptions& options, mx::Stream s) {
  auto q = mx::swapaxes(inputs[0], 1, 2, s);
  auto k = mx::swapaxes(inputs[1], 1, 2, s);
  const auto v = mx::swapaxes(inputs[2], 1, 2, s);
  if (options.rotary.enabled) {
    const auto turn = [&](const mx::array& x, std::int64_t position) {
      return mx::fast::rope(x, x.shape(-1), options.rotary.interleaved, options.rotary.theta, 1.0f,
                            static_cast<int>(position), std::nullopt, s);
    };
    q = turn(q, options.rotary.position + k.shape(2) - q.shape(2));
    k = turn(k, options.rotary.position);
  }
  const auto y = mx::fast::scaled_dot_product_attention(
      q, k, v, options.scale, options.causal ? "causal" : "", {}, {}, false, s);
  return mx::swapaxes(y, 1, 2, s);
}

// log Σ_j exp(score_ij), of a shape only: no composed op reads it.
mx::Shape logsumexp_shape(const mx::array& q) { return {q.shape(0), q.shape(2), q.shape(1)}; }

// Under vmap every array has one more leading dimension, which joins the sequences and leaves
// again.
Arrays joined(const Arrays& batched, mx::Stream s) {
  Arrays flat;
  for (const auto& x : batched) flat.push_back(mx::flatten(x, 0, 1, s));
  return flat;
}
Arrays parted(const Arrays& flat, int batch, mx::Stream s) {
  Arrays batched;
  for (const auto& x : flat) batched.push_back(mx::unflatten(x, 0, {batch, x.shape(0) / batch}, s));
  return batched;
}
bool all_batched(const std::vector<int>& axes) {
  return std::all_of(axes.begin(), axes.end(), [](int axis) { return axis >= 0; });
}

struct Wanted {
  bool dq = false;
  bool dk = false;
  bool dv = false;

  bool operator==(const Wanted&) const = default;
};

// Inputs: dy, q, k, v, y, logsumexp. Outputs: the wanted of dq, dk and dv.
class Backward : public detail::FusedPrimitive {
 public:
  Backward(mx::Stream stream, const detail::Caller& caller, const AttentionOptions& options,
           Wanted wanted)
      : FusedPrimitive(stream, caller, Pass::kBackward), options_(options), wanted_(wanted) {}

  static Arrays make(const Arrays& inputs, const detail::Caller& caller,
                     const AttentionOptions& options, Wanted wanted, mx::Stream s) {
    auto node = std::make_shared<Backward>(s, caller, options, wanted);
    auto shapes = node->output_shapes(inputs);
    const std::vector<mx::Dtype> dtypes(shapes.size(), inputs[1].dtype());
    return mx::array::make_arrays(std::move(shapes), dtypes, node, inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    AttentionBackward params;
    params.dy = detail::strided_view(inputs[0], stream());
    params.q = detail::strided_view(inputs[1], stream());
    params.k = detail::strided_view(inputs[2], stream());
    params.v = detail::strided_view(inputs[3], stream());
    params.y = detail::strided_view(inputs[4], stream());
    params.logsumexp = detail::dense_view(inputs[5], stream());
    params.options = options_;
    std::size_t next = 0;
    if (wanted_.dq) params.dq = detail::allocate(outputs[next++]);
    if (wanted_.dk) params.dk = detail::allocate(outputs[next++]);
    if (wanted_.dv) params.dv = detail::allocate(outputs[next++]);
    dispatch(outputs, [params](Context& context) { attention_backward(context, params); });
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    if (!all_batched(axes)) return FusedPrimitive::vmap(inputs, axes);
    const Arrays first = detail::batch_first(inputs, axes);
    const Arrays flat = make(joined(first, stream()), caller(), options_, wanted_, stream());
    return {parted(flat, first[0].shape(0), stream()), std::vector<int>(flat.size(), 0)};
  }

  const char* name() const override { return "GraftAttentionBackward"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const Backward&>(other);
    return equal(o.options_, options_) && o.wanted_ == wanted_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    std::vector<mx::Shape> shapes;
    if (wanted_.dq) shapes.push_back(inputs[1].shape());
    if (wanted_.dk) shapes.push_back(inputs[2].shape());
    if (wanted_.dv) shapes.push_back(inputs[3].shape());
    return shapes;
  }

 protected:
  // Makes y and logsumexp again instead of reading them, so that derivatives see all of q, k, v.
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<Backward*>(this)->stream();
    const auto y = [&](const Arrays& values) {
      return Arrays{composed_attention(values, options_, s)};
    };
    std::vector<int> argnums;
    if (wanted_.dq) argnums.push_back(0);
    if (wanted_.dk) argnums.push_back(1);
    if (wanted_.dv) argnums.push_back(2);
    return detail::vjp_in(y, {inputs[1], inputs[2], inputs[3]}, {inputs[0]}, argnums);
  }

 private:
  AttentionOptions options_;
  Wanted wanted_;
};

// Inputs: q, k, v. Outputs: y, and logsumexp for backward, which no caller sees.
class Forward : public detail::FusedPrimitive {
 public:
  Forward(mx::Stream stream, const detail::Caller& caller, const AttentionOptions& options)
      : FusedPrimitive(stream, caller, Pass::kForward), options_(options) {}

  static Arrays make(const Arrays& inputs, const detail::Caller& caller,
                     const AttentionOptions& options, mx::Stream s) {
    auto node = std::make_shared<Forward>(s, caller, options);
    return mx::array::make_arrays(node->output_shapes(inputs), {inputs[0].dtype(), mx::float32},
                                  node, inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    AttentionForward params;
    params.q = detail::strided_view(inputs[0], stream());
    params.k = detail::strided_view(inputs[1], stream());
    params.v = detail::strided_view(inputs[2], stream());
    params.options = options_;
    params.y = detail::allocate(outputs[0]);
    params.logsumexp = detail::allocate(outputs[1]);
    dispatch(outputs, [params](Context& context) { attention_forward(context, params); });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    const auto asks = [&](int i) {
      return std::find(argnums.begin(), argnums.end(), i) != argnums.end();
    };
    const Wanted wanted{asks(0), asks(1), asks(2)};
    if (const auto support = supported(primals, wanted); !support) {
      return composed_vjp(primals, {cotangents[0]}, argnums, support.reason);
    }
    return Backward::make(
        {cotangents[0], primals[0], primals[1], primals[2], outputs[0], outputs[1]}, caller(),
        options_, wanted, stream());
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    if (!all_batched(axes)) return FusedPrimitive::vmap(inputs, axes);
    const Arrays first = detail::batch_first(inputs, axes);
    const Arrays flat = make(joined(first, stream()), caller(), options_, stream());
    return {parted(flat, first[0].shape(0), stream()), {0, 0}};
  }

  const char* name() const override { return "GraftAttention"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return equal(static_cast<const Forward&>(other).options_, options_);
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {inputs[0].shape(), logsumexp_shape(inputs[0])};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<Forward*>(this)->stream();
    return {composed_attention(inputs, options_, s),
            mx::zeros(logsumexp_shape(inputs[0]), mx::float32, s)};
  }

 private:
  Support supported(const Arrays& primals, Wanted wanted) {
    if (auto support = detail::allowed(stream()); !support) return support;
    const TensorView q = detail::shape_only(primals[0].shape(), primals[0].dtype());
    const TensorView k = detail::shape_only(primals[1].shape(), primals[1].dtype());
    AttentionBackward params;
    params.dy = q;
    params.q = q;
    params.k = k;
    params.v = k;
    params.y = q;
    params.logsumexp = detail::shape_only(logsumexp_shape(primals[0]), mx::float32);
    params.options = options_;
    if (wanted.dq) params.dq = q;
    if (wanted.dk) params.dk = k;
    if (wanted.dv) params.dv = k;
    return graft::supports(params);
  }

  AttentionOptions options_;
};

Support supported(const Arrays& inputs, const AttentionOptions& options, mx::Stream s) {
  if (auto support = detail::allowed(s); !support) return support;
  if (auto support = detail::dtypes_known(inputs, inputs.size()); !support) return support;
  const TensorView q = detail::shape_only(inputs[0].shape(), inputs[0].dtype());
  AttentionForward params;
  params.q = q;
  params.k = detail::shape_only(inputs[1].shape(), inputs[1].dtype());
  params.v = params.k;
  params.options = options;
  params.y = q;
  params.logsumexp = detail::shape_only(logsumexp_shape(inputs[0]), mx::float32);
  return graft::supports(params);
}

void check(const Arrays& inputs, const AttentionOptions& options) {
  const mx::array& q = inputs[0];
  const mx::array& k = inputs[1];
  if (q.ndim() != 4) {
    detail::reject(kOp, "q", "(B, T_q, heads, d)", detail::shape_string(q.shape()));
  }
  if (k.ndim() != 4 || k.shape(0) != q.shape(0) || k.shape(3) != q.shape(3)) {
    detail::reject(kOp, "k", "(B, T_kv, kv_heads, d) with q's B and d",
                   detail::shape_string(k.shape()));
  }
  if (k.shape(2) == 0 || q.shape(2) % k.shape(2) != 0) {
    detail::reject(kOp, "k", "a number of heads that divides " + std::to_string(q.shape(2)),
                   std::to_string(k.shape(2)));
  }
  if (options.causal && k.shape(1) < q.shape(1)) {
    detail::reject(kOp, "k", "at least as many tokens as q", detail::shape_string(k.shape()));
  }
  detail::expect_shape(kOp, "v", inputs[2], k.shape());
  for (const auto& x : inputs) {
    if (x.dtype() != q.dtype() || !mx::issubdtype(x.dtype(), mx::floating)) {
      detail::reject(kOp, "q, k, v", "one floating-point dtype", "others");
    }
  }
}

}  // namespace

mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v,
                    const AttentionOptions& options, mx::StreamOrDevice device) {
  const Arrays inputs{q, k, v};
  check(inputs, options);
  const mx::Stream s = mx::to_stream(device);
  const detail::Caller caller{kOp};
  const Support support = supported(inputs, options, s);
  if (support) return Forward::make(inputs, caller, options, s)[0];
  return detail::counted(composed_attention(inputs, options, s), caller, Pass::kForward,
                         support.reason, s);
}

}  // namespace graft::mlx
