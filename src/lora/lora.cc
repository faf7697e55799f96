#include "graft/lora.h"

#include <cmath>
#include <string>

#include "checks.h"
#include "lora/cpu.h"
#include "lora/metal.h"
#include "weight/weight.h"

namespace graft {
namespace {

void check_dropout(const Check& check, const Dropout& dropout) {
  if (!(dropout.p >= 0.0f && dropout.p < 1.0f)) {
    check.fail("dropout: expected p in [0, 1), got " + std::to_string(dropout.p));
  }
}

// A (in, rank) and B (rank, out), of one rank that the kernels take.
void check_adapter(const Check& check, const Adapter& adapter, Device device) {
  check.rank("a", adapter.a, 2);
  check.rank("b", adapter.b, 2);
  const std::int64_t rank = adapter.a.dim(1);
  if (rank < 1 || rank > kMaxLoraRank) {
    check.fail("a: expected a rank of 1 to 256 columns, got " + adapter.a.shape_string());
  }
  check.shape("b", adapter.b, {rank, adapter.b.dim(1)});
  check.device("a", adapter.a, device);
  check.device("b", adapter.b, device);
  check.that(std::isfinite(adapter.scaling), "scaling: expected a finite number");
}

void check_h(const Check& check, const ConstTensorView& h, std::int64_t rows, std::int64_t rank,
             Device device) {
  check.shape("h", h, {rows, rank});
  check.dtype("h", h, {DType::kFloat32});
  check.dense("h", h);
  check.device("h", h, device);
}

void check_gradient(const Check& check, const char* tensor, const TensorView& view,
                    std::initializer_list<std::int64_t> shape, Device device) {
  check.shape(tensor, view, shape);
  check.dtype(tensor, view, {DType::kFloat32});
  check.writable(tensor, view);
  check.device(tensor, view, device);
}

template <class Params>
void check_forward(const Check& check, const Params& p) {
  const Device device = p.x.device();
  check.rank("x", p.x, 2);
  check_adapter(check, p.adapter, device);
  check_dropout(check, p.dropout);
  const std::int64_t rows = p.x.dim(0), in = p.adapter.a.dim(0), out = p.adapter.b.dim(1);
  check.shape("x", p.x, {rows, in});
  check.shape("y", p.y, {rows, out});
  check.rows_output("y", p.y, device);
  if (p.h.present()) check_h(check, p.h, rows, p.adapter.a.dim(1), device);
}

template <class Params>
void check_backward(const Check& check, const Params& p) {
  const Device device = p.dy.device();
  check.rank("dy", p.dy, 2);
  check_adapter(check, p.adapter, device);
  check_dropout(check, p.dropout);
  const std::int64_t rows = p.dy.dim(0), in = p.adapter.a.dim(0), out = p.adapter.b.dim(1);
  const std::int64_t rank = p.adapter.a.dim(1);
  check.shape("dy", p.dy, {rows, out});
  if (p.dx.present()) {
    check.shape("dx", p.dx, {rows, in});
    check.rows_output("dx", p.dx, device);
  }
  if (p.da.present()) {
    check.shape("x", p.x, {rows, in});
    check.device("x", p.x, device);
    check_gradient(check, "da", p.da, {in, rank}, device);
  }
  if (p.db.present()) {
    check_h(check, p.h, rows, rank, device);
    check_gradient(check, "db", p.db, {rank, out}, device);
  }
}

template <class Params>
void check_weight_fits(const Check& check, const Params& p, Device device, Direction direction) {
  check_weight(check, p.weight, device, direction);
  check.shape("a", p.adapter.a, {p.weight.in_features(), p.adapter.a.dim(1)});
  check.shape("b", p.adapter.b, {p.adapter.a.dim(1), p.weight.out_features()});
}

void check(const LoraDeltaForward& p) { check_forward(Check("lora_delta"), p); }

void check(const LoraDeltaBackward& p) { check_backward(Check("lora_delta_backward"), p); }

void check(const LoraLinearForward& p) {
  const Check check("lora_linear");
  check_adapter(check, p.adapter, p.x.device());
  check_weight_fits(check, p, p.x.device(), Direction::kForward);
  check_forward(check, p);
  if (p.bias.present()) {
    check.shape("bias", p.bias, {p.weight.out_features()});
    check.device("bias", p.bias, p.x.device());
  }
}

void check(const LoraLinearBackward& p) {
  const Check check("lora_linear_backward");
  check_adapter(check, p.adapter, p.dy.device());
  if (p.dx.present() || p.weight.present()) {
    check_weight_fits(check, p, p.dy.device(), Direction::kBackward);
  }
  check_backward(check, p);
}

Support adapter_on_cpu(const Adapter& adapter) {
  return all_of({float_on_cpu("a", adapter.a), float_on_cpu("b", adapter.b)});
}

Support supports_on_cpu(const LoraDeltaForward& p) {
  return all_of({on_cpu(p.x.device()), float_on_cpu("x", p.x), adapter_on_cpu(p.adapter),
                 float_on_cpu("y", p.y)});
}

Support supports_on_cpu(const LoraDeltaBackward& p) {
  return all_of({on_cpu(p.dy.device()), float_on_cpu("dy", p.dy), float_on_cpu("x", p.x),
                 adapter_on_cpu(p.adapter), float_on_cpu("dx", p.dx)});
}

Support supports_on_cpu(const LoraLinearForward& p) {
  return all_of({on_cpu(p.x.device()), float_on_cpu("x", p.x), weight_on_cpu(p.weight),
                 float_on_cpu("bias", p.bias), adapter_on_cpu(p.adapter), float_on_cpu("y", p.y)});
}

Support supports_on_cpu(const LoraLinearBackward& p) {
  return all_of({on_cpu(p.dy.device()), float_on_cpu("dy", p.dy), float_on_cpu("x", p.x),
                 weight_on_cpu(p.weight), adapter_on_cpu(p.adapter), float_on_cpu("dx", p.dx)});
}

}  // namespace

Support supports(const LoraDeltaForward& p) {
  if (p.x.device().type == DeviceType::kMetal) return metal::supports(p);
  return supports_on_cpu(p);
}

Support supports(const LoraDeltaBackward& p) {
  if (p.dy.device().type == DeviceType::kMetal) return metal::supports(p);
  return supports_on_cpu(p);
}

Support supports(const LoraLinearForward& p) {
  if (p.x.device().type == DeviceType::kMetal) return metal::supports(p);
  return supports_on_cpu(p);
}

Support supports(const LoraLinearBackward& p) {
  if (p.dy.device().type == DeviceType::kMetal) return metal::supports(p);
  return supports_on_cpu(p);
}

void lora_delta_forward(Context& context, const LoraDeltaForward& params) {
  check(params);
  require("lora_delta", supports_on_cpu(params));
  cpu::lora_delta_forward(context, params);
}

void lora_delta_backward(Context& context, const LoraDeltaBackward& params) {
  check(params);
  require("lora_delta_backward", supports_on_cpu(params));
  cpu::lora_delta_backward(context, params);
}

void lora_linear_forward(Context& context, const LoraLinearForward& params) {
  check(params);
  require("lora_linear", supports_on_cpu(params));
  cpu::lora_linear_forward(context, params);
}

void lora_linear_backward(Context& context, const LoraLinearBackward& params) {
  check(params);
  require("lora_linear_backward", supports_on_cpu(params));
  cpu::lora_linear_backward(context, params);
}

metal::Plan metal::plan(const LoraDeltaForward& params) {
  check(params);
  require("lora_delta", metal::supports(params));
  return metal::lora_delta_forward(params);
}

metal::Plan metal::plan(const LoraDeltaBackward& params) {
  check(params);
  require("lora_delta_backward", metal::supports(params));
  return metal::lora_delta_backward(params);
}

metal::Plan metal::plan(const LoraLinearForward& params) {
  check(params);
  require("lora_linear", metal::supports(params));
  return metal::lora_linear_forward(params);
}

metal::Plan metal::plan(const LoraLinearBackward& params) {
  check(params);
  require("lora_linear_backward", metal::supports(params));
  return metal::lora_linear_backward(params);
}

}  // namespace graft
