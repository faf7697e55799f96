#include "graft/mlx/linear.h"

#include <utility>

#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/linear_primitive.h"
#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/metal_linear.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::LinearCall;

constexpr const char* kOp = "linear";

mx::array run(LinearCall call, Arrays inputs, int in_features, const std::optional<mx::array>& bias,
              mx::StreamOrDevice device) {
  const mx::array& x = inputs[0];
  if (x.ndim() == 0) detail::reject(kOp, "x", "at least one dimension", "a scalar");
  if (!mx::issubdtype(x.dtype(), mx::floating)) {
    detail::reject(kOp, "x", "a floating-point dtype", "integers");
  }
  detail::expect_shape(kOp, "x", x, detail::with_last(x.shape(), in_features));
  if (bias) {
    detail::expect_shape(kOp, "bias", *bias, {call.out_features(inputs)});
    inputs.push_back(*bias);
    call.bias = true;
  }
  const mx::Stream s = mx::to_stream(device);
  const detail::Caller caller{kOp};
  const bool metal = detail::on_metal(s);
  const Support support =
      metal ? detail::linear_on_metal(call, inputs) : detail::supports_forward(call, inputs, s);
  if (support) {
    return metal ? detail::metal_linear(call, inputs, caller, s)
                 : detail::fused_linear(call, inputs, caller, s);
  }
  return detail::counted(detail::composed_linear(call, inputs, s), caller, Pass::kForward,
                         support.reason, s);
}

}  // namespace

mx::array linear(const mx::array& x, const Weight& w, const std::optional<mx::array>& bias,
                 mx::StreamOrDevice s) {
  detail::expect_present(kOp, "w", w);
  if (const auto* array = detail::array_of(w)) return linear(x, *array, bias, s);
  LinearCall call;
  call.weight = w;
  return run(std::move(call), {x}, static_cast<int>(w.in_features()), bias, s);
}

mx::array linear(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias,
                 mx::StreamOrDevice s) {
  detail::expect_matrix(kOp, "w", w);
  return run({}, {x, w}, w.shape(1), bias, s);
}

}  // namespace graft::mlx
