#include "graft/mlx/lora.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "graft/lora.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/lora_primitive.h"
#include "graft/mlx/detail/philox.h"

namespace graft::mlx {
namespace detail {
namespace {

void run(Context& context, const LoraDeltaForward& p) { lora_delta_forward(context, p); }
void run(Context& context, const LoraDeltaBackward& p) { lora_delta_backward(context, p); }
void run(Context& context, const LoraLinearForward& p) { lora_linear_forward(context, p); }
void run(Context& context, const LoraLinearBackward& p) { lora_linear_backward(context, p); }

Weight weight_of(const LoraCall& call, Views& views, const Arrays& in) {
  return call.plain ? Weight(views.weight(in[call.w()])) : views.weight(call.weight);
}

Adapter adapter_of(const LoraCall& call, Views& views, const Arrays& in) {
  Adapter adapter;
  adapter.a = views.matrix(in[1]);
  adapter.b = views.matrix(in[2]);
  adapter.scaling = call.scaling;
  return adapter;
}

// Seed and offset are arrays, known only when the call runs.
graft::Dropout dropout_of(const LoraCall& call, Views& views, const Arrays& in) {
  if (call.dropout == 0) return {};
  return views.dropout(call.dropout, in[call.seed()], in[call.offset()]);
}

// Puts them into the params of a call that runs on the CPU now.
struct ReadCounters {
  const std::uint64_t* seed = nullptr;
  const std::uint64_t* offset = nullptr;

  ReadCounters(const LoraCall& call, const Arrays& in) {
    if (call.dropout == 0) return;
    seed = in[call.seed()].data<std::uint64_t>();
    offset = in[call.offset()].data<std::uint64_t>();
  }
  template <class Params>
  void operator()(Params& params) const {
    if (seed != nullptr) params.dropout.seed = *seed, params.dropout.offset = *offset;
  }
};

// Which gradients a backward node computes; they are its outputs, in this order.
struct LoraWanted {
  bool dx = false;
  bool da = false;
  bool db = false;

  bool any() const { return dx || da || db; }
  bool operator==(const LoraWanted&) const = default;
};

// Of lora_linear, or of lora_delta. Inputs: those of the forward call, dy, h. Outputs: the wanted
// of dx, da and db; the latter two are float32.
template <bool kLinear>
struct FusedLoraBackward {
  struct State {
    LoraCall call;
    LoraWanted wanted;
    bool operator==(const State&) const = default;
  };
  using Params = std::conditional_t<kLinear, LoraLinearBackward, LoraDeltaBackward>;
  static constexpr const char* kName = "GraftLoraBackward";
  static constexpr Pass kPass = Pass::kBackward;
  static constexpr void (*kRun)(Context&, const Params&) = run;

  static Outputs outputs(const State& state, const Arrays& in) {
    Outputs outputs;
    if (state.wanted.dx) outputs.add(in[0].shape(), in[0].dtype());
    if (state.wanted.da) outputs.add(in[1].shape(), mx::float32);
    if (state.wanted.db) outputs.add(in[2].shape(), mx::float32);
    return outputs;
  }
  static Params params(const State& state, Views& views, const Arrays& in, const Arrays& out) {
    const auto& [call, wanted] = state;
    Params params;
    params.dy = views.strided_rows(in[call.count()]);
    if (wanted.da) params.x = views.strided_rows(in[0]);
    if (wanted.db) params.h = views.rows(in[call.count() + 1]);
    if constexpr (kLinear) params.weight = weight_of(call, views, in);
    params.adapter = adapter_of(call, views, in);
    params.dropout = dropout_of(call, views, in);
    std::size_t next = 0;
    if (wanted.dx) params.dx = views.out_rows(out[next++]);
    if (wanted.da) params.da = views.out_rows(out[next++]);
    if (wanted.db) params.db = views.out_rows(out[next]);
    return params;
  }
  static ReadCounters before_run(const State& state, const Arrays& in) { return {state.call, in}; }

  // dx of a batch is dx of more rows; da and db would be summed over the batch, and dropout counts
  // elements.
  static std::vector<bool> has_rows(const State& state, const Arrays& in) {
    const auto& [call, wanted] = state;
    if (wanted.da || wanted.db || call.dropout > 0) return {};
    std::vector<bool> rows(in.size(), false);
    rows[0] = rows[call.count()] = rows[call.count() + 1] = true;
    return rows;
  }
  // Makes h again from x instead of reading it, so that derivatives of this see all of x and A.
  static Arrays composed(const State& state, const Arrays& in, mx::Stream s) {
    const auto& [call, wanted] = state;
    const Arrays primals(in.begin(), in.begin() + static_cast<int>(call.count()));
    std::vector<int> argnums;
    if (wanted.dx) argnums.push_back(0);
    if (wanted.da) argnums.push_back(1);
    if (wanted.db) argnums.push_back(2);
    const auto y = [&](const Arrays& v) { return Arrays{composed_lora(state.call, v, s)[0]}; };
    Arrays gradients = vjp_in(y, primals, {in[call.count()]}, argnums);
    for (std::size_t i = wanted.dx ? 1 : 0; i < gradients.size(); ++i) {
      gradients[i] = mx::astype(gradients[i], mx::float32, s);
    }
    return gradients;
  }
};

// Outputs: y, and h = drop(x)·A for backward, which no caller sees.
template <bool kLinear>
struct FusedLora {
  using State = LoraCall;
  using Params = std::conditional_t<kLinear, LoraLinearForward, LoraDeltaForward>;
  static constexpr const char* kName = "GraftLora";
  static constexpr Pass kPass = Pass::kForward;
  static constexpr void (*kRun)(Context&, const Params&) = run;

  static Outputs outputs(const State&, const Arrays& in) {
    return {{with_last(in[0].shape(), in[2].shape(1)), with_last(in[0].shape(), in[1].shape(1))},
            {in[0].dtype(), mx::float32}};
  }
  static Params params(const State& call, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.x = views.strided_rows(in[0]);
    if constexpr (kLinear) {
      params.weight = weight_of(call, views, in);
      if (call.bias) params.bias = views.vector(in[call.bias_index()]);
    }
    params.adapter = adapter_of(call, views, in);
    params.dropout = dropout_of(call, views, in);
    params.y = views.out_rows(out[0]);
    params.h = views.out_rows(out[1]);
    return params;
  }
  static ReadCounters before_run(const State& call, const Arrays& in) { return {call, in}; }

  // Dropout counts elements of x: a batch that is more rows would get other masks.
  static std::vector<bool> has_rows(const State& call, const Arrays& in) {
    if (call.dropout > 0) return {};
    std::vector<bool> rows(in.size(), false);
    rows[0] = true;
    return rows;
  }
  static Arrays composed(const State& call, const Arrays& in, mx::Stream s) {
    return composed_lora(call, in, s);
  }

  // In the frozen operands, from MLX ops.
  static mx::array frozen_gradient(const Gradients<State>& call, std::size_t index) {
    const LoraCall& of = call.state;
    const mx::array &operand = call.primals[index], &dy = call.cotangents[0];
    if (of.plain && index == of.w()) {
      return weight_gradient(call.primals[0], dy, operand.dtype(), call.s);
    }
    if (of.bias && index == of.bias_index()) return bias_gradient(dy, operand.dtype(), call.s);
    return mx::zeros_like(operand, call.s);  // seed and offset
  }

  // The cotangent of h is not looked at: no caller sees h, and the backward node's own derivatives
  // make it again from x.
  static Arrays gradients(const Gradients<State>& call) {
    using Backward = FusedNode<FusedLoraBackward<kLinear>>;
    const LoraWanted wanted{call.asked(0), call.asked(1), call.asked(2)};
    Arrays computed;
    if (wanted.any()) {
      Arrays inputs = call.primals;
      inputs.insert(inputs.end(), {call.cotangents[0], call.outputs[1]});
      Support support = wanted.dx ? serves_dx(call.state.weight) : Support{};
      if (support) support = Backward::supported({call.state, wanted}, inputs, call.s);
      if (!support) return call.composed(support, 1, call.argnums);
      computed = Backward::make({call.state, wanted}, inputs, call.caller, call.s);
    }
    Arrays gradients;
    std::size_t next = 0;
    for (const int argnum : call.argnums) {
      const auto index = static_cast<std::size_t>(argnum);
      gradients.push_back(index < 3
                              ? mx::astype(computed[next++], call.primals[index].dtype(), call.s)
                              : frozen_gradient(call, index));
    }
    return gradients;
  }
};

}  // namespace

mx::array lora(const LoraCall& call, const Arrays& inputs, const Caller& caller, mx::Stream s) {
  return call.has_weight() ? fused_or_composed<FusedLora<true>>(call, inputs, caller, s)[0]
                           : fused_or_composed<FusedLora<false>>(call, inputs, caller, s)[0];
}

Arrays composed_lora(const LoraCall& call, const Arrays& inputs, mx::Stream s) {
  const mx::array& x = inputs[0];
  const auto dropped = call.dropout > 0 ? composed_dropout(x, call.dropout, inputs[call.seed()],
                                                           inputs[call.offset()], s)
                                        : x;
  auto y = composed_delta(dropped, inputs[1], inputs[2], call.scaling, s);
  if (call.has_weight()) {
    const auto w = call.plain ? inputs[call.w()] : unpacked(call.weight, s);
    y = mx::add(composed_product(x, w, s), y, s);
  }
  if (call.bias) y = mx::add(y, inputs[call.bias_index()], s);
  const auto h =
      mx::matmul(mx::astype(dropped, mx::float32, s), mx::astype(inputs[1], mx::float32, s), s);
  return {mx::astype(y, x.dtype(), s), h};
}

void expect_pair(const char* op, const mx::array& a, const mx::array& b) {
  expect_matrix(op, "a", a);
  expect_matrix(op, "b", b);
  expect_shape(op, "b", b, {a.shape(1), b.shape(1)});
}

void expect_adapter(const char* op, const mx::array& x, const mx::array& a, const mx::array& b,
                    float scaling) {
  expect_pair(op, a, b);
  expect_shape(op, "a", a, {x.shape(-1), a.shape(1)});
  if (!std::isfinite(scaling)) reject(op, "scaling", "a finite number", std::to_string(scaling));
}

mx::array counter_of(const char* op, const char* name, const mx::array& value, mx::Stream s) {
  if (value.size() != 1 || !mx::issubdtype(value.dtype(), mx::integer)) {
    reject(op, name, "one integer", "shape " + shape_string(value.shape()));
  }
  return mx::astype(value, mx::uint64, s);
}

}  // namespace detail

namespace {

using detail::Arrays;
using detail::LoraCall;

constexpr const char* kDelta = "lora_delta";
constexpr const char* kLinear = "lora_linear";

// `call` says which weight, unless it is `w`.
mx::array run_linear(LoraCall call, const mx::array& x, const mx::array* w,
                     const std::optional<mx::array>& bias, const mx::array& a, const mx::array& b,
                     const DropoutState& dropout, mx::Stream s) {
  detail::expect_rows(kLinear, "x", x);
  detail::expect_adapter(kLinear, x, a, b, call.scaling);
  const mx::Shape expected{b.shape(1), x.shape(-1)};
  const mx::Shape shape = w != nullptr ? w->shape() : detail::shape_of(call.weight);
  if (shape != expected) {
    detail::reject(kLinear, "w", detail::shape_string(expected), detail::shape_string(shape));
  }
  detail::expect_dropout(kLinear, dropout.p);
  Arrays inputs{x, a, b};
  call.plain = w != nullptr;
  if (call.plain) inputs.push_back(*w);
  if (bias) {
    detail::expect_shape(kLinear, "bias", *bias, {b.shape(1)});
    inputs.push_back(*bias);
    call.bias = true;
  }
  if (graft::Dropout{dropout.p}.threshold() > 0) {
    inputs.push_back(detail::counter_of(kLinear, "seed", dropout.seed, s));
    inputs.push_back(detail::counter_of(kLinear, "offset", dropout.offset, s));
    call.dropout = dropout.p;
  }
  return detail::lora(call, inputs, {kLinear}, s);
}

}  // namespace

std::uint64_t dropout_counters(const mx::array& x) { return (x.size() + 7) / 8; }

mx::array lora_forward_fused(const mx::array& x, const mx::array& a, const mx::array& b,
                             float scaling, mx::StreamOrDevice s) {
  detail::expect_rows(kDelta, "x", x);
  detail::expect_adapter(kDelta, x, a, b, scaling);
  LoraCall call;
  call.scaling = scaling;
  return detail::lora(call, {x, a, b}, {kDelta}, mx::to_stream(s));
}

mx::array lora_linear(const mx::array& x, const Weight& w, const std::optional<mx::array>& bias,
                      const mx::array& a, const mx::array& b, float scaling,
                      const DropoutState& dropout, mx::StreamOrDevice s) {
  detail::expect_present(kLinear, "w", w);
  LoraCall call;
  call.scaling = scaling;
  const mx::array* const array = detail::array_of(w);
  if (array == nullptr) call.weight = w;
  return run_linear(std::move(call), x, array, bias, a, b, dropout, mx::to_stream(s));
}

mx::array lora_linear(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias,
                      const mx::array& a, const mx::array& b, float scaling,
                      const DropoutState& dropout, mx::StreamOrDevice s) {
  LoraCall call;
  call.scaling = scaling;
  return run_linear(std::move(call), x, &w, bias, a, b, dropout, mx::to_stream(s));
}

}  // namespace graft::mlx
