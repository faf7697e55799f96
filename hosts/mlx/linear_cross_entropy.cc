#include "graft/mlx/linear_cross_entropy.h"

#include <atomic>

#include "graft/linear_cross_entropy.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/primitive.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::FusedNode;
using detail::Outputs;
using detail::Views;

constexpr const char* kOp = "linear_cross_entropy";

// Whether a node is to compute the gradient of x with the losses. That may be said after it was
// made, if it is not evaluated yet; a copy of the node is told apart from it.
class Wish {
 public:
  explicit Wish(bool wanted = false) : wanted_(wanted) {}
  Wish(const Wish& other) : wanted_(other.wanted_.load()) {}
  Wish& operator=(const Wish&) = delete;

  explicit operator bool() const { return wanted_; }
  // Returns what it was.
  bool exchange(bool wanted) const { return wanted_.exchange(wanted); }
  bool operator==(const Wish& other) const { return wanted_ == other.wanted_; }

 private:
  mutable std::atomic<bool> wanted_;
};

// What a call is besides its arrays, which come in this order: x, targets, [w].
struct LinearCrossEntropyCall {
  Weight weight;  // if absent, w is among the arrays
  int ignore_index = -100;
  Wish gradient{};

  bool plain() const { return !weight.present(); }
  LinearCrossEntropyCall with_gradient() const { return {weight, ignore_index, Wish(true)}; }
  bool operator==(const LinearCrossEntropyCall&) const = default;
};

Arrays composed_losses(const LinearCrossEntropyCall& call, const Arrays& in, mx::Stream s) {
  const auto w = call.plain() ? in[2] : detail::unpacked(call.weight, s);
  return {detail::composed_linear_cross_entropy(in[0], w, in[1], call.ignore_index, s)};
}

// d(losses)/dx from MLX ops, rows unscaled.
mx::array composed_gradient(const LinearCrossEntropyCall& call, const Arrays& in, mx::Stream s) {
  const auto losses = [&](const Arrays& values) { return composed_losses(call, values, s); };
  return detail::vjp_in(losses, in, {mx::ones(in[1].shape(), mx::float32, s)}, {0})[0];
}

// d(losses)/dx, handed on from the forward node that computed it. Only its derivatives are work,
// and they start again from x. Inputs: those of the forward node, the gradient.
struct HandedGradient {
  using State = LinearCrossEntropyCall;
  struct Params {};
  static constexpr const char* kName = "GraftLinearCrossEntropyGradient";
  static constexpr Pass kPass = Pass::kBackward;
  static void kRun(Context&, const Params&) {}

  static Outputs outputs(const State&, const Arrays& in) {
    return {{in[0].shape()}, {in[0].dtype()}};
  }
  static Params params(const State&, Views& views, const Arrays& in, const Arrays& out) {
    views.hand_on(in.back(), out[0]);
    return {};
  }
  static std::vector<bool> has_rows(const State&, const Arrays&) { return {}; }
  static Arrays composed(const State& call, const Arrays& in, mx::Stream s) {
    return {composed_gradient(call, {in.begin(), in.end() - 1}, s)};
  }
};

// Outputs: losses, and d(losses)/dx, which is empty unless it was wished for in time.
struct FusedLinearCrossEntropy {
  using State = LinearCrossEntropyCall;
  using Params = LinearCrossEntropy;
  static constexpr const char* kName = "GraftLinearCrossEntropy";
  static constexpr Pass kPass = Pass::kForward;
  static constexpr auto kRun = graft::linear_cross_entropy;

  static Outputs outputs(const State&, const Arrays& in) {
    return {{in[1].shape(), in[0].shape()}, {mx::float32, in[0].dtype()}};
  }
  static Params params(const State& call, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.x = views.rows(in[0]);
    params.targets = views.line(in[1]);
    params.weight = call.plain() ? Weight(views.weight(in[2])) : views.weight(call.weight);
    params.ignore_index = call.ignore_index;
    params.losses = views.out_line(out[0]);
    if (call.gradient) {
      params.dx = views.out_rows(out[1]);
    } else {
      views.out_nothing(out[1]);
    }
    return params;
  }
  static std::vector<bool> has_rows(const State& call, const Arrays&) {
    if (call.plain()) return {true, true, false};
    return {true, true};
  }
  static Arrays composed(const State& call, const Arrays& in, mx::Stream s) {
    return {composed_losses(call, in, s)[0], composed_gradient(call, in, s)};
  }

  static mx::array dx(const detail::Gradients<State>& call) {
    mx::array gradient = call.outputs[1];
    const bool evaluated = call.outputs[0].status() != mx::array::unscheduled;
    if (!call.state.gradient.exchange(true) && evaluated) {
      // The losses came before anybody asked: once more, with the gradient.
      gradient = FusedNode<FusedLinearCrossEntropy>::make(call.state.with_gradient(), call.primals,
                                                          call.caller, call.s)[1];
      call.state.gradient.exchange(false);
    }
    Arrays inputs = call.primals;
    inputs.push_back(gradient);
    const auto unscaled =
        FusedNode<HandedGradient>::make(call.state, inputs, call.caller, call.s)[0];
    const auto rows = mx::expand_dims(call.cotangents[0], -1, call.s);
    const auto factors = mx::astype(rows, gradient.dtype(), call.s);
    return mx::multiply(unscaled, factors, call.s);
  }

  static Arrays gradients(const detail::Gradients<State>& call) {
    Support support = detail::serves_dx(call.state.weight);
    if (support) {
      support = FusedNode<FusedLinearCrossEntropy>::supported(call.state.with_gradient(),
                                                              call.primals, call.s);
    }
    // W's gradient, dlogitsᵀ·x, has no kernel; x's then comes along with it.
    if (support && call.asked(2)) support = Support::no("the weight's gradient has no kernel");
    if (!support) return call.composed(support, 1, call.argnums);
    Arrays gradients;
    for (const int argnum : call.argnums) {
      gradients.push_back(argnum == 0 ? dx(call) : mx::zeros_like(call.primals[1], call.s));
    }
    return gradients;
  }
};

mx::array run(const LinearCrossEntropyCall& call, Arrays inputs, mx::StreamOrDevice device) {
  const mx::Stream s = mx::to_stream(device);
  const mx::array& x = inputs[0];
  detail::expect_rows(kOp, "x", x);
  auto rows = x.shape();
  rows.pop_back();
  detail::expect_shape(kOp, "targets", inputs[1], rows);
  if (!mx::issubdtype(inputs[1].dtype(), mx::integer)) {
    detail::reject(kOp, "targets", "integers", "another dtype");
  }
  inputs[1] = mx::astype(inputs[1], mx::int32, s);
  return detail::fused_or_composed<FusedLinearCrossEntropy>(call, inputs, {kOp}, s)[0];
}

}  // namespace

mx::array linear_cross_entropy(const mx::array& x, const Weight& w, const mx::array& targets,
                               int ignore_index, mx::StreamOrDevice s) {
  detail::expect_present(kOp, "w", w);
  if (const auto* array = detail::array_of(w)) {
    return linear_cross_entropy(x, *array, targets, ignore_index, s);
  }
  if (x.ndim() > 0) {
    detail::expect_shape(kOp, "x", x,
                         detail::with_last(x.shape(), static_cast<int>(w.in_features())));
  }
  return run({w, ignore_index}, {x, targets}, s);
}

mx::array linear_cross_entropy(const mx::array& x, const mx::array& w, const mx::array& targets,
                               int ignore_index, mx::StreamOrDevice s) {
  detail::expect_matrix(kOp, "w", w);
  if (x.ndim() > 0) detail::expect_shape(kOp, "x", x, detail::with_last(x.shape(), w.shape(1)));
  return run({{}, ignore_index}, {x, targets, w}, s);
}

}  // namespace graft::mlx
