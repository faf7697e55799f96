#include "graft/mlx/lora.h"

#include <cmath>
#include <string>
#include <utility>

#include "graft/mlx/detail/lora_primitive.h"
#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/metal_linear.h"
#include "graft/mlx/detail/metal_lora.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::LoraCall;

constexpr const char* kDelta = "lora_delta";
constexpr const char* kLinear = "lora_linear";

void check_adapter(const char* op, const mx::array& x, const mx::array& a, const mx::array& b,
                   float scaling) {
  if (x.ndim() == 0) detail::reject(op, "x", "at least one dimension", "a scalar");
  if (!mx::issubdtype(x.dtype(), mx::floating)) {
    detail::reject(op, "x", "a floating-point dtype", "integers");
  }
  detail::expect_matrix(op, "a", a);
  detail::expect_matrix(op, "b", b);
  detail::expect_shape(op, "a", a, {x.shape(-1), a.shape(1)});
  detail::expect_shape(op, "b", b, {a.shape(1), b.shape(1)});
  if (!std::isfinite(scaling)) {
    detail::reject(op, "scaling", "a finite number", std::to_string(scaling));
  }
}

// Seed or offset as one uint64.
mx::array counter(const mx::array& value, const char* name, mx::Stream s) {
  if (value.size() != 1 || !mx::issubdtype(value.dtype(), mx::integer)) {
    detail::reject(kLinear, name, "one integer", "shape " + detail::shape_string(value.shape()));
  }
  return mx::astype(value, mx::uint64, s);
}

Support supported(const LoraCall& call, const Arrays& inputs, mx::Stream s) {
  if (!detail::on_metal(s)) return detail::supports_forward(call, inputs, s);
  return call.has_weight() ? detail::lora_linear_on_metal(call, inputs)
                           : detail::delta_on_metal(inputs);
}

mx::array run(const char* op, const LoraCall& call, const Arrays& inputs, mx::Stream s) {
  const detail::Caller caller{op};
  if (const Support support = supported(call, inputs, s); !support) {
    return detail::counted(detail::composed_lora(call, inputs, s)[0], caller, Pass::kForward,
                           support.reason, s);
  }
  if (!detail::on_metal(s)) return detail::fused_lora(call, inputs, caller, s);
  return call.has_weight() ? detail::metal_lora_linear(call, inputs, caller, s)
                           : detail::metal_delta(call, inputs, caller, s);
}

mx::array run_linear(LoraCall call, const mx::array& x, const std::optional<mx::array>& w,
                     const std::optional<mx::array>& bias, const mx::array& a, const mx::array& b,
                     const Dropout& dropout, mx::Stream s) {
  if (!(dropout.p >= 0.0f && dropout.p < 1.0f)) {
    detail::reject(kLinear, "dropout", "a chance in [0, 1)", std::to_string(dropout.p));
  }
  Arrays inputs{x, a, b};
  if (w) inputs.push_back(*w);
  call.plain = w.has_value();
  if (bias) {
    detail::expect_shape(kLinear, "bias", *bias, {b.shape(1)});
    inputs.push_back(*bias);
    call.bias = true;
  }
  if (graft::Dropout{dropout.p}.threshold() > 0) {
    inputs.push_back(counter(dropout.seed, "seed", s));
    inputs.push_back(counter(dropout.offset, "offset", s));
    call.dropout = dropout.p;
  }
  return run(kLinear, call, inputs, s);
}

}  // namespace

std::uint64_t dropout_counters(const mx::array& x) { return (x.size() + 7) / 8; }

mx::array lora_forward_fused(const mx::array& x, const mx::array& a, const mx::array& b,
                             float scaling, mx::StreamOrDevice s) {
  check_adapter(kDelta, x, a, b, scaling);
  LoraCall call;
  call.scaling = scaling;
  return run(kDelta, call, {x, a, b}, mx::to_stream(s));
}

mx::array lora_linear(const mx::array& x, const Weight& w, const std::optional<mx::array>& bias,
                      const mx::array& a, const mx::array& b, float scaling, const Dropout& dropout,
                      mx::StreamOrDevice s) {
  check_adapter(kLinear, x, a, b, scaling);
  detail::expect_present(kLinear, "w", w);
  if (const auto* array = detail::array_of(w)) {
    return lora_linear(x, *array, bias, a, b, scaling, dropout, s);
  }
  const mx::Shape shape = detail::shape_of(w), expected{b.shape(1), x.shape(-1)};
  if (shape != expected) {
    detail::reject(kLinear, "w", detail::shape_string(expected), detail::shape_string(shape));
  }
  LoraCall call;
  call.weight = w;
  call.scaling = scaling;
  return run_linear(std::move(call), x, std::nullopt, bias, a, b, dropout, mx::to_stream(s));
}

mx::array lora_linear(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias,
                      const mx::array& a, const mx::array& b, float scaling, const Dropout& dropout,
                      mx::StreamOrDevice s) {
  check_adapter(kLinear, x, a, b, scaling);
  detail::expect_shape(kLinear, "w", w, {b.shape(1), x.shape(-1)});
  LoraCall call;
  call.scaling = scaling;
  return run_linear(std::move(call), x, w, bias, a, b, dropout, mx::to_stream(s));
}

}  // namespace graft::mlx
