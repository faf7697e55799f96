#include "graft/lora.h"

#include <cmath>
#include <cstddef>
#include <span>
#include <string>

#include "backend/table.h"
#include "lora/metal.h"
#include "weight/weight.h"

namespace graft {
namespace {

constexpr const char* kDelta = "lora_delta";
constexpr const char* kDeltaBackward = "lora_delta_backward";
constexpr const char* kLinear = "lora_linear";
constexpr const char* kLinearBackward = "lora_linear_backward";

void check_dropout(const Check& check, const Dropout& dropout) {
  if (!dropout.valid()) {
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

void check(const LoraDeltaForward& p) {
  const Check check(kDelta);
  check_adapter(check, p.adapter, p.x.device());
  check_forward(check, p);
}

void check(const LoraDeltaBackward& p) {
  const Check check(kDeltaBackward);
  check_adapter(check, p.adapter, p.dy.device());
  check_backward(check, p);
}

void check_linear(const Check& check, const LoraLinearForward& p) {
  check_adapter(check, p.adapter, p.x.device());
  check_weight_fits(check, p, p.x.device(), Direction::kForward);
  check_forward(check, p);
  check_bias(check, p.bias, p.weight, p.x.device());
}

void check_linear(const Check& check, const LoraLinearBackward& p) {
  check_adapter(check, p.adapter, p.dy.device());
  if (p.dx.present() || p.weight.present()) {
    check_weight_fits(check, p, p.dy.device(), Direction::kBackward);
  }
  check_backward(check, p);
}

// One of several layers, without an adapter.
void check_plain(const Check& check, const LoraLinearForward& p) {
  const Device device = p.x.device();
  check_weight(check, p.weight, device, Direction::kForward);
  check.rank("x", p.x, 2);
  check.shape("x", p.x, {p.x.dim(0), p.weight.in_features()});
  check.shape("y", p.y, {p.x.dim(0), p.weight.out_features()});
  check.rows_output("y", p.y, device);
  check_bias(check, p.bias, p.weight, device);
  check.that(!p.h.present(), "h: expected with an adapter only");
}

void check_plain(const Check& check, const LoraLinearBackward& p) {
  check.rank("dy", p.dy, 2);
  check.that(!p.da.present() && !p.db.present(), "da, db: expected with an adapter only");
  if (!p.dx.present()) return;
  check_weight(check, p.weight, p.dy.device(), Direction::kBackward);
  check.shape("dy", p.dy, {p.dy.dim(0), p.weight.out_features()});
  check.shape("dx", p.dx, {p.dy.dim(0), p.weight.in_features()});
  check.rows_output("dx", p.dx, p.dy.device());
}

void check_shared(const Check& check, const LoraLinearForward& p, const LoraLinearForward& first) {
  check.that(p.x == first.x, "x: expected the same view in all layers");
}

void check_shared(const Check& check, const LoraLinearBackward& p,
                  const LoraLinearBackward& first) {
  check.that(p.x == first.x, "x: expected the same view in all layers");
  check.that(p.dx == first.dx, "dx: expected the same view in all layers");
  check.shape("dy", p.dy, {first.dy.dim(0), p.dy.dim(1)});
  check.device("dy", p.dy, first.dy.device());
}

Device device_of(const LoraSiblingsForward& layers) {
  return layers.empty() ? Device{} : layers.front().x.device();
}

Device device_of(const LoraSiblingsBackward& layers) {
  return layers.empty() ? Device{} : layers.front().dy.device();
}

// Errors name the layer: "[lora_linear 1] b: ...".
template <class Params>
void check_siblings(const char* op, std::span<const Params> layers) {
  Check(op).that(!layers.empty(), "layers: expected at least one");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string name = op + (' ' + std::to_string(i));
    const Check check(name.c_str());
    const Adapter& adapter = layers[i].adapter;
    if (adapter.a.present() || adapter.b.present()) {
      check_linear(check, layers[i]);
    } else {
      check_plain(check, layers[i]);
    }
    check_shared(check, layers[i], layers.front());
  }
}

}  // namespace

Support supports(const LoraDeltaForward& p) { return supports_on(p.x.device(), p); }
Support supports(const LoraDeltaBackward& p) { return supports_on(p.dy.device(), p); }
Support supports(const LoraLinearForward& p) { return supports_on(p.x.device(), p); }
Support supports(const LoraLinearBackward& p) { return supports_on(p.dy.device(), p); }
Support supports(const LoraSiblingsForward& layers) {
  return supports_on(device_of(layers), layers);
}
Support supports(const LoraSiblingsBackward& layers) {
  return supports_on(device_of(layers), layers);
}

std::size_t scratch_bytes(const LoraDeltaForward& params, int threads) {
  return scratch_bytes_on(params.x.device(), kDelta, params, threads);
}

std::size_t scratch_bytes(const LoraDeltaBackward& params, int threads) {
  return scratch_bytes_on(params.dy.device(), kDeltaBackward, params, threads);
}

std::size_t scratch_bytes(const LoraLinearForward& params, int threads) {
  return scratch_bytes_on(params.x.device(), kLinear, params, threads);
}

std::size_t scratch_bytes(const LoraLinearBackward& params, int threads) {
  return scratch_bytes_on(params.dy.device(), kLinearBackward, params, threads);
}

std::size_t scratch_bytes(const LoraSiblingsForward& layers, int threads) {
  return scratch_bytes_on(device_of(layers), kLinear, layers, threads);
}

std::size_t scratch_bytes(const LoraSiblingsBackward& layers, int threads) {
  return scratch_bytes_on(device_of(layers), kLinearBackward, layers, threads);
}

void lora_delta_forward(Context& context, const LoraDeltaForward& params) {
  check(params);
  run_on(params.x.device(), kDelta, context, params);
}

void lora_delta_backward(Context& context, const LoraDeltaBackward& params) {
  check(params);
  run_on(params.dy.device(), kDeltaBackward, context, params);
}

void lora_linear_forward(Context& context, const LoraLinearForward& params) {
  check_linear(Check(kLinear), params);
  run_on(params.x.device(), kLinear, context, params);
}

void lora_linear_backward(Context& context, const LoraLinearBackward& params) {
  check_linear(Check(kLinearBackward), params);
  run_on(params.dy.device(), kLinearBackward, context, params);
}

void lora_linear_forward(Context& context, const LoraSiblingsForward& layers) {
  check_siblings(kLinear, layers);
  run_on(device_of(layers), kLinear, context, layers);
}

void lora_linear_backward(Context& context, const LoraSiblingsBackward& layers) {
  check_siblings(kLinearBackward, layers);
  run_on(device_of(layers), kLinearBackward, context, layers);
}

metal::Plan metal::plan(const LoraDeltaForward& params) {
  check(params);
  require(kDelta, metal::supports(params));
  return metal::lora_delta_forward(params);
}

metal::Plan metal::plan(const LoraDeltaBackward& params) {
  check(params);
  require(kDeltaBackward, metal::supports(params));
  return metal::lora_delta_backward(params);
}

metal::Plan metal::plan(const LoraLinearForward& params) {
  check_linear(Check(kLinear), params);
  require(kLinear, metal::supports(params));
  return metal::lora_linear_forward(params);
}

metal::Plan metal::plan(const LoraLinearBackward& params) {
  check_linear(Check(kLinearBackward), params);
  require(kLinearBackward, metal::supports(params));
  return metal::lora_linear_backward(params);
}

}  // namespace graft
