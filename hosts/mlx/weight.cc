#include "graft/mlx/weight.h"

#include <stdexcept>
#include <utility>

#include "graft/error.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/metal_runner.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx {
namespace {

Packing packing(bool backward) {
  return backward ? Packing::kForwardAndBackward : Packing::kForward;
}

Weight packed_for_cpu(const mx::array& w, mx::Dtype dtype, bool backward, mx::Stream s) {
  const bool viewable = w.dtype() == mx::float32 || w.dtype() == mx::bfloat16;
  mx::array source = viewable ? w : mx::astype(w, mx::float32, s);
  source.eval();
  try {
    return Weight::packed(detail::matrix_view(source), *detail::dtype_of(dtype), packing(backward));
  } catch (const Error& error) {
    throw std::invalid_argument(error.what());
  }
}

Weight kept_for_metal(const mx::array& w, mx::Dtype dtype, mx::Stream s) {
  mx::array rows = mx::contiguous(mx::astype(w, dtype, s), false, s);
  rows.eval();
  const ConstTensorView view(rows.data<std::byte>(), *detail::dtype_of(dtype),
                             {rows.shape(0), rows.shape(1)}, {DeviceType::kMetal, 0});
  return Weight::owning(view, std::move(rows));
}

// Whether weights are packed for Metal, or else for the CPU: those for which there is a packing in
// `dtype`.
bool packs_for_metal(mx::Dtype dtype, mx::Stream s) {
  const bool metal = detail::on_metal(s);
  if (dtype != mx::float32 && dtype != mx::bfloat16 && !(metal && dtype == mx::float16)) {
    throw std::invalid_argument(metal ? "[pack] dtype: expected float32, float16 or bfloat16"
                                      : "[pack] dtype: expected float32 or bfloat16");
  }
  return metal;
}

}  // namespace

Weight pack(const mx::array& w, mx::Dtype dtype, bool backward, mx::StreamOrDevice device) {
  detail::expect_matrix("pack", "w", w);
  detail::expect_floating("pack", "w", w);
  const mx::Stream s = mx::to_stream(device);
  return packs_for_metal(dtype, s) ? kept_for_metal(w, dtype, s)
                                   : packed_for_cpu(w, dtype, backward, s);
}

std::size_t packed_nbytes(int out_features, int in_features, mx::Dtype dtype, bool backward,
                          mx::StreamOrDevice device) {
  if (packs_for_metal(dtype, mx::to_stream(device))) {
    return static_cast<std::size_t>(out_features) * static_cast<std::size_t>(in_features) *
           mx::size_of(dtype);
  }
  return Weight::packed_nbytes(out_features, in_features, *detail::dtype_of(dtype),
                               packing(backward));
}

mx::array unpack(const Weight& w, mx::StreamOrDevice s) {
  detail::expect_present("unpack", "w", w);
  if (const mx::array* array = detail::array_of(w)) return *array;
  return detail::unpacked(w, mx::to_stream(s));
}

}  // namespace graft::mlx
