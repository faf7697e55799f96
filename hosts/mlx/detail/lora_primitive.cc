#include "graft/mlx/detail/lora_primitive.h"

#include <algorithm>
#include <cstdint>

#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/philox.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

// Which gradients a backward node computes; they are its outputs, in this order.
struct Wanted {
  bool dx = false;
  bool da = false;
  bool db = false;

  bool any() const { return dx || da || db; }
  bool operator==(const Wanted&) const = default;
};

// One core call's operands as views. For `supports`, of shapes alone; to run, of evaluated arrays.
struct Operands {
  ConstTensorView x;
  ConstTensorView w;
  ConstTensorView bias;
  Adapter adapter;
};

Operands shapes_of(const LoraCall& call, const Arrays& inputs) {
  const auto matrix = [](const mx::array& m) {
    return shape_only(m.dtype(), {m.shape(0), m.shape(1)});
  };
  Operands operands{rows_only(inputs[0].shape(), inputs[0].dtype()), {}, {}, {}};
  operands.adapter = {matrix(inputs[1]), matrix(inputs[2]), call.scaling};
  if (call.plain) operands.w = matrix(inputs[call.w()]);
  if (call.bias) {
    const auto& bias = inputs[call.bias_index()];
    operands.bias = shape_only(bias.dtype(), {bias.shape(0)});
  }
  return operands;
}

Operands views_of(const LoraCall& call, const Arrays& inputs, mx::Stream s) {
  Operands operands{rows_view(inputs[0], s), {}, {}, {}};
  operands.adapter = {matrix_view(inputs[1]), matrix_view(inputs[2]), call.scaling};
  if (call.plain) operands.w = matrix_view(inputs[call.w()]);
  if (call.bias) operands.bias = vector_view(inputs[call.bias_index()]);
  return operands;
}

Weight base_of(const LoraCall& call, const Operands& operands) {
  return call.weight.present() ? call.weight : operands.w;
}

Support supports_backward(const LoraCall& call, const Arrays& inputs, Wanted wanted, mx::Stream s) {
  if (auto support = allowed(s); !support) return support;
  if (wanted.dx) {
    if (auto support = serves_dx(call.weight); !support) return support;
  }
  const Operands operands = shapes_of(call, inputs);
  const auto rows = rows_of(inputs[0].shape());
  const int rank = inputs[1].shape(1);
  const TensorView dy = shape_only(inputs[0].dtype(), {rows, inputs[2].shape(1)});
  const TensorView h = shape_only(mx::float32, {rows, rank});
  const TensorView dx = wanted.dx ? rows_only(inputs[0].shape(), inputs[0].dtype()) : TensorView();
  const TensorView da =
      wanted.da ? shape_only(mx::float32, {inputs[1].shape(0), rank}) : TensorView();
  const TensorView db =
      wanted.db ? shape_only(mx::float32, {rank, inputs[2].shape(1)}) : TensorView();
  const graft::Dropout dropout{call.dropout, 0, 0};
  if (!call.has_weight()) {
    return graft::supports(
        LoraDeltaBackward{dy, operands.x, h, operands.adapter, dropout, dx, da, db});
  }
  return graft::supports(LoraLinearBackward{dy, operands.x, h, base_of(call, operands),
                                            operands.adapter, dropout, dx, da, db});
}

// Where a running task finds seed and offset: they are arrays, known only then.
struct DropoutSource {
  float p = 0.0f;
  const std::uint64_t* seed = nullptr;
  const std::uint64_t* offset = nullptr;

  DropoutSource(const LoraCall& call, const Arrays& inputs) : p(call.dropout) {
    if (p == 0) return;
    seed = inputs[call.seed()].data<std::uint64_t>();
    offset = inputs[call.offset()].data<std::uint64_t>();
  }
  graft::Dropout read() const {
    return p == 0 ? graft::Dropout{} : graft::Dropout{p, *seed, *offset};
  }
};

// Inputs: those of the forward call, dy, h. Outputs: the wanted of dx, da and db.
class LoraBackward : public FusedPrimitive {
 public:
  LoraBackward(mx::Stream stream, const Caller& caller, LoraCall call, Wanted wanted)
      : FusedPrimitive(stream, caller, Pass::kBackward), call_(std::move(call)), wanted_(wanted) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    const Operands operands = views_of(call_, inputs, stream());
    const ConstTensorView dy = rows_view(inputs[call_.count()], stream());
    const ConstTensorView h = rows_view(inputs[call_.count() + 1], stream(), true);
    std::size_t next = 0;
    const TensorView dx = wanted_.dx ? allocate_rows(outputs[next++]) : TensorView();
    const TensorView da = wanted_.da ? allocate(outputs[next++]) : TensorView();
    const TensorView db = wanted_.db ? allocate(outputs[next++]) : TensorView();
    dispatch(outputs, [=, call = call_, dropout = DropoutSource(call_, inputs)](Context& context) {
      if (!call.has_weight()) {
        lora_delta_backward(context,
                            {dy, operands.x, h, operands.adapter, dropout.read(), dx, da, db});
        return;
      }
      lora_linear_backward(context, {dy, operands.x, h, base_of(call, operands), operands.adapter,
                                     dropout.read(), dx, da, db});
    });
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    // dx of a batch is dx of more rows; da and db would be summed over the batch.
    const auto batched = [&](std::size_t i) { return axes[i] >= 0; };
    const std::size_t dy = call_.count();
    bool rows_only_batched = batched(0) && batched(dy) && batched(dy + 1);
    for (std::size_t i = 1; i < dy; ++i) rows_only_batched &= !batched(i);
    if (!rows_only_batched || wanted_.da || wanted_.db || call_.dropout > 0) {
      return FusedPrimitive::vmap(inputs, axes);
    }
    const Arrays moved = batch_first(inputs, axes);
    return {{mx::array(moved[0].shape(), moved[0].dtype(),
                       std::make_shared<LoraBackward>(stream(), caller(), call_, wanted_), moved)},
            {0}};
  }

  const char* name() const override { return "GraftLoraBackward"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const LoraBackward&>(other);
    return o.call_ == call_ && o.wanted_ == wanted_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    std::vector<mx::Shape> shapes;
    if (wanted_.dx) shapes.push_back(inputs[0].shape());
    if (wanted_.da) shapes.push_back(inputs[1].shape());
    if (wanted_.db) shapes.push_back(inputs[2].shape());
    return shapes;
  }

 protected:
  // Makes h again from x instead of reading it, so that derivatives of this see all of x and A.
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<LoraBackward*>(this)->stream();
    const Arrays primals(inputs.begin(), inputs.begin() + static_cast<int>(call_.count()));
    std::vector<int> argnums;
    if (wanted_.dx) argnums.push_back(0);
    if (wanted_.da) argnums.push_back(1);
    if (wanted_.db) argnums.push_back(2);
    const auto y = [&](const Arrays& values) { return Arrays{composed_lora(call_, values, s)[0]}; };
    Arrays gradients = vjp_in(y, primals, {inputs[call_.count()]}, argnums);
    for (std::size_t i = wanted_.dx ? 1 : 0; i < gradients.size(); ++i) {
      gradients[i] = mx::astype(gradients[i], mx::float32, s);
    }
    return gradients;
  }

 private:
  LoraCall call_;
  Wanted wanted_;
};

// Outputs: y, and h = drop(x)·A for backward, which no caller sees.
class LoraForward : public FusedPrimitive {
 public:
  LoraForward(mx::Stream stream, const Caller& caller, LoraCall call)
      : FusedPrimitive(stream, caller, Pass::kForward), call_(std::move(call)) {}

  static Arrays make(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                     mx::Stream s) {
    auto node = std::make_shared<LoraForward>(s, caller, call);
    auto shapes = node->output_shapes(inputs);
    return mx::array::make_arrays(shapes, {inputs[0].dtype(), mx::float32}, node, inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    const Operands operands = views_of(call_, inputs, stream());
    const TensorView y = allocate_rows(outputs[0]);
    const TensorView h = allocate_rows(outputs[1]);
    dispatch(outputs, [=, call = call_, dropout = DropoutSource(call_, inputs)](Context& context) {
      if (!call.has_weight()) {
        lora_delta_forward(context, {operands.x, operands.adapter, dropout.read(), false, y, h});
        return;
      }
      lora_linear_forward(context, {operands.x, base_of(call, operands), operands.bias,
                                    operands.adapter, dropout.read(), y, h});
    });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override;

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    const bool only_x =
        std::all_of(axes.begin() + 1, axes.end(), [](int axis) { return axis < 0; });
    // Dropout counts elements of x: a batch folded into rows would get other masks.
    if (!only_x || call_.dropout > 0) return FusedPrimitive::vmap(inputs, axes);
    return {make(call_, batch_first(inputs, axes), caller(), stream()), {0, 0}};
  }

  const char* name() const override { return "GraftLora"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const LoraForward&>(other).call_ == call_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {with_last(inputs[0].shape(), inputs[2].shape(1)),
            with_last(inputs[0].shape(), inputs[1].shape(1))};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    return composed_lora(call_, inputs, const_cast<LoraForward*>(this)->stream());
  }

 private:
  LoraCall call_;
};

// Gradients in the frozen operands, from MLX ops.
mx::array frozen_gradient(const LoraCall& call, const Arrays& primals, const mx::array& dy,
                          std::size_t index, mx::Stream s) {
  const mx::array& operand = primals[index];
  if (call.plain && index == call.w()) {
    return weight_gradient(primals[0], dy, operand.dtype(), s);
  }
  if (call.bias && index == call.bias_index()) return bias_gradient(dy, operand.dtype(), s);
  return mx::zeros_like(operand, s);  // seed and offset
}

// The cotangent of h is not looked at: no caller sees h, and LoraBackward's own derivatives make it
// again from x.
Arrays LoraForward::vjp(const Arrays& primals, const Arrays& cotangents,
                        const std::vector<int>& argnums, const Arrays& outputs) {
  const mx::Stream s = stream();
  const auto asked = [&](int i) {
    return std::find(argnums.begin(), argnums.end(), i) != argnums.end();
  };
  const Wanted wanted{asked(0), asked(1), asked(2)};
  if (wanted.any()) {
    if (const auto support = supports_backward(call_, primals, wanted, s); !support) {
      return composed_vjp(primals, {cotangents[0]}, argnums, support.reason);
    }
  }

  Arrays computed;
  if (wanted.any()) {
    Arrays inputs = primals;
    inputs.push_back(cotangents[0]);
    inputs.push_back(outputs[1]);
    auto node = std::make_shared<LoraBackward>(s, caller(), call_, wanted);
    auto shapes = node->output_shapes(inputs);
    std::vector<mx::Dtype> dtypes(shapes.size(), mx::float32);
    if (wanted.dx) dtypes[0] = primals[0].dtype();
    computed = mx::array::make_arrays(shapes, dtypes, node, inputs);
  }
  Arrays gradients;
  std::size_t next = 0;
  for (const int argnum : argnums) {
    const auto index = static_cast<std::size_t>(argnum);
    gradients.push_back(index < 3 ? mx::astype(computed[next++], primals[index].dtype(), s)
                                  : frozen_gradient(call_, primals, cotangents[0], index, s));
  }
  return gradients;
}

}  // namespace

Support supports_forward(const LoraCall& call, const Arrays& inputs, mx::Stream s) {
  if (auto support = allowed(s); !support) return support;
  if (auto support = dtypes_known(inputs, call.seed()); !support) return support;
  const Operands operands = shapes_of(call, inputs);
  const auto rows = rows_of(inputs[0].shape());
  const TensorView y = shape_only(inputs[0].dtype(), {rows, inputs[2].shape(1)});
  const TensorView h = shape_only(mx::float32, {rows, inputs[1].shape(1)});
  const graft::Dropout dropout{call.dropout, 0, 0};
  if (!call.has_weight()) {
    return graft::supports(LoraDeltaForward{operands.x, operands.adapter, dropout, false, y, h});
  }
  return graft::supports(LoraLinearForward{operands.x, base_of(call, operands), operands.bias,
                                           operands.adapter, dropout, y, h});
}

mx::array fused_lora(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                     mx::Stream s) {
  return LoraForward::make(call, inputs, caller, s)[0];
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

}  // namespace graft::mlx::detail
