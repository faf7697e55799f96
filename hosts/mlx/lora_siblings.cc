#include "graft/mlx/lora_siblings.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "graft/lora.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/lora_primitive.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/linear.h"

namespace graft::mlx {
namespace detail {
namespace {

constexpr const char* kWithAdapter = "lora_linear";
constexpr const char* kWithout = "linear";

// One of the layers besides its arrays, which come in this order: [a, b], [bias], [seed, offset].
struct Sibling {
  LoraCall call;
  bool adapter = false;
  std::size_t first = 0;   // of its arrays among a node's inputs, x being the first of them
  std::size_t output = 0;  // of its y among the outputs; h follows, if it has an adapter
  std::string module;

  std::size_t bias() const { return first + (adapter ? 2 : 0); }
  std::size_t seed() const { return bias() + (call.bias ? 1 : 0); }
  std::size_t end() const { return seed() + (call.dropout > 0 ? 2 : 0); }
  int out_features() const { return static_cast<int>(call.weight.out_features()); }
  Caller caller() const { return {adapter ? kWithAdapter : kWithout, module}; }
  bool operator==(const Sibling&) const = default;
};

using Siblings = std::vector<Sibling>;

std::size_t input_count(const Siblings& all) { return all.back().end(); }

std::vector<Caller> callers_after_first(const Siblings& all) {
  std::vector<Caller> callers;
  for (std::size_t i = 1; i < all.size(); ++i) callers.push_back(all[i].caller());
  return callers;
}

Adapter adapter_of(const Sibling& of, Views& views, const Arrays& in) {
  if (!of.adapter) return {};
  return {views.matrix(in[of.first]), views.matrix(in[of.first + 1]), of.call.scaling};
}

Dropout dropout_of(const Sibling& of, Views& views, const Arrays& in) {
  if (of.call.dropout == 0) return {};
  return views.dropout(of.call.dropout, in[of.seed()], in[of.seed() + 1]);
}

// Puts the seed and offset of each layer's dropout into params that run on the CPU now.
class ReadAllCounters {
 public:
  ReadAllCounters(const Siblings& all, const Arrays& in) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (all[i].call.dropout == 0) continue;
      places_.push_back({i, in[all[i].seed()].data<std::uint64_t>(),
                         in[all[i].seed() + 1].data<std::uint64_t>()});
    }
  }
  template <class Params>
  void operator()(std::vector<Params>& layers) const {
    for (const Place& place : places_) {
      layers[place.layer].dropout.seed = *place.seed;
      layers[place.layer].dropout.offset = *place.offset;
    }
  }

 private:
  struct Place {
    std::size_t layer;
    const std::uint64_t* seed;
    const std::uint64_t* offset;
  };
  std::vector<Place> places_;
};

Arrays composed_siblings(const Siblings& all, const Arrays& inputs, mx::Stream s) {
  Arrays outputs;
  const mx::array& x = inputs[0];
  for (const Sibling& of : all) {
    if (of.adapter) {
      Arrays its{x};
      its.insert(its.end(), inputs.begin() + static_cast<std::ptrdiff_t>(of.first),
                 inputs.begin() + static_cast<std::ptrdiff_t>(of.end()));
      const Arrays made = composed_lora(of.call, its, s);
      outputs.insert(outputs.end(), made.begin(), made.end());
      continue;
    }
    mx::array y = composed_product(x, unpacked(of.call.weight, s), s);
    if (of.call.bias) y = mx::astype(mx::add(y, inputs[of.bias()], s), x.dtype(), s);
    outputs.push_back(y);
  }
  return outputs;
}

// Which gradients a backward node computes: dx, and da and db of some layers. They are its outputs,
// in this order.
struct SiblingsWanted {
  bool dx = false;
  std::vector<bool> da, db;

  explicit SiblingsWanted(const Gradients<Siblings>& call) : dx(call.asked(0)) {
    for (const Sibling& of : call.state) {
      da.push_back(of.adapter && call.asked(of.first));
      db.push_back(of.adapter && call.asked(of.first + 1));
    }
  }
  // Of the adapters: dx alone depends on no value of x.
  bool any_pair() const {
    const auto some = [](const std::vector<bool>& list) {
      return std::find(list.begin(), list.end(), true) != list.end();
    };
    return some(da) || some(db);
  }
  bool any() const { return dx || any_pair(); }
  bool operator==(const SiblingsWanted&) const = default;
};

// Inputs: those of the forward call, then of each layer dy and, with an adapter, h. Outputs: the
// wanted; those of A and B are float32.
struct FusedSiblingsBackward {
  struct State {
    Siblings all;
    SiblingsWanted wanted;
    bool operator==(const State&) const = default;
  };
  using Params = std::vector<LoraLinearBackward>;
  static constexpr const char* kName = "GraftLoraSiblingsBackward";
  static constexpr Pass kPass = Pass::kBackward;
  static void kRun(Context& context, const Params& layers) {
    lora_linear_backward(context, LoraSiblingsBackward(layers));
  }

  static Outputs outputs(const State& state, const Arrays& in) {
    const auto& [all, wanted] = state;
    Outputs outputs;
    if (wanted.dx) outputs.add(in[0].shape(), in[0].dtype());
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (wanted.da[i]) outputs.add(in[all[i].first].shape(), mx::float32);
      if (wanted.db[i]) outputs.add(in[all[i].first + 1].shape(), mx::float32);
    }
    return outputs;
  }
  static Params params(const State& state, Views& views, const Arrays& in, const Arrays& out) {
    const auto& [all, wanted] = state;
    Params layers(all.size());
    std::size_t next_in = input_count(all), next_out = 0;
    const ConstTensorView x = wanted.any_pair() ? views.strided_rows(in[0]) : ConstTensorView();
    const TensorView dx = wanted.dx ? views.out_rows(out[next_out++]) : TensorView();
    for (std::size_t i = 0; i < all.size(); ++i) {
      LoraLinearBackward& params = layers[i];
      params.dy = views.strided_rows(in[next_in++]);
      params.x = x;
      params.weight = views.weight(all[i].call.weight);
      params.dx = dx;
      if (!all[i].adapter) continue;
      params.adapter = adapter_of(all[i], views, in);
      params.dropout = dropout_of(all[i], views, in);
      params.h = views.rows(in[next_in++]);
      if (wanted.da[i]) params.da = views.out_rows(out[next_out++]);
      if (wanted.db[i]) params.db = views.out_rows(out[next_out++]);
    }
    return layers;
  }
  static ReadAllCounters before_run(const State& state, const Arrays& in) {
    return {state.all, in};
  }
  static std::vector<Caller> others(const State& state) { return callers_after_first(state.all); }
  static std::vector<bool> has_rows(const State&, const Arrays&) { return {}; }

  // Makes each h again from x instead of reading it, so that derivatives of this see all of x and
  // A.
  static Arrays composed(const State& state, const Arrays& in, mx::Stream s) {
    const auto& [all, wanted] = state;
    const Arrays primals(in.begin(), in.begin() + static_cast<std::ptrdiff_t>(input_count(all)));
    std::vector<int> argnums;
    if (wanted.dx) argnums.push_back(0);
    Arrays cotangents;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (wanted.da[i]) argnums.push_back(static_cast<int>(all[i].first));
      if (wanted.db[i]) argnums.push_back(static_cast<int>(all[i].first + 1));
      cotangents.push_back(in[input_count(all) + all[i].output]);  // dy and h lie as y and h do
    }
    const auto ys = [&siblings = state.all, s](const Arrays& values) {
      const Arrays outputs = composed_siblings(siblings, values, s);
      Arrays visible;
      for (const Sibling& of : siblings) visible.push_back(outputs[of.output]);
      return visible;
    };
    Arrays gradients = vjp_in(ys, primals, cotangents, argnums);
    for (std::size_t i = wanted.dx ? 1 : 0; i < gradients.size(); ++i) {
      gradients[i] = mx::astype(gradients[i], mx::float32, s);
    }
    return gradients;
  }
};

// Outputs: of each layer y and, with an adapter, h = drop(x)·A for backward, which no caller sees.
struct FusedSiblings {
  using State = Siblings;
  using Params = std::vector<LoraLinearForward>;
  static constexpr const char* kName = "GraftLoraSiblings";
  static constexpr Pass kPass = Pass::kForward;
  static void kRun(Context& context, const Params& layers) {
    lora_linear_forward(context, LoraSiblingsForward(layers));
  }

  static Outputs outputs(const State& all, const Arrays& in) {
    Outputs outputs;
    for (const Sibling& of : all) {
      outputs.add(with_last(in[0].shape(), of.out_features()), in[0].dtype());
      if (of.adapter) outputs.add(with_last(in[0].shape(), in[of.first].shape(1)), mx::float32);
    }
    return outputs;
  }
  static Params params(const State& all, Views& views, const Arrays& in, const Arrays& out) {
    Params layers(all.size());
    const ConstTensorView x = views.strided_rows(in[0]);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const Sibling& of = all[i];
      LoraLinearForward& params = layers[i];
      params.x = x;
      params.weight = views.weight(of.call.weight);
      if (of.call.bias) params.bias = views.vector(in[of.bias()]);
      params.adapter = adapter_of(of, views, in);
      params.dropout = dropout_of(of, views, in);
      params.y = views.out_rows(out[of.output]);
      if (of.adapter) params.h = views.out_rows(out[of.output + 1]);
    }
    return layers;
  }
  static ReadAllCounters before_run(const State& all, const Arrays& in) { return {all, in}; }
  static std::vector<Caller> others(const State& all) { return callers_after_first(all); }
  static std::vector<bool> has_rows(const State&, const Arrays&) { return {}; }

  static Arrays composed(const State& all, const Arrays& in, mx::Stream s) {
    return composed_siblings(all, in, s);
  }

  // The wanted ones. Cotangents of h are not looked at: no caller sees h, and the backward node's
  // own derivatives make it again from x.
  static Arrays wanted_gradients(const Gradients<State>& call, const SiblingsWanted& wanted) {
    using Backward = FusedNode<FusedSiblingsBackward>;
    const Siblings& all = call.state;
    if (!wanted.any()) return {};
    Arrays inputs = call.primals;
    // Then only its shape is looked at, and nothing holds x for this.
    if (!wanted.any_pair()) {
      const mx::array& x = call.primals[0];
      inputs[0] = mx::broadcast_to(mx::array(0.0f, x.dtype()), x.shape(), call.s);
    }
    Support support;
    for (const Sibling& of : all) {
      inputs.push_back(call.cotangents[of.output]);
      if (of.adapter) inputs.push_back(call.outputs[of.output + 1]);
      if (wanted.dx && support) support = serves_dx(of.call.weight);
    }
    if (support) support = Backward::supported({all, wanted}, inputs, call.s);
    if (support) return Backward::make({all, wanted}, inputs, call.caller, call.s);
    // Counted on the way in, since a caller may evaluate any one of the gradients.
    for (const Sibling& of : all) {
      mx::array& dy = inputs[input_count(all) + of.output];
      dy = counted(dy, of.caller(), Pass::kBackward, support.reason, call.s);
    }
    return FusedSiblingsBackward::composed({all, wanted}, inputs, call.s);
  }

  static Arrays gradients(const Gradients<State>& call) {
    const Siblings& all = call.state;
    const SiblingsWanted wanted(call);
    const Arrays computed = wanted_gradients(call, wanted);
    std::vector<std::optional<mx::array>> of_input(call.primals.size());
    std::size_t next = 0;
    if (wanted.dx) of_input[0] = computed[next++];
    for (std::size_t i = 0; i < all.size(); ++i) {
      const Sibling& of = all[i];
      if (wanted.da[i]) of_input[of.first] = computed[next++];
      if (wanted.db[i]) of_input[of.first + 1] = computed[next++];
      if (of.call.bias) {
        const mx::Dtype dtype = call.primals[of.bias()].dtype();
        of_input[of.bias()] = bias_gradient(call.cotangents[of.output], dtype, call.s);
      }
    }
    Arrays gradients;
    for (const int argnum : call.argnums) {
      const auto index = static_cast<std::size_t>(argnum);
      gradients.push_back(of_input[index]
                              ? *of_input[index]
                              : mx::zeros_like(call.primals[index], call.s));  // seed and offset
    }
    return call.as_primals(gradients);
  }
};

}  // namespace
}  // namespace detail

namespace {

using detail::Arrays;

constexpr const char* kOp = "lora_siblings";

void check(const mx::array& x, const LoraSibling& layer) {
  detail::expect_present(kOp, "weight", layer.weight);
  const mx::Shape shape = detail::shape_of(layer.weight);
  if (shape[1] != x.shape(-1)) {
    detail::reject(kOp, "weight", std::to_string(x.shape(-1)) + " columns",
                   detail::shape_string(shape));
  }
  if (layer.bias) detail::expect_shape(kOp, "bias", *layer.bias, {shape[0]});
  if (layer.a.has_value() != layer.b.has_value()) {
    detail::reject(kOp, "a, b", "both or neither", "one");
  }
  if (!layer.a) return;
  detail::expect_adapter(kOp, x, *layer.a, *layer.b, layer.scaling);
  detail::expect_shape(kOp, "b", *layer.b, {layer.a->shape(1), shape[0]});
  detail::expect_dropout(kOp, layer.dropout.p);
}

mx::array one_call(const mx::array& x, const LoraSibling& layer, mx::Stream s) {
  const ModuleScope scope(layer.module);
  if (!layer.a) return linear(x, layer.weight, layer.bias, s);
  return lora_linear(x, layer.weight, layer.bias, *layer.a, *layer.b, layer.scaling, layer.dropout,
                     s);
}

}  // namespace

std::vector<mx::array> lora_siblings(const mx::array& x, const std::vector<LoraSibling>& layers,
                                     mx::StreamOrDevice device) {
  const mx::Stream s = mx::to_stream(device);
  detail::expect_rows(kOp, "x", x);
  detail::Siblings all;
  Arrays inputs{x};
  std::size_t outputs = 0;
  for (const LoraSibling& layer : layers) {
    check(x, layer);
    detail::Sibling of;
    of.call.weight = layer.weight;
    of.call.scaling = layer.scaling;
    of.adapter = layer.a.has_value();
    of.first = inputs.size();
    of.output = outputs;
    of.module = layer.module;
    if (of.adapter) inputs.insert(inputs.end(), {*layer.a, *layer.b});
    if (layer.bias) {
      inputs.push_back(*layer.bias);
      of.call.bias = true;
    }
    if (of.adapter) {
      const auto seed = detail::counter_of(kOp, "seed", layer.dropout.seed, s);
      const auto offset = detail::counter_of(kOp, "offset", layer.dropout.offset, s);
      if (graft::Dropout{layer.dropout.p}.threshold() > 0) {
        inputs.insert(inputs.end(), {seed, offset});
        of.call.dropout = layer.dropout.p;
      }
    }
    outputs += of.adapter ? 2 : 1;
    all.push_back(std::move(of));
  }

  Arrays ys;
  using Node = detail::FusedNode<detail::FusedSiblings>;
  if (all.size() > 1 && Node::supported(all, inputs, s)) {
    const Arrays made = Node::make(all, inputs, all.front().caller(), s);
    for (const detail::Sibling& of : all) ys.push_back(made[of.output]);
    return ys;
  }
  for (const LoraSibling& layer : layers) ys.push_back(one_call(x, layer, s));
  return ys;
}

}  // namespace graft::mlx
