#include "lora/cpu.h"

#include <array>

#include "product/cpu/product.h"

namespace graft::cpu {
namespace {

const Dropout* active(const Dropout& dropout) { return dropout.p > 0.0f ? &dropout : nullptr; }

// bfloat16 activations multiply as bfloat16 where no weight says otherwise.
DType multiply_type(const ConstTensorView& activations) {
  return activations.dtype() == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
}

LowRank forward_pair(const Adapter& adapter, const Dropout& dropout, const TensorView& h) {
  LowRank pair;
  pair.shrink = Source::of(adapter.a);
  pair.expand = Source::of(adapter.b);
  pair.rank = adapter.a.dim(1);
  pair.scaling = adapter.scaling;
  pair.input_dropout = active(dropout);
  pair.h = h.present() ? h.mutable_data_as<float>() : nullptr;
  return pair;
}

// g = dy·Bᵀ takes the place of h, and Aᵀ that of B; dropout masks what the pair adds to dx.
LowRank backward_pair(const Adapter& adapter, const Dropout& dropout) {
  LowRank pair;
  pair.shrink = Source::of(adapter.b).transposed();
  pair.expand = Source::of(adapter.a).transposed();
  pair.rank = adapter.a.dim(1);
  pair.scaling = adapter.scaling;
  pair.output_dropout = active(dropout);
  return pair;
}

// dA = s·drop(x)ᵀ·g and dB = s·hᵀ·dy of a term, for whichever is wanted.
template <class Params>
void add_adapter_gradients(const Params& params, std::size_t term, Product& product) {
  if (params.da.present()) {
    OuterProduct da;
    da.term = term;
    da.matrix = Source::of(params.x);
    da.cols = params.x.dim(1);
    da.dropout = active(params.dropout);
    da.scaling = params.adapter.scaling;
    da.out = TensorView(params.da.mutable_data(), params.da.dtype(),
                        std::array{params.da.dim(1), params.da.dim(0)},
                        std::array{params.da.stride(1), params.da.stride(0)});
    product.outer_products.push_back(da);
  }
  if (params.db.present()) {
    OuterProduct db;
    db.term = term;
    db.coefficients = params.h.template data_as<float>();
    db.matrix = Source::of(params.dy);
    db.cols = params.dy.dim(1);
    db.scaling = params.adapter.scaling;
    db.out = params.db;
    product.outer_products.push_back(db);
  }
}

template <class Params>
Term backward_term(const Params& params, const Weight* weight) {
  Term term;
  term.k = params.adapter.b.dim(1);
  term.n = params.adapter.a.dim(0);
  term.x = Source::of(params.dy);
  term.weight = weight;
  term.pair = backward_pair(params.adapter, params.dropout);
  term.y = params.dx;
  return term;
}

Product product_of(const LoraDeltaForward& params) {
  Term term;
  term.k = params.adapter.a.dim(0);
  term.n = params.adapter.b.dim(1);
  term.x = Source::of(params.x);
  term.pair = forward_pair(params.adapter, params.dropout, params.h);
  term.y = params.y;
  return {params.x.dim(0), Direction::kForward, multiply_type(params.x),
          {term},          params.accumulate,   {}};
}

Product product_of(const LoraLinearForward& params) {
  Term term;
  term.k = params.weight.in_features();
  term.n = params.weight.out_features();
  term.x = Source::of(params.x);
  term.weight = &params.weight;
  term.bias = params.bias;
  term.pair = forward_pair(params.adapter, params.dropout, params.h);
  term.y = params.y;
  return {params.x.dim(0), Direction::kForward, params.weight.dtype(), {term}, false, {}};
}

Product product_of(const LoraDeltaBackward& params) {
  Product product{params.dy.dim(0),
                  Direction::kBackward,
                  multiply_type(params.dy),
                  {backward_term(params, nullptr)},
                  false,
                  {}};
  add_adapter_gradients(params, 0, product);
  return product;
}

Product product_of(const LoraLinearBackward& params) {
  const Weight* const weight = params.weight.present() ? &params.weight : nullptr;
  Product product{params.dy.dim(0),
                  Direction::kBackward,
                  weight != nullptr ? weight->dtype() : multiply_type(params.dy),
                  {backward_term(params, weight)},
                  false,
                  {}};
  add_adapter_gradients(params, 0, product);
  return product;
}

}  // namespace

void lora_delta_forward(Context& context, const LoraDeltaForward& params) {
  run(context, product_of(params));
}

void lora_linear_forward(Context& context, const LoraLinearForward& params) {
  run(context, product_of(params));
}

void lora_delta_backward(Context& context, const LoraDeltaBackward& params) {
  run(context, product_of(params));
}

void lora_linear_backward(Context& context, const LoraLinearBackward& params) {
  run(context, product_of(params));
}

}  // namespace graft::cpu
