#include <span>

#include "backend/table.h"
#include "graft/lora.h"
#include "product/cpu/product.h"
#include "weight/weight.h"

namespace graft::cpu {
namespace {

Support adapter_on_cpu(const Adapter& adapter) {
  return all_of({float_on_cpu("a", adapter.a), float_on_cpu("b", adapter.b)});
}

const Dropout* active(const Dropout& dropout) {
  return dropout.threshold() > 0 ? &dropout : nullptr;
}

// bfloat16 activations multiply as bfloat16 where no weight says otherwise.
DType multiply_type(const ConstTensorView& activations) {
  return activations.dtype() == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
}

DType multiply_type(const LoraLinearForward& params) { return params.weight.dtype(); }

DType multiply_type(const LoraLinearBackward& params) {
  return params.weight.present() ? params.weight.dtype() : multiply_type(params.dy);
}

template <class Params>
void set_forward_pair(const Params& params, LowRank& pair) {
  pair.shrink = Source::of(params.adapter.a);
  pair.expand = Source::of(params.adapter.b);
  pair.rank = params.adapter.a.dim(1);
  pair.scaling = params.adapter.scaling;
  pair.input_dropout = active(params.dropout);
  pair.h = params.h.present() ? params.h.template mutable_data_as<float>() : nullptr;
}

// g = dy·Bᵀ takes the place of h, and Aᵀ that of B; dropout masks what the pair adds to dx.
template <class Params>
void set_backward_pair(const Params& params, LowRank& pair) {
  pair.shrink = Source::of(params.adapter.b).transposed();
  pair.expand = Source::of(params.adapter.a).transposed();
  pair.rank = params.adapter.a.dim(1);
  pair.scaling = params.adapter.scaling;
  pair.output_dropout = active(params.dropout);
}

// dA = s·drop(x)ᵀ·g and dB = s·hᵀ·dy of a term, for whichever is wanted.
template <class Params>
void add_adapter_gradients(const Params& params, std::size_t term, Product& product) {
  if (params.da.present()) {
    OuterProduct& da = product.outer_products.emplace_back();
    da.term = term;
    da.matrix = Source::of(params.x);
    da.cols = params.x.dim(1);
    da.dropped = active(params.dropout) != nullptr;
    da.scaling = params.adapter.scaling;
    da.out = params.da.template mutable_data_as<float>();
    da.row_stride = params.da.stride(1);
    da.col_stride = params.da.stride(0);
  }
  if (params.db.present()) {
    OuterProduct& db = product.outer_products.emplace_back();
    db.term = term;
    db.coefficients = params.h.template data_as<float>();
    db.matrix = Source::of(params.dy);
    db.cols = params.dy.dim(1);
    db.scaling = params.adapter.scaling;
    db.out = params.db.template mutable_data_as<float>();
    db.row_stride = params.db.stride(0);
    db.col_stride = params.db.stride(1);
  }
}

template <class Params>
void set_delta_backward(const Params& params, Term& term) {
  term.k = params.adapter.b.dim(1);
  term.n = params.adapter.a.dim(0);
  term.x = Source::of(params.dy);
  set_backward_pair(params, term.pair);
  term.y = given(params.dx);
}

Product product_of(const LoraDeltaForward& params) {
  Product product;
  product.m = params.x.dim(0);
  product.multiply = multiply_type(params.x);
  product.accumulate = params.accumulate;
  Term& term = product.terms.emplace_back();
  term.k = params.adapter.a.dim(0);
  term.n = params.adapter.b.dim(1);
  term.x = Source::of(params.x);
  set_forward_pair(params, term.pair);
  term.y = given(params.y);
  return product;
}

Product product_of(const LoraDeltaBackward& params) {
  Product product;
  product.m = params.dy.dim(0);
  product.direction = Direction::kBackward;
  product.multiply = multiply_type(params.dy);
  set_delta_backward(params, product.terms.emplace_back());
  add_adapter_gradients(params, 0, product);
  return product;
}

Product product_of(const LoraSiblingsForward& layers) {
  Product product;
  product.m = layers.front().x.dim(0);
  product.multiply = layers.front().weight.dtype();
  for (const LoraLinearForward& params : layers) {
    Term& term = product.terms.emplace_back();
    term.k = params.weight.in_features();
    term.n = params.weight.out_features();
    term.x = Source::of(params.x);
    term.weight = &params.weight;
    term.bias = given(params.bias);
    if (params.adapter.a.present()) {
      set_forward_pair(params, term.pair);
    }
    term.y = given(params.y);
  }
  return product;
}

Product product_of(const LoraSiblingsBackward& layers) {
  Product product;
  product.m = layers.front().dy.dim(0);
  product.direction = Direction::kBackward;
  product.multiply = multiply_type(layers.front());
  for (const LoraLinearBackward& params : layers) {
    const std::size_t index = product.terms.size();
    Term& term = product.terms.emplace_back();
    if (params.adapter.a.present()) {
      set_delta_backward(params, term);
      add_adapter_gradients(params, index, product);
    } else {
      term.k = params.dy.dim(1);
      term.n = params.dx.present() ? params.dx.dim(1) : 0;
      term.x = Source::of(params.dy);
      term.y = given(params.dx);
    }
    if (params.weight.present()) term.weight = &params.weight;
  }
  return product;
}

LoraSiblingsForward alone(const LoraLinearForward& params) { return {&params, 1}; }
LoraSiblingsBackward alone(const LoraLinearBackward& params) { return {&params, 1}; }

// All of them, if they multiply in one type.
template <class Params>
Support supports_each(std::span<const Params> layers) {
  for (const Params& params : layers) {
    if (Support support = cpu::supports(params); !support) return support;
    if (multiply_type(params) != multiply_type(layers.front())) {
      return Support::no(
          "weight: layers that share x multiply in one type, not in float32 and in "
          "bfloat16");
    }
  }
  return {};
}

}  // namespace

Support supports(const LoraDeltaForward& p) {
  return all_of({float_on_cpu("x", p.x), adapter_on_cpu(p.adapter), float_on_cpu("y", p.y),
                 dropout_by_value(p.dropout)});
}

Support supports(const LoraDeltaBackward& p) {
  return all_of({float_on_cpu("dy", p.dy), float_on_cpu("x", p.x), adapter_on_cpu(p.adapter),
                 float_on_cpu("dx", p.dx), dropout_by_value(p.dropout)});
}

Support supports(const LoraLinearForward& p) {
  return all_of({float_on_cpu("x", p.x), weight_on_cpu(p.weight), float_on_cpu("bias", p.bias),
                 adapter_on_cpu(p.adapter), float_on_cpu("y", p.y), dropout_by_value(p.dropout)});
}

Support supports(const LoraLinearBackward& p) {
  return all_of({float_on_cpu("dy", p.dy), float_on_cpu("x", p.x), weight_on_cpu(p.weight),
                 adapter_on_cpu(p.adapter), float_on_cpu("dx", p.dx), dropout_by_value(p.dropout)});
}

Support supports(const LoraSiblingsForward& layers) { return supports_each(layers); }
Support supports(const LoraSiblingsBackward& layers) { return supports_each(layers); }

std::size_t scratch_bytes(const LoraDeltaForward& params, int threads) {
  return scratch_bytes(product_of(params), threads);
}

std::size_t scratch_bytes(const LoraDeltaBackward& params, int threads) {
  return scratch_bytes(product_of(params), threads);
}

std::size_t scratch_bytes(const LoraLinearForward& params, int threads) {
  return cpu::scratch_bytes(alone(params), threads);
}

std::size_t scratch_bytes(const LoraLinearBackward& params, int threads) {
  return cpu::scratch_bytes(alone(params), threads);
}

std::size_t scratch_bytes(const LoraSiblingsForward& layers, int threads) {
  return scratch_bytes(product_of(layers), threads);
}

std::size_t scratch_bytes(const LoraSiblingsBackward& layers, int threads) {
  return scratch_bytes(product_of(layers), threads);
}

void lora_linear_forward(Context& context, const LoraSiblingsForward& layers) {
  run(context, product_of(layers));
}

void lora_linear_backward(Context& context, const LoraSiblingsBackward& layers) {
  run(context, product_of(layers));
}

void lora_delta_forward(Context& context, const LoraDeltaForward& params) {
  run(context, product_of(params));
}

void lora_linear_forward(Context& context, const LoraLinearForward& params) {
  cpu::lora_linear_forward(context, alone(params));
}

void lora_delta_backward(Context& context, const LoraDeltaBackward& params) {
  run(context, product_of(params));
}

void lora_linear_backward(Context& context, const LoraLinearBackward& params) {
  cpu::lora_linear_backward(context, alone(params));
}

}  // namespace graft::cpu
