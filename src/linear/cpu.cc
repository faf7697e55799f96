#include "graft/linear.h"
#include "product/cpu/product.h"
#include "weight/weight.h"

namespace graft::cpu {
namespace {

Product product_of(const LinearForward& params) {
  Product product;
  product.m = params.x.dim(0);
  product.multiply = params.weight.dtype();
  Term& term = product.terms.emplace_back();
  term.k = params.weight.in_features();
  term.n = params.weight.out_features();
  term.x = Source::of(params.x);
  term.weight = &params.weight;
  term.bias = given(params.bias);
  term.y = given(params.y);
  return product;
}

Product product_of(const LinearBackward& params) {
  Product product;
  product.m = params.dy.dim(0);
  product.direction = Direction::kBackward;
  product.multiply = params.weight.dtype();
  Term& term = product.terms.emplace_back();
  term.k = params.weight.out_features();
  term.n = params.weight.in_features();
  term.x = Source::of(params.dy);
  term.weight = &params.weight;
  term.y = given(params.dx);
  return product;
}

}  // namespace

std::size_t scratch_bytes(const LinearForward& params, int threads) {
  return scratch_bytes(product_of(params), threads);
}

std::size_t scratch_bytes(const LinearBackward& params, int threads) {
  return scratch_bytes(product_of(params), threads);
}

Support supports(const LinearForward& p) {
  return all_of({float_on_cpu("x", p.x), weight_on_cpu(p.weight), float_on_cpu("bias", p.bias),
                 float_on_cpu("y", p.y)});
}

Support supports(const LinearBackward& p) {
  return all_of({float_on_cpu("dy", p.dy), weight_on_cpu(p.weight), float_on_cpu("dx", p.dx)});
}

void linear_forward(Context& context, const LinearForward& params) {
  run(context, product_of(params));
}

void linear_backward(Context& context, const LinearBackward& params) {
  run(context, product_of(params));
}

}  // namespace graft::cpu
