#include "graft/lora.h"

#include <tuple>

#include "graft/error.h"
#include "place.h"

// The ops graft::lora_linear_* and graft::lora_delta_*. A is (rank, in) and B (out, rank), as PEFT
// keeps them; the kernels read them transposed, without a copy.

namespace graft::pytorch {
namespace {

using Maybe = std::optional<Tensor>;

ConstTensorView matrix_of(const Tensor& tensor, const char* name) {
  const ConstTensorView view = view_of(tensor, name);
  if (view.rank() != 2) {
    throw Error(ErrorCode::kInvalidArgument,
                std::string(name) + ": expected a matrix, got " + view.shape_string());
  }
  return view;
}

Adapter adapter_of(const Tensor& a, const Tensor& b, double scaling) {
  return {matrix_of(a, "a").transposed(), matrix_of(b, "b").transposed(),
          static_cast<float>(scaling)};
}

// dx, da and db that are asked for, and their places in `params`.
template <class Params>
std::tuple<Tensor, Tensor, Tensor> new_gradients(Params& params, const Tensor& x,
                                                 const Rows& x_rows, const Tensor& a,
                                                 const Tensor& b, bool need_dx, bool need_da,
                                                 bool need_db) {
  Tensor dx = need_dx ? new_rows(x, x_rows.features()) : no_tensor();
  Tensor da = need_da ? new_floats(a, {a.size(0), a.size(1)}) : no_tensor();
  Tensor db = need_db ? new_floats(b, {b.size(0), b.size(1)}) : no_tensor();
  if (need_dx) params.dx = matrix(dx, x_rows.count(), x_rows.features());
  if (need_da) params.da = transposed(da);
  if (need_db) params.db = transposed(db);
  return {dx, da, db};
}

std::tuple<Tensor, Tensor> lora_linear_forward(const Tensor& x, const Tensor& weight,
                                               const Maybe& bias, const Tensor& a, const Tensor& b,
                                               double scaling, double dropout, const Maybe& rng,
                                               bool save_h, bool pack) {
  return guarded([&] {
    const Rows rows(x, "x");
    LoraLinearForward params;
    params.x = rows.view();
    params.weight = weight_of(weight, rows.view().dtype(), pack, save_h);
    params.bias = view_of(bias, "bias");
    params.adapter = adapter_of(a, b, scaling);
    params.dropout = dropout_of(dropout, rng, x);
    const std::int64_t out_features = params.weight.out_features();
    const Tensor y = new_rows(x, out_features);
    params.y = matrix(y, rows.count(), out_features);
    const Tensor h = save_h ? new_floats(x, {rows.count(), a.size(0)}) : no_tensor();
    if (save_h) params.h = matrix(h, rows.count(), a.size(0));
    lora_linear_forward(context_of(x), params);
    return std::tuple(y, h);
  });
}

std::tuple<Tensor, Tensor, Tensor> lora_linear_backward(const Tensor& dy, const Tensor& x,
                                                        const Tensor& h, const Tensor& weight,
                                                        const Tensor& a, const Tensor& b,
                                                        double scaling, double dropout,
                                                        const Maybe& rng, bool need_dx,
                                                        bool need_da, bool need_db, bool pack) {
  return guarded([&] {
    const Rows dy_rows(dy, "dy");
    const Rows x_rows(x, "x");
    LoraLinearBackward params;
    params.dy = dy_rows.view();
    params.x = x_rows.view();
    params.h = view_of(h, "h");
    if (need_dx) params.weight = weight_of(weight, x_rows.view().dtype(), pack, true);
    params.adapter = adapter_of(a, b, scaling);
    params.dropout = dropout_of(dropout, rng, x);
    auto gradients = new_gradients(params, x, x_rows, a, b, need_dx, need_da, need_db);
    lora_linear_backward(context_of(x), params);
    return gradients;
  });
}

Tensor new_hidden(const Rows& x, const Adapter& adapter, bool save_h, const Tensor& like) {
  return save_h ? new_floats(like, {x.count(), adapter.a.dim(1)}) : no_tensor();
}

void delta_into(const Tensor& y, const Tensor& h, bool accumulate, const Rows& x,
                const Adapter& adapter, const Dropout& dropout, Context& context) {
  LoraDeltaForward params;
  params.x = x.view();
  params.adapter = adapter;
  params.dropout = dropout;
  params.accumulate = accumulate;
  params.y = matrix(y, x.count(), adapter.b.dim(1));
  if (h.defined()) params.h = matrix(h, x.count(), adapter.a.dim(1));
  lora_delta_forward(context, params);
}

std::tuple<Tensor, Tensor> lora_delta_forward(const Tensor& x, const Tensor& a, const Tensor& b,
                                              double scaling, double dropout, const Maybe& rng,
                                              bool save_h) {
  return guarded([&] {
    const Rows rows(x, "x");
    const Adapter adapter = adapter_of(a, b, scaling);
    const Tensor y = new_rows(x, adapter.b.dim(1));
    const Tensor h = new_hidden(rows, adapter, save_h, x);
    delta_into(y, h, false, rows, adapter, dropout_of(dropout, rng, x), context_of(x));
    return std::tuple(y, h);
  });
}

// y (..., out) dense: y += scaling·(drop(x)·A)·B in one pass.
Tensor lora_delta_add(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b,
                      double scaling, double dropout, const Maybe& rng, bool save_h) {
  return guarded([&] {
    const Rows rows(x, "x");
    const Adapter adapter = adapter_of(a, b, scaling);
    const Rows sum(y, "y");
    if (!y.is_contiguous()) {
      throw Error(ErrorCode::kInvalidArgument, "[lora_delta_add] y: expected a contiguous tensor");
    }
    if (sum.count() != rows.count() || sum.features() != adapter.b.dim(1)) {
      throw Error(ErrorCode::kInvalidArgument,
                  "[lora_delta_add] y: expected as many rows as x and as many features as b, got " +
                      sum.view().shape_string());
    }
    require_apart(sum.view(), rows.view(), "x");
    require_apart(sum.view(), adapter.a, "a");
    require_apart(sum.view(), adapter.b, "b");
    const Tensor h = new_hidden(rows, adapter, save_h, x);
    delta_into(y, h, true, rows, adapter, dropout_of(dropout, rng, x), context_of(x));
    return h;
  });
}

std::tuple<Tensor, Tensor, Tensor> lora_delta_backward(const Tensor& dy, const Tensor& x,
                                                       const Tensor& h, const Tensor& a,
                                                       const Tensor& b, double scaling,
                                                       double dropout, const Maybe& rng,
                                                       bool need_dx, bool need_da, bool need_db) {
  return guarded([&] {
    const Rows x_rows(x, "x");
    // The kernels multiply in dy's type, which a delta onto a sum of another type than x's must not
    // round x to.
    const bool mixed = dtype_of(dy, "dy") != x_rows.view().dtype();
    const Rows dy_rows(mixed ? cast(dy, DType::kFloat32) : dy, "dy");
    LoraDeltaBackward params;
    params.dy = dy_rows.view();
    params.x = x_rows.view();
    params.h = view_of(h, "h");
    params.adapter = adapter_of(a, b, scaling);
    params.dropout = dropout_of(dropout, rng, x);
    auto gradients = new_gradients(params, x, x_rows, a, b, need_dx, need_da, need_db);
    lora_delta_backward(context_of(x), params);
    return gradients;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(graft, GRAFT_TORCH_DEVICE, m) {
  m.impl("lora_linear_forward", TORCH_BOX(&lora_linear_forward));
  m.impl("lora_linear_backward", TORCH_BOX(&lora_linear_backward));
  m.impl("lora_delta_forward", TORCH_BOX(&lora_delta_forward));
  m.impl("lora_delta_add_", TORCH_BOX(&lora_delta_add));
  m.impl("lora_delta_backward", TORCH_BOX(&lora_delta_backward));
}

}  // namespace graft::pytorch
