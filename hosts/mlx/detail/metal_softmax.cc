#include "graft/mlx/detail/metal_softmax.h"

#include <memory>
#include <utility>

#include "graft/metal_softmax.h"
#include "graft/mlx/detail/metal_rows.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

metal::Softmax shape_of(const mx::array& x) {
  return {rows_of(x.shape()), x.shape(-1), *dtype_of(x.dtype())};
}

Outputs like_first(const Arrays& inputs) { return {{inputs[0].shape()}, {inputs[0].dtype()}}; }

// Inputs: dy, y, scale. Output: dx.
std::shared_ptr<const RowLaunch> backward(mx::Stream s) {
  RowLaunch launch;
  launch.pass = Pass::kBackward;
  launch.has_rows = {true, true, false};
  launch.call = [](const Arrays& in) { return metal::softmax_backward(shape_of(in[0])); };
  launch.outputs = like_first;
  launch.composed = [s](const Arrays& in) {
    const mx::array dy = mx::astype(in[0], mx::float32, s), y = mx::astype(in[1], mx::float32, s);
    const mx::array dot = mx::sum(mx::multiply(dy, y, s), -1, true, s);
    const mx::array dx = mx::multiply(y, mx::subtract(dy, dot, s), s);
    return Arrays{mx::astype(mx::multiply(dx, in[2], s), in[0].dtype(), s)};
  };
  return std::make_shared<const RowLaunch>(std::move(launch));
}

// Inputs: x, scale, of which nobody asks the gradient. Output: y.
std::shared_ptr<const RowLaunch> forward(const ArraysFunction& composed, const Caller& caller,
                                         mx::Stream s) {
  RowLaunch launch;
  launch.has_rows = {true, false};
  launch.call = [](const Arrays& in) { return metal::softmax_forward(shape_of(in[0])); };
  launch.outputs = like_first;
  launch.composed = composed;
  launch.gradients = [caller, s](const Arrays& primals, const Arrays& cotangents,
                                 const std::vector<int>& argnums, const Arrays& outputs) {
    Arrays gradients;
    for (const int i : argnums) {
      gradients.push_back(
          i == 0 ? launch_rows(backward(s), {cotangents[0], outputs[0], primals[1]}, caller, s)[0]
                 : mx::zeros_like(primals[1], s));
    }
    return gradients;
  };
  return std::make_shared<const RowLaunch>(std::move(launch));
}

}  // namespace

Support softmax_on_metal(const mx::array& x) {
  if (auto support = takes_on_metal({x}); !support) return support;
  return metal::supports(shape_of(x));
}

mx::array metal_softmax(const mx::array& x, float scale, const ArraysFunction& composed,
                        const Caller& caller, mx::Stream s) {
  return launch_rows(forward(composed, caller, s), {x, mx::array(scale)}, caller, s)[0];
}

}  // namespace graft::mlx::detail
