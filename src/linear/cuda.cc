#include "backend/cuda/device.h"
#include "backend/table.h"
#include "graft/linear.h"
#include "product/cuda/operands.h"
#include "product/cuda/product.h"

namespace graft::cuda {
namespace {

Term term_of(const LinearForward& p) {
  Term term;
  term.x = p.x, term.w = forward_view(p.weight), term.bias = p.bias, term.y = p.y;
  term.multiply = p.weight.dtype();
  return term;
}

Term term_of(const LinearBackward& p) {
  Term term;
  term.x = p.dy, term.w = backward_view(p.weight), term.y = p.dx;
  term.multiply = p.weight.dtype();
  return term;
}

template <class Params>
std::size_t bytes_of(const Params& params) {
  const Term term = term_of(params);
  return scratch_bytes({&term, 1});
}

}  // namespace

Support supports(const LinearForward& p) {
  return on_path(
      all_of({supports_device(p.x.device().index), float_on_cuda("x", p.x),
              weight_on_cuda(p.weight), float_on_cuda("bias", p.bias), float_on_cuda("y", p.y)}),
      p.x.device(), [&] { return term_of(p); });
}

Support supports(const LinearBackward& p) {
  return on_path(all_of({supports_device(p.dy.device().index), float_on_cuda("dy", p.dy),
                         weight_on_cuda(p.weight), float_on_cuda("dx", p.dx)}),
                 p.dy.device(), [&] { return term_of(p); });
}

std::size_t scratch_bytes(const LinearForward& params, int) { return bytes_of(params); }
std::size_t scratch_bytes(const LinearBackward& params, int) { return bytes_of(params); }

void linear_forward(Context& context, const LinearForward& params) {
  const Call call("linear", context);
  call.reaches("x", params.x);
  reaches(call, params.weight);
  call.reaches("bias", params.bias);
  call.reaches("y", params.y);
  const Term term = term_of(params);
  run("linear", context, {&term, 1});
}

void linear_backward(Context& context, const LinearBackward& params) {
  const Call call("linear_backward", context);
  call.reaches("dy", params.dy);
  reaches(call, params.weight);
  call.reaches("dx", params.dx);
  const Term term = term_of(params);
  run("linear_backward", context, {&term, 1});
}

}  // namespace graft::cuda
