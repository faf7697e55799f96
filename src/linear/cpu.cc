#include "graft/linear.h"
#include "product/cpu/product.h"
#include "weight/weight.h"

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
