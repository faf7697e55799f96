#include "graft/mlx/lora_siblings.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <utility>

#include "graft/lora.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/lora_primitive.h"
#include "graft/mlx/detail/primitive.h"
#include "graft/mlx/detail/views.h"
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
// What a node is told of its arrays: shapes alone, to ask `supports`, or evaluated memory.
struct Viewer {
  bool evaluated;
  mx::Stream s;

  ConstTensorView rows(const mx::array& x, bool dense = false) const {
    return evaluated ? rows_view(x, s, dense) : ConstTensorView(rows_only(x.shape(), x.dtype()));
  }
  ConstTensorView matrix(const mx::array& x) const {
    return evaluated ? matrix_view(x) : ConstTensorView(shape_only(x.shape(), x.dtype()));
  }
  ConstTensorView vector(const mx::array& x) const {
    return evaluated ? vector_view(x) : ConstTensorView(shape_only(x.shape(), x.dtype()));
  }
};

graft::Adapter adapter_of(const Sibling& of, const Arrays& inputs, const Viewer& view) {
  if (!of.adapter) return {};
  return {view.matrix(inputs[of.first]), view.matrix(inputs[of.first + 1]), of.call.scaling};
}

// Puts the dropout of each layer into its params, when they run: seeds and offsets are arrays.
class ReadDropout {
 public:
  ReadDropout(const Siblings& all, const Arrays& inputs) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (all[i].call.dropout == 0) continue;
      places_.push_back({i, inputs[all[i].seed()].data<std::uint64_t>(),
                         inputs[all[i].seed() + 1].data<std::uint64_t>()});
    }
  }
  template <class Params>
  std::vector<Params> operator()(std::vector<Params> layers) const {
    for (const Place& place : places_) {
      layers[place.layer].dropout.seed = *place.seed;
      layers[place.layer].dropout.offset = *place.offset;
    }
    return layers;
  }

 private:
  struct Place {
    std::size_t layer;
    const std::uint64_t* seed;
    const std::uint64_t* offset;
  };
  std::vector<Place> places_;
};

// A node counts a run of each of its layers: the base class the first one's, this the others'.
std::vector<Tally*> other_tallies(const Siblings& all, Pass pass) {
  std::vector<Tally*> others;
  for (std::size_t i = 1; i < all.size(); ++i) {
    others.push_back(&Tallies::instance().line(all[i].caller(), pass));
  }
  return others;
}

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
struct Wanted {
  bool dx = false;
  std::vector<bool> da, db;

  Wanted(const Siblings& all, const std::vector<int>& argnums) {
    const auto asked = [&](std::size_t i) {
      return std::find(argnums.begin(), argnums.end(), static_cast<int>(i)) != argnums.end();
    };
    dx = asked(0);
    for (const Sibling& of : all) {
      da.push_back(of.adapter && asked(of.first));
      db.push_back(of.adapter && asked(of.first + 1));
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
  bool operator==(const Wanted&) const = default;
};

// The params of a backward call. Inputs: those of the forward call, then of each layer dy and, with
// an adapter, h. `out` views output i.
template <class Out>
std::vector<LoraLinearBackward> backward_params(const Siblings& all, const Wanted& wanted,
                                                const Arrays& inputs, const Viewer& view,
                                                const Out& out) {
  std::vector<LoraLinearBackward> layers;
  std::size_t next_in = input_count(all), next_out = 0;
  const ConstTensorView x = wanted.any_pair() ? view.rows(inputs[0]) : ConstTensorView();
  const TensorView dx = wanted.dx ? out(next_out++) : TensorView();
  for (std::size_t i = 0; i < all.size(); ++i) {
    LoraLinearBackward params;
    params.dy = view.rows(inputs[next_in++]);
    params.x = x;
    params.weight = all[i].call.weight;
    params.dx = dx;
    if (all[i].adapter) {
      params.adapter = adapter_of(all[i], inputs, view);
      params.dropout.p = all[i].call.dropout;
      params.h = view.rows(inputs[next_in++], true);
      if (wanted.da[i]) params.da = out(next_out++);
      if (wanted.db[i]) params.db = out(next_out++);
    }
    layers.push_back(params);
  }
  return layers;
}

class SiblingsBackward : public FusedPrimitive {
 public:
  SiblingsBackward(mx::Stream stream, Siblings all, Wanted wanted)
      : FusedPrimitive(stream, all.front().caller(), Pass::kBackward),
        all_(std::move(all)),
        wanted_(std::move(wanted)),
        others_(other_tallies(all_, Pass::kBackward)) {}

  void evaluate(const Arrays& inputs, Arrays& outputs) override {
    auto layers = backward_params(all_, wanted_, inputs, {true, stream()}, [&](std::size_t i) {
      return i == 0 && wanted_.dx ? allocate_rows(outputs[i]) : allocate(outputs[i]);
    });
    dispatch(outputs, [layers = std::move(layers), read = ReadDropout(all_, inputs),
                       others = others_](Context& context) {
      lora_linear_backward(context, LoraSiblingsBackward(read(layers)));
      for (Tally* tally : others) tally->add();
    });
  }

  // The same gradients from MLX ops.
  Arrays from_ops(const Arrays& inputs) const { return composed(inputs); }

  std::size_t scratch(const Arrays& inputs, const Arrays& outputs) const override {
    const auto layers = backward_params(
        all_, wanted_, inputs, {false, own_stream()},
        [&](std::size_t i) { return rows_only(outputs[i].shape(), outputs[i].dtype()); });
    return graft::scratch_bytes(LoraSiblingsBackward(layers));
  }

  const char* name() const override { return "GraftLoraSiblingsBackward"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const SiblingsBackward&>(other);
    return o.all_ == all_ && o.wanted_ == wanted_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    std::vector<mx::Shape> shapes;
    if (wanted_.dx) shapes.push_back(inputs[0].shape());
    for (std::size_t i = 0; i < all_.size(); ++i) {
      if (wanted_.da[i]) shapes.push_back(inputs[all_[i].first].shape());
      if (wanted_.db[i]) shapes.push_back(inputs[all_[i].first + 1].shape());
    }
    return shapes;
  }

 protected:
  // Makes each h again from x instead of reading it, so that derivatives of this see all of x and
  // A.
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<SiblingsBackward*>(this)->stream();
    const Arrays primals(inputs.begin(),
                         inputs.begin() + static_cast<std::ptrdiff_t>(input_count(all_)));
    std::vector<int> argnums;
    if (wanted_.dx) argnums.push_back(0);
    Arrays cotangents;
    std::size_t next = input_count(all_);
    for (std::size_t i = 0; i < all_.size(); ++i) {
      if (wanted_.da[i]) argnums.push_back(static_cast<int>(all_[i].first));
      if (wanted_.db[i]) argnums.push_back(static_cast<int>(all_[i].first + 1));
      cotangents.push_back(inputs[next]);
      next += all_[i].adapter ? 2 : 1;
    }
    const auto ys = [&](const Arrays& values) {
      const Arrays outputs = composed_siblings(all_, values, s);
      Arrays visible;
      for (const Sibling& of : all_) visible.push_back(outputs[of.output]);
      return visible;
    };
    Arrays gradients = vjp_in(ys, primals, cotangents, argnums);
    for (std::size_t i = wanted_.dx ? 1 : 0; i < gradients.size(); ++i) {
      gradients[i] = mx::astype(gradients[i], mx::float32, s);
    }
    return gradients;
  }

 private:
  Siblings all_;
  Wanted wanted_;
  std::vector<Tally*> others_;
};

// Outputs: of each layer y and, with an adapter, h = drop(x)·A for backward, which no caller sees.
class SiblingsForward : public FusedPrimitive {
 public:
  SiblingsForward(mx::Stream stream, Siblings all)
      : FusedPrimitive(stream, all.front().caller(), Pass::kForward),
        all_(std::move(all)),
        others_(other_tallies(all_, Pass::kForward)) {}

  // `out` views output i.
  template <class Out>
  static std::vector<LoraLinearForward> params(const Siblings& all, const Arrays& inputs,
                                               const Viewer& view, const Out& out) {
    std::vector<LoraLinearForward> layers;
    const ConstTensorView x = view.rows(inputs[0]);
    for (const Sibling& of : all) {
      LoraLinearForward params;
      params.x = x;
      params.weight = of.call.weight;
      if (of.call.bias) params.bias = view.vector(inputs[of.bias()]);
      params.adapter = adapter_of(of, inputs, view);
      params.dropout.p = of.call.dropout;
      params.y = out(of.output);
      if (of.adapter) params.h = out(of.output + 1);
      layers.push_back(params);
    }
    return layers;
  }

  void evaluate(const Arrays& inputs, Arrays& outputs) override {
    auto layers = params(all_, inputs, {true, stream()},
                         [&](std::size_t i) { return allocate_rows(outputs[i]); });
    dispatch(outputs, [layers = std::move(layers), read = ReadDropout(all_, inputs),
                       others = others_](Context& context) {
      lora_linear_forward(context, LoraSiblingsForward(read(layers)));
      for (Tally* tally : others) tally->add();
    });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override;

  std::size_t scratch(const Arrays& inputs, const Arrays& outputs) const override {
    const auto layers = params(all_, inputs, {false, own_stream()}, [&](std::size_t i) {
      return rows_only(outputs[i].shape(), outputs[i].dtype());
    });
    return graft::scratch_bytes(LoraSiblingsForward(layers));
  }

  const char* name() const override { return "GraftLoraSiblings"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const SiblingsForward&>(other).all_ == all_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    std::vector<mx::Shape> shapes;
    for (const Sibling& of : all_) {
      shapes.push_back(with_last(inputs[0].shape(), of.out_features()));
      if (of.adapter) shapes.push_back(with_last(inputs[0].shape(), inputs[of.first].shape(1)));
    }
    return shapes;
  }
  std::vector<mx::Dtype> output_dtypes(const Arrays& inputs) const {
    std::vector<mx::Dtype> dtypes;
    for (const Sibling& of : all_) {
      dtypes.push_back(inputs[0].dtype());
      if (of.adapter) dtypes.push_back(mx::float32);
    }
    return dtypes;
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    return composed_siblings(all_, inputs, const_cast<SiblingsForward*>(this)->stream());
  }

 private:
  Arrays backward(const Arrays& primals, const Arrays& cotangents, const Wanted& wanted,
                  const Arrays& outputs);

  Siblings all_;
  std::vector<Tally*> others_;
};

Support siblings_supported(const Siblings& all, const Arrays& inputs, mx::Stream s) {
  if (auto support = allowed(s); !support) return support;
  if (auto support = dtypes_known(inputs, 1); !support) return support;
  for (const Sibling& of : all) {
    for (std::size_t i = of.first; i < of.seed(); ++i) {
      if (auto support = dtypes_known({inputs[i]}, 1); !support) return support;
    }
  }
  SiblingsForward node(s, all);
  const auto shapes = node.output_shapes(inputs);
  const auto dtypes = node.output_dtypes(inputs);
  const auto layers = SiblingsForward::params(
      all, inputs, {false, s}, [&](std::size_t i) { return rows_only(shapes[i], dtypes[i]); });
  return graft::supports(LoraSiblingsForward(layers));
}

Support gradients_supported(const Siblings& all, const Wanted& wanted, const Arrays& inputs,
                            mx::Stream s) {
  if (auto support = allowed(s); !support) return support;
  for (const Sibling& of : all) {
    if (!wanted.dx) break;
    if (auto support = serves_dx(of.call.weight); !support) return support;
  }
  const auto shapes = SiblingsBackward(s, all, wanted).output_shapes(inputs);
  const auto layers = backward_params(all, wanted, inputs, {false, s}, [&](std::size_t i) {
    return rows_only(shapes[i], i == 0 && wanted.dx ? inputs[0].dtype() : mx::float32);
  });
  return graft::supports(LoraSiblingsBackward(layers));
}

// The wanted gradients by a fused node. Cotangents of h are not looked at: no caller sees h, and
// the backward node's own derivatives make it again from x.
Arrays SiblingsForward::backward(const Arrays& primals, const Arrays& cotangents,
                                 const Wanted& wanted, const Arrays& outputs) {
  if (!wanted.any()) return {};
  Arrays inputs = primals;
  // Then only its shape is looked at, and nothing holds x for this.
  if (!wanted.any_pair()) {
    inputs[0] = mx::broadcast_to(mx::array(0.0f, primals[0].dtype()), primals[0].shape(), stream());
  }
  for (const Sibling& of : all_) {
    inputs.push_back(cotangents[of.output]);
    if (of.adapter) inputs.push_back(outputs[of.output + 1]);
  }
  if (const auto support = gradients_supported(all_, wanted, inputs, stream()); !support) {
    // Counted on the way in, since a caller may evaluate any one of the gradients.
    for (const Sibling& of : all_) {
      mx::array& dy = inputs[input_count(all_) + of.output];  // dy and h lie as y and h do
      dy = counted(dy, of.caller(), Pass::kBackward, support.reason, stream());
    }
    return SiblingsBackward(stream(), all_, wanted).from_ops(inputs);
  }
  auto node = std::make_shared<SiblingsBackward>(stream(), all_, wanted);
  auto shapes = node->output_shapes(inputs);
  std::vector<mx::Dtype> dtypes(shapes.size(), mx::float32);
  if (wanted.dx) dtypes[0] = primals[0].dtype();
  return mx::array::make_arrays(shapes, dtypes, node, inputs);
}

Arrays SiblingsForward::vjp(const Arrays& primals, const Arrays& cotangents,
                            const std::vector<int>& argnums, const Arrays& outputs) {
  const mx::Stream s = stream();
  const Wanted wanted(all_, argnums);
  const Arrays computed = backward(primals, cotangents, wanted, outputs);
  std::vector<std::optional<mx::array>> of_input(primals.size());
  std::size_t next = 0;
  if (wanted.dx) of_input[0] = computed[next++];
  for (std::size_t i = 0; i < all_.size(); ++i) {
    const Sibling& of = all_[i];
    if (wanted.da[i]) of_input[of.first] = computed[next++];
    if (wanted.db[i]) of_input[of.first + 1] = computed[next++];
    if (of.call.bias) {
      of_input[of.bias()] = bias_gradient(cotangents[of.output], primals[of.bias()].dtype(), s);
    }
  }
  Arrays gradients;
  for (const int argnum : argnums) {
    const auto index = static_cast<std::size_t>(argnum);
    gradients.push_back(of_input[index] ? mx::astype(*of_input[index], primals[index].dtype(), s)
                                        : mx::zeros_like(primals[index], s));  // seed and offset
  }
  return gradients;
}

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
  detail::expect_matrix(kOp, "a", *layer.a);
  detail::expect_shape(kOp, "a", *layer.a, {x.shape(-1), layer.a->shape(1)});
  detail::expect_shape(kOp, "b", *layer.b, {layer.a->shape(1), shape[0]});
  if (!std::isfinite(layer.scaling)) {
    detail::reject(kOp, "scaling", "a finite number", std::to_string(layer.scaling));
  }
  if (!(layer.dropout.p >= 0.0f && layer.dropout.p < 1.0f)) {
    detail::reject(kOp, "dropout", "a chance in [0, 1)", std::to_string(layer.dropout.p));
  }
  for (const mx::array& counter : {layer.dropout.seed, layer.dropout.offset}) {
    if (counter.size() != 1 || !mx::issubdtype(counter.dtype(), mx::integer)) {
      detail::reject(kOp, "seed, offset", "one integer each",
                     "shape " + detail::shape_string(counter.shape()));
    }
  }
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
  if (x.ndim() == 0) detail::reject(kOp, "x", "at least one dimension", "a scalar");
  if (!mx::issubdtype(x.dtype(), mx::floating)) {
    detail::reject(kOp, "x", "a floating-point dtype", "integers");
  }
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
    if (of.adapter && layer.dropout.p > 0) {
      inputs.push_back(mx::astype(layer.dropout.seed, mx::uint64, s));
      inputs.push_back(mx::astype(layer.dropout.offset, mx::uint64, s));
      of.call.dropout = layer.dropout.p;
    }
    outputs += of.adapter ? 2 : 1;
    all.push_back(std::move(of));
  }

  Arrays ys;
  if (all.size() > 1 && detail::siblings_supported(all, inputs, s)) {
    auto node = std::make_shared<detail::SiblingsForward>(s, all);
    const Arrays made = mx::array::make_arrays(node->output_shapes(inputs),
                                               node->output_dtypes(inputs), node, inputs);
    for (const detail::Sibling& of : all) ys.push_back(made[of.output]);
    return ys;
  }
  for (const LoraSibling& layer : layers) ys.push_back(one_call(x, layer, s));
  return ys;
}

}  // namespace graft::mlx
