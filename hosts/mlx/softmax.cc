#include "graft/mlx/softmax.h"

#include "graft/mlx/detail/primitive.h"
#include "graft/softmax.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::FusedNode;
using detail::Outputs;
using detail::Views;

constexpr const char* kOp = "softmax";

struct SoftmaxCall {
  float scale;
  bool operator==(const SoftmaxCall&) const = default;
};

// Inputs: dy, y. Output: dx.
struct FusedSoftmaxBackward {
  using State = SoftmaxCall;
  using Params = SoftmaxBackward;
  static constexpr const char* kName = "GraftSoftmaxBackward";
  static constexpr Pass kPass = Pass::kBackward;
  static constexpr auto kRun = softmax_backward;

  static Outputs outputs(const State&, const Arrays& in) {
    return {{in[0].shape()}, {in[0].dtype()}};
  }
  static Params params(const State& state, Views& views, const Arrays& in, const Arrays& out) {
    return {views.rows(in[0]), views.rows(in[1]), state.scale, views.out_rows(out[0])};
  }
  static std::vector<bool> has_rows(const State&, const Arrays&) { return {true, true}; }

  static Arrays composed(const State& state, const Arrays& in, mx::Stream s) {
    const mx::array dy = mx::astype(in[0], mx::float32, s), y = mx::astype(in[1], mx::float32, s);
    const mx::array dot = mx::sum(mx::multiply(dy, y, s), -1, true, s);
    const mx::array dx = mx::multiply(y, mx::subtract(dy, dot, s), s);
    return {mx::astype(mx::multiply(dx, mx::array(state.scale), s), in[0].dtype(), s)};
  }
};

// Input: x. Output: y.
struct FusedSoftmax {
  using State = SoftmaxCall;
  using Params = SoftmaxForward;
  static constexpr const char* kName = "GraftSoftmax";
  static constexpr Pass kPass = Pass::kForward;
  static constexpr auto kRun = softmax_forward;

  static Outputs outputs(const State&, const Arrays& in) {
    return {{in[0].shape()}, {in[0].dtype()}};
  }
  static Params params(const State& state, Views& views, const Arrays& in, const Arrays& out) {
    return {views.rows(in[0]), state.scale, views.out_rows(out[0])};
  }
  static std::vector<bool> has_rows(const State&, const Arrays&) { return {true}; }

  static Arrays composed(const State& state, const Arrays& in, mx::Stream s) {
    if (state.scale == 1.0f) return {mx::softmax(in[0], -1, true, s)};
    // The factor makes the product float32, as it is in the kernels.
    const auto z = mx::multiply(in[0], mx::array(state.scale), s);
    return {mx::astype(mx::softmax(z, -1, true, s), in[0].dtype(), s)};
  }

  static Arrays gradients(const detail::Gradients<State>& call) {
    const Arrays inputs{call.cotangents[0], call.outputs[0]};
    const Support support = FusedNode<FusedSoftmaxBackward>::supported(call.state, inputs, call.s);
    if (!support) return call.composed(support, 1, call.argnums);
    return FusedNode<FusedSoftmaxBackward>::make(call.state, inputs, call.caller, call.s);
  }
};

}  // namespace

mx::array softmax(const mx::array& x, float scale, mx::StreamOrDevice device) {
  detail::expect_rows(kOp, "x", x);
  detail::expect_scale(kOp, scale);
  return detail::fused_or_composed<FusedSoftmax>({scale}, {x}, {kOp}, mx::to_stream(device))[0];
}

}  // namespace graft::mlx
