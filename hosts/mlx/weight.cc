#include "graft/mlx/weight.h"

#include <array>
#include <stdexcept>
#include <utility>

#include "graft/error.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/cuda_runner.h"
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

// Where kernels read W as it lies. Those of CUDA are given the array's memory anew with each call.
Weight kept_for_gpu(const mx::array& w, mx::Dtype dtype, mx::Stream s) {
  mx::array rows = mx::contiguous(mx::astype(w, dtype, s), false, s);
  rows.eval();
  const DType kind = *detail::dtype_of(dtype);
  const std::array<std::int64_t, 2> shape{rows.shape(0), rows.shape(1)};
  const ConstTensorView view =
      detail::on_cuda(s)
          ? ConstTensorView(detail::cuda_memory(rows), kind, shape,
                            Device{DeviceType::kCuda, detail::cuda_index(s)})
          : ConstTensorView(rows.data<std::byte>(), kind, shape, Device{DeviceType::kMetal, 0});
  return Weight::owning(view, std::move(rows));
}

// Whether weights are for a GPU's kernels, or else packed for the CPU: those for which there is a
// packing in `dtype`.
bool packs_for_gpu(mx::Dtype dtype, mx::Stream s) {
  const bool gpu = detail::on_metal(s) || detail::on_cuda(s);
  if (dtype != mx::float32 && dtype != mx::bfloat16 && !(gpu && dtype == mx::float16)) {
    throw std::invalid_argument(gpu ? "[pack] dtype: expected float32, float16 or bfloat16"
                                    : "[pack] dtype: expected float32 or bfloat16");
  }
  return gpu;
}

}  // namespace

Weight pack(const mx::array& w, mx::Dtype dtype, bool backward, mx::StreamOrDevice device) {
  detail::expect_matrix("pack", "w", w);
  detail::expect_floating("pack", "w", w);
  const mx::Stream s = mx::to_stream(device);
  return packs_for_gpu(dtype, s) ? kept_for_gpu(w, dtype, s)
                                 : packed_for_cpu(w, dtype, backward, s);
}

std::size_t packed_nbytes(int out_features, int in_features, mx::Dtype dtype, bool backward,
                          mx::StreamOrDevice device) {
  if (packs_for_gpu(dtype, mx::to_stream(device))) {
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
