#include "graft/mlx/linear.h"

#include <stdexcept>
#include <string>

#include "graft/error.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/linear_primitive.h"
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
  const auto support = detail::supports_forward(call, inputs, s);
  if (support) return detail::fused_linear(call, inputs, caller, s);
  return detail::counted(detail::composed_linear(call, inputs, s), caller, Direction::kForward,
                         support.reason, s);
}

}  // namespace

Weight pack(const mx::array& w, mx::Dtype dtype, bool backward) {
  detail::expect_matrix("pack", "w", w);
  if (dtype != mx::float32 && dtype != mx::bfloat16) {
    throw std::invalid_argument("[pack] dtype: expected float32 or bfloat16");
  }
  const bool viewable = w.dtype() == mx::float32 || w.dtype() == mx::bfloat16;
  mx::array source = viewable ? w : mx::astype(w, mx::float32);
  source.eval();
  try {
    return std::make_shared<const PackedWeight>(
        detail::matrix_view(source), *detail::dtype_of(dtype),
        backward ? Packing::kForwardAndBackward : Packing::kForward);
  } catch (const Error& error) {
    throw std::invalid_argument(error.what());
  }
}

mx::array unpack(const Weight& w, mx::StreamOrDevice s) {
  if (w == nullptr) detail::reject("unpack", "w", "a packed weight", "null");
  return detail::unpacked(w, mx::to_stream(s));
}

mx::array linear(const mx::array& x, const Weight& w, const std::optional<mx::array>& bias,
                 mx::StreamOrDevice s) {
  if (w == nullptr) detail::reject(kOp, "w", "a packed weight", "null");
  LinearCall call;
  call.weight = w;
  return run(std::move(call), {x}, static_cast<int>(w->in_features()), bias, s);
}

mx::array linear(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias,
                 mx::StreamOrDevice s) {
  detail::expect_matrix(kOp, "w", w);
  return run({}, {x, w}, w.shape(1), bias, s);
}

}  // namespace graft::mlx
