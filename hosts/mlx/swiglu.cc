#include "graft/mlx/swiglu.h"

#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/primitive.h"
#include "graft/swiglu.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::FusedNode;
using detail::Outputs;
using detail::Views;

constexpr const char* kOp = "swiglu";

// A call is nothing besides its arrays.
struct Nothing {
  bool operator==(const Nothing&) const = default;
};

// Inputs: dy, gate, up. Outputs: dgate, dup.
struct FusedSwigluBackward {
  using State = Nothing;
  using Params = SwigluBackward;
  static constexpr const char* kName = "GraftSwigluBackward";
  static constexpr Pass kPass = Pass::kBackward;
  static constexpr auto kRun = swiglu_backward;

  static Outputs outputs(const State&, const Arrays& in) {
    return {{in[0].shape(), in[0].shape()}, {in[0].dtype(), in[0].dtype()}};
  }
  static Params params(const State&, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.dy = views.rows(in[0]);
    params.gate = views.rows(in[1]);
    params.up = views.rows(in[2]);
    params.dgate = views.out_rows(out[0]);
    params.dup = views.out_rows(out[1]);
    return params;
  }
  static std::vector<bool> has_rows(const State&, const Arrays&) { return {true, true, true}; }

  static Arrays composed(const State&, const Arrays& in, mx::Stream s) {
    const auto y = [s](const Arrays& v) { return Arrays{detail::composed_swiglu(v[0], v[1], s)}; };
    return detail::vjp_in(y, {in[1], in[2]}, {in[0]}, {0, 1});
  }
};

// Inputs: gate, up. Output: y.
struct FusedSwiglu {
  using State = Nothing;
  using Params = SwigluForward;
  static constexpr const char* kName = "GraftSwiglu";
  static constexpr Pass kPass = Pass::kForward;
  static constexpr auto kRun = swiglu_forward;

  static Outputs outputs(const State&, const Arrays& in) {
    return {{in[0].shape()}, {in[0].dtype()}};
  }
  static Params params(const State&, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.gate = views.rows(in[0]);
    params.up = views.rows(in[1]);
    params.y = views.out_rows(out[0]);
    return params;
  }
  static std::vector<bool> has_rows(const State&, const Arrays&) { return {true, true}; }

  static Arrays composed(const State&, const Arrays& in, mx::Stream s) {
    return {detail::composed_swiglu(in[0], in[1], s)};
  }

  static Arrays gradients(const detail::Gradients<State>& call) {
    const Arrays inputs{call.cotangents[0], call.primals[0], call.primals[1]};
    const Support support = FusedNode<FusedSwigluBackward>::supported({}, inputs, call.s);
    if (!support) return call.composed(support, 1, call.argnums);
    const Arrays both = FusedNode<FusedSwigluBackward>::make({}, inputs, call.caller, call.s);
    Arrays gradients;
    for (const int i : call.argnums) gradients.push_back(both[static_cast<std::size_t>(i)]);
    return gradients;
  }
};

}  // namespace

mx::array swiglu(const mx::array& gate, const mx::array& up, mx::StreamOrDevice device) {
  if (gate.ndim() == 0) detail::reject(kOp, "gate", "at least one dimension", "a scalar");
  detail::expect_shape(kOp, "up", up, gate.shape());
  if (up.dtype() != gate.dtype()) detail::reject(kOp, "up", "the dtype of gate", "another");
  return detail::fused_or_composed<FusedSwiglu>({}, {gate, up}, {kOp}, mx::to_stream(device))[0];
}

}  // namespace graft::mlx
