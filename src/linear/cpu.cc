#include "linear/cpu.h"

#include "product/cpu/product.h"

namespace graft::cpu {

void linear_forward(Context& context, const LinearForward& params) {
  Product product;
  product.m = params.x.dim(0);
  product.k = params.weight.in_features();
  product.n = params.weight.out_features();
  product.x = Source::of(params.x);
  product.weight = &params.weight;
  product.bias = params.bias;
  product.y = params.y;
  run(context, product);
}

void linear_backward(Context& context, const LinearBackward& params) {
  Product product;
  product.m = params.dy.dim(0);
  product.k = params.weight.out_features();
  product.n = params.weight.in_features();
  product.x = Source::of(params.dy);
  product.weight = &params.weight;
  product.direction = Direction::kBackward;
  product.y = params.dx;
  run(context, product);
}

}  // namespace graft::cpu
