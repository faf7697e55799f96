#include "lora/cpu.h"

#include <array>

#include "backend/cpu/product.h"

namespace graft::cpu {
namespace {

const Dropout* active(const Dropout& dropout) {
  return dropout.threshold() > 0 ? &dropout : nullptr;
}

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

// dA = s·drop(x)ᵀ·g and dB = s·hᵀ·dy, for whichever is wanted.
template <class Params>
void add_adapter_gradients(const Params& params, Product& product) {
  if (params.da.present()) {
    OuterProduct da;
    da.matrix = Source::of(params.x);
    da.cols = params.x.dim(1);
    da.dropped = true;
    da.scaling = params.adapter.scaling;
    da.out = TensorView(params.da.mutable_data(), params.da.dtype(),
                        std::array{params.da.dim(1), params.da.dim(0)},
                        std::array{params.da.stride(1), params.da.stride(0)});
    product.outer_products.push_back(da);
  }
  if (params.db.present()) {
    OuterProduct db;
    db.coefficients = params.h.template data_as<float>();
    db.matrix = Source::of(params.dy);
    db.cols = params.dy.dim(1);
    db.scaling = params.adapter.scaling;
    db.out = params.db;
    product.outer_products.push_back(db);
  }
}

template <class Params>
void backward(Context& context, const Params& params, const BaseWeight* weight) {
  const LowRank pair = backward_pair(params.adapter, params.dropout);
  Product product;
  product.m = params.dy.dim(0);
  product.k = params.adapter.b.dim(1);
  product.n = params.adapter.a.dim(0);
  product.x = Source::of(params.dy);
  product.weight = weight;
  product.direction = Direction::kBackward;
  product.multiply = multiply_type(params.dy);
  product.low_rank = &pair;
  product.y = params.dx;
  add_adapter_gradients(params, product);
  run(context, product);
}

}  // namespace

void lora_delta_forward(Context& context, const LoraDeltaForward& params) {
  const LowRank pair = forward_pair(params.adapter, params.dropout, params.h);
  Product product;
  product.m = params.x.dim(0);
  product.k = params.adapter.a.dim(0);
  product.n = params.adapter.b.dim(1);
  product.x = Source::of(params.x);
  product.multiply = multiply_type(params.x);
  product.low_rank = &pair;
  product.y = params.y;
  product.accumulate = params.accumulate;
  run(context, product);
}

void lora_linear_forward(Context& context, const LoraLinearForward& params) {
  const LowRank pair = forward_pair(params.adapter, params.dropout, params.h);
  Product product;
  product.m = params.x.dim(0);
  product.k = params.weight.in_features();
  product.n = params.weight.out_features();
  product.x = Source::of(params.x);
  product.weight = &params.weight;
  product.bias = params.bias;
  product.low_rank = &pair;
  product.y = params.y;
  run(context, product);
}

void lora_delta_backward(Context& context, const LoraDeltaBackward& params) {
  backward(context, params, nullptr);
}

void lora_linear_backward(Context& context, const LoraLinearBackward& params) {
  backward(context, params, params.weight.present() ? &params.weight : nullptr);
}

}  // namespace graft::cpu
