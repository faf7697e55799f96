#include <array>
#include <span>
#include <string>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/table.h"
#include "graft/lora.h"
#include "product/cuda/operands.h"
#include "product/cuda/product.h"

namespace graft::cuda {
namespace {

LowRank forward_pair(const Adapter& adapter, const Dropout& dropout, const TensorView& h) {
  LowRank pair;
  pair.shrink = adapter.a, pair.expand = adapter.b;
  pair.scaling = adapter.scaling;
  pair.input_dropout = active(dropout);
  pair.h = h;
  return pair;
}

// g = dy·Bᵀ takes the place of h, and Aᵀ that of B; dropout masks what the pair adds to dx.
LowRank backward_pair(const Adapter& adapter, const Dropout& dropout) {
  LowRank pair;
  pair.shrink = adapter.b.transposed(), pair.expand = adapter.a.transposed();
  pair.scaling = adapter.scaling;
  pair.output_dropout = active(dropout);
  return pair;
}

TensorView transposed(const TensorView& view) {
  return {view.mutable_data(), view.dtype(), std::array{view.dim(1), view.dim(0)},
          std::array{view.stride(1), view.stride(0)}, view.device()};
}

// dA = s·drop(x)ᵀ·g and dB = s·hᵀ·dy, for whichever is wanted.
template <class Params>
void add_adapter_gradients(const Params& p, Term& term) {
  if (p.da.present()) {
    term.outer_products.push_back(
        {{}, p.x, active(p.dropout), p.adapter.scaling, transposed(p.da)});
  }
  if (p.db.present()) {
    term.outer_products.push_back({p.h, p.dy, nullptr, p.adapter.scaling, p.db});
  }
}

Term term_of(const LoraDeltaForward& p) {
  Term term;
  term.x = p.x, term.y = p.y;
  term.pair = forward_pair(p.adapter, p.dropout, p.h);
  term.accumulate = p.accumulate;
  term.multiply = multiply_type(p.x);
  return term;
}

Term term_of(const LoraDeltaBackward& p) {
  Term term;
  term.x = p.dy, term.y = p.dx;
  term.pair = backward_pair(p.adapter, p.dropout);
  term.multiply = multiply_type(p.dy);
  add_adapter_gradients(p, term);
  return term;
}

Term term_of(const LoraLinearForward& p) {
  Term term;
  term.x = p.x, term.w = forward_view(p.weight), term.bias = p.bias, term.y = p.y;
  if (p.adapter.a.present()) term.pair = forward_pair(p.adapter, p.dropout, p.h);
  term.multiply = p.weight.dtype();
  return term;
}

// The weight may be absent where no dx is asked for.
Term term_of(const LoraLinearBackward& p) {
  Term term;
  term.x = p.dy, term.y = p.dx;
  if (p.weight.present()) term.w = backward_view(p.weight);
  if (p.adapter.a.present()) {
    term.pair = backward_pair(p.adapter, p.dropout);
    add_adapter_gradients(p, term);
  }
  term.multiply = p.weight.present() ? p.weight.dtype() : multiply_type(p.dy);
  return term;
}

std::vector<Term> terms_of(const LoraSiblingsForward& layers) {
  std::vector<Term> terms;
  for (const LoraLinearForward& layer : layers) terms.push_back(term_of(layer));
  return terms;
}

// The first layer overwrites dx, the others add to it.
std::vector<Term> terms_of(const LoraSiblingsBackward& layers) {
  std::vector<Term> terms;
  for (const LoraLinearBackward& layer : layers) {
    terms.push_back(term_of(layer));
    terms.back().accumulate = terms.size() > 1;
  }
  return terms;
}

template <class Params>
std::size_t bytes_of(const Params& params) {
  const Term term = term_of(params);
  return scratch_bytes({&term, 1});
}

template <class Params>
void run_one(const char* op, Context& context, const Params& params) {
  const Term term = term_of(params);
  run(op, context, {&term, 1});
}

template <class Params>
void reaches_forward(const Call& call, const Params& p) {
  call.reaches("x", p.x);
  reaches(call, p.adapter, p.dropout);
  call.reaches("y", p.y);
  call.reaches("h", p.h);
}

template <class Params>
void reaches_backward(const Call& call, const Params& p) {
  call.reaches("dy", p.dy);
  if (p.da.present()) call.reaches("x", p.x);
  if (p.db.present()) call.reaches("h", p.h);
  reaches(call, p.adapter, p.dropout);
  call.reaches("dx", p.dx);
  call.reaches("da", p.da);
  call.reaches("db", p.db);
}

void reaches_all(const Call& call, const LoraLinearForward& p) {
  reaches_forward(call, p);
  reaches(call, p.weight);
  call.reaches("bias", p.bias);
}

void reaches_all(const Call& call, const LoraLinearBackward& p) {
  reaches_backward(call, p);
  reaches(call, p.weight);
}

// Errors name the layer, as those of the checks before them do.
template <class Params>
void run_layers(const char* op, Context& context, std::span<const Params> layers) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string name = op + (' ' + std::to_string(i));
    reaches_all(Call(name.c_str(), context), layers[i]);
  }
  const std::vector<Term> terms = terms_of(layers);
  run(op, context, terms);
}

template <class Params>
Support supports_each(std::span<const Params> layers) {
  for (const Params& params : layers) {
    if (Support support = cuda::supports(params); !support) return support;
  }
  return {};
}

}  // namespace

Support supports(const LoraDeltaForward& p) {
  return on_path(all_of({supports_device(p.x.device().index), float_on_cuda("x", p.x),
                         adapter_on_cuda(p.adapter), float_on_cuda("y", p.y)}),
                 p.x.device(), [&] { return term_of(p); });
}

Support supports(const LoraDeltaBackward& p) {
  return on_path(
      all_of({supports_device(p.dy.device().index), float_on_cuda("dy", p.dy),
              float_on_cuda("x", p.x), adapter_on_cuda(p.adapter), float_on_cuda("dx", p.dx)}),
      p.dy.device(), [&] { return term_of(p); });
}

Support supports(const LoraLinearForward& p) {
  return on_path(all_of({supports_device(p.x.device().index), float_on_cuda("x", p.x),
                         weight_on_cuda(p.weight), float_on_cuda("bias", p.bias),
                         adapter_on_cuda(p.adapter), float_on_cuda("y", p.y)}),
                 p.x.device(), [&] { return term_of(p); });
}

Support supports(const LoraLinearBackward& p) {
  return on_path(all_of({supports_device(p.dy.device().index), float_on_cuda("dy", p.dy),
                         float_on_cuda("x", p.x), weight_on_cuda(p.weight),
                         adapter_on_cuda(p.adapter), float_on_cuda("dx", p.dx)}),
                 p.dy.device(), [&] { return term_of(p); });
}

Support supports(const LoraSiblingsForward& layers) { return supports_each(layers); }
Support supports(const LoraSiblingsBackward& layers) { return supports_each(layers); }

std::size_t scratch_bytes(const LoraDeltaForward& params, int) { return bytes_of(params); }
std::size_t scratch_bytes(const LoraDeltaBackward& params, int) { return bytes_of(params); }
std::size_t scratch_bytes(const LoraLinearForward& params, int) { return bytes_of(params); }
std::size_t scratch_bytes(const LoraLinearBackward& params, int) { return bytes_of(params); }
std::size_t scratch_bytes(const LoraSiblingsForward& layers, int) {
  return scratch_bytes(terms_of(layers));
}
std::size_t scratch_bytes(const LoraSiblingsBackward& layers, int) {
  return scratch_bytes(terms_of(layers));
}

void lora_delta_forward(Context& context, const LoraDeltaForward& params) {
  reaches_forward(Call("lora_delta", context), params);
  run_one("lora_delta", context, params);
}

void lora_delta_backward(Context& context, const LoraDeltaBackward& params) {
  reaches_backward(Call("lora_delta_backward", context), params);
  run_one("lora_delta_backward", context, params);
}

void lora_linear_forward(Context& context, const LoraLinearForward& params) {
  reaches_all(Call("lora_linear", context), params);
  run_one("lora_linear", context, params);
}

void lora_linear_backward(Context& context, const LoraLinearBackward& params) {
  reaches_all(Call("lora_linear_backward", context), params);
  run_one("lora_linear_backward", context, params);
}

void lora_linear_forward(Context& context, const LoraSiblingsForward& layers) {
  run_layers("lora_linear", context, layers);
}

void lora_linear_backward(Context& context, const LoraSiblingsBackward& layers) {
  run_layers("lora_linear_backward", context, layers);
}

}  // namespace graft::cuda
