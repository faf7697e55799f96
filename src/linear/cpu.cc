#include "linear/cpu.h"

#include "product/cpu/product.h"

namespace graft::cpu {
namespace {

Product product_of(const LinearForward& params) {
  Term term;
  term.k = params.weight.in_features();
  term.n = params.weight.out_features();
  term.x = Source::of(params.x);
  term.weight = &params.weight;
  term.bias = params.bias;
  term.y = params.y;
  return {params.x.dim(0), Direction::kForward, params.weight.dtype(), {term}, false, {}};
}

Product product_of(const LinearBackward& params) {
  Term term;
  term.k = params.weight.out_features();
  term.n = params.weight.in_features();
  term.x = Source::of(params.dy);
  term.weight = &params.weight;
  term.y = params.dx;
  return {params.dy.dim(0), Direction::kBackward, params.weight.dtype(), {term}, false, {}};
}

}  // namespace

void linear_forward(Context& context, const LinearForward& params) {
  run(context, product_of(params));
}

void linear_backward(Context& context, const LinearBackward& params) {
  run(context, product_of(params));
}

}  // namespace graft::cpu
