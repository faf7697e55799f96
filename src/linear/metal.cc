#include "linear/metal.h"

#include "backend/metal/limits.h"
#include "backend/table.h"
#include "product/metal/product.h"

namespace graft::metal {

Support supports(const LinearForward& p) {
  return all_of({product_on_metal(p.x, p.weight, p.bias), is_dense("x", p.x), is_dense("y", p.y)});
}

Support supports(const LinearBackward& p) {
  return all_of({product_on_metal(p.dy, p.weight, {}), is_dense("dy", p.dy), is_dense("dx", p.dx)});
}

Plan linear_forward(const LinearForward& p) {
  Plan plan;
  if (p.y.size() == 0) return plan;
  Numbering inputs(Operand::Of::kInputs);
  Product product;
  product.x = next(inputs, p.x);
  product.w = next(inputs, p.weight.view());
  product.bias = next(inputs, p.bias);
  product.y = output(0), product.y_view = p.y;
  add_product(plan, product);
  return plan;
}

Plan linear_backward(const LinearBackward& p) {
  Plan plan;
  if (p.dx.size() == 0) return plan;
  Numbering inputs(Operand::Of::kInputs);
  Product product;
  product.x = next(inputs, p.dy);
  product.w = next(inputs, p.weight.view());
  product.transposed = false;
  product.y = output(0), product.y_view = p.dx;
  add_product(plan, product);
  return plan;
}

}  // namespace graft::metal
