#pragma once

#include <cstddef>

#include "graft/mlx/detail/lora_primitive.h"
#include "graft/mlx/detail/metal_rows.h"

// What the launches of lora_delta and lora_linear have in common.
namespace graft::mlx::detail {

// What kernels read for dropout, all 0-d: seed, offset, threshold, keep. Nothing without dropout.
// `inputs` are those of the call.
Arrays dropout_inputs(const LoraCall& call, const Arrays& inputs, mx::Stream s);

// x with dropout, whose seed and offset come first in `dropout`; x itself if that is empty.
mx::array dropped(const LoraCall& call, const mx::array& x, const Arrays& dropout, mx::Stream s);

// left·right in float32.
mx::array product(const mx::array& left, const mx::array& right, mx::Stream s);

// What a backward launch comes from. Its kernel reads h or g, which were made from these; its
// derivatives make them again, so that they see all that the gradient depends on. In a launch they
// stand behind what the kernel reads: x, A, B, dy, [seed, offset].
struct Sources {
  mx::array x, a, b, dy;
  Arrays dropout;

  static Sources of(const Arrays& inputs, std::size_t at);
  void append_to(Arrays& inputs) const;
  // Of a launch whose kernel reads `read` inputs, of which the first is a matrix, and those behind
  // it that `matrices` says.
  std::vector<bool> has_rows(std::size_t read, std::initializer_list<std::size_t> matrices) const;

  mx::array g(mx::Stream s) const;  // dy·Bᵀ
  mx::array dropped_x(const LoraCall& call, mx::Stream s) const;
  mx::array pair(const LoraCall& call, mx::Stream s) const;  // what the adapter adds to dx
};

// The gradient of A, from g and x, or that of B, from h and dy: in the dtype of A or B. `counts` as
// the evaluation backward.
mx::array launch_da(const LoraCall& call, const mx::array& g, const Sources& sources, bool counts,
                    const Caller& caller, mx::Stream s);
mx::array launch_db(const LoraCall& call, const mx::array& h, const Sources& sources, bool counts,
                    const Caller& caller, mx::Stream s);

}  // namespace graft::mlx::detail
