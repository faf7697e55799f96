#include "graft/mlx/weight.h"

#include <stdexcept>
#include <utility>

#include "graft/error.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx {
namespace {

Weight packed_for_cpu(const mx::array& w, mx::Dtype dtype, bool backward, mx::Stream s) {
  const bool viewable = w.dtype() == mx::float32 || w.dtype() == mx::bfloat16;
  mx::array source = viewable ? w : mx::astype(w, mx::float32, s);
  source.eval();
  try {
    return std::make_shared<const FrozenWeight>(
        PackedWeight(detail::matrix_view(source), *detail::dtype_of(dtype),
                     backward ? Packing::kForwardAndBackward : Packing::kForward));
  } catch (const Error& error) {
    throw std::invalid_argument(error.what());
  }
}

Weight kept_for_metal(const mx::array& w, mx::Dtype dtype, mx::Stream s) {
  mx::array rows = mx::contiguous(mx::astype(w, dtype, s), false, s);
  rows.eval();
  return std::make_shared<const FrozenWeight>(std::move(rows));
}

}  // namespace

FrozenWeight::FrozenWeight(PackedWeight panels)
    : panels_(std::make_shared<const PackedWeight>(std::move(panels))) {}

FrozenWeight::FrozenWeight(mx::array rows) : rows_(std::move(rows)) {}

int FrozenWeight::out_features() const {
  return rows_ ? rows_->shape(0) : static_cast<int>(panels_->out_features());
}

int FrozenWeight::in_features() const {
  return rows_ ? rows_->shape(1) : static_cast<int>(panels_->in_features());
}

mx::Dtype FrozenWeight::dtype() const {
  if (rows_) return rows_->dtype();
  return panels_->dtype() == DType::kBFloat16 ? mx::bfloat16 : mx::float32;
}

bool FrozenWeight::serves_backward() const { return rows_ || panels_->serves_backward(); }

std::size_t FrozenWeight::nbytes() const { return rows_ ? rows_->nbytes() : panels_->nbytes(); }

Weight pack(const mx::array& w, mx::Dtype dtype, bool backward, mx::StreamOrDevice device) {
  detail::expect_matrix("pack", "w", w);
  detail::expect_floating("pack", "w", w);
  const mx::Stream s = mx::to_stream(device);
  const bool metal = detail::on_metal(s);
  if (dtype != mx::float32 && dtype != mx::bfloat16 && !(metal && dtype == mx::float16)) {
    throw std::invalid_argument(metal ? "[pack] dtype: expected float32, float16 or bfloat16"
                                      : "[pack] dtype: expected float32 or bfloat16");
  }
  return metal ? kept_for_metal(w, dtype, s) : packed_for_cpu(w, dtype, backward, s);
}

mx::array unpack(const Weight& w, mx::StreamOrDevice s) {
  if (w == nullptr) detail::reject("unpack", "w", "a packed weight", "null");
  return w->rows() ? *w->rows() : detail::unpacked(w->panels(), mx::to_stream(s));
}

}  // namespace graft::mlx
