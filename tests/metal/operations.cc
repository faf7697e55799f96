#include "metal/operations.h"

#include <stdexcept>

#include "graft/mlx/layer_norm.h"
#include "graft/mlx/linear.h"
#include "graft/mlx/lora.h"
#include "graft/mlx/rms_norm.h"
#include "graft/mlx/softmax.h"

namespace graft::standin {
namespace {

namespace mx = ::mlx::core;
using Arrays = Operation::Arrays;

constexpr float kScaling = 2.0f;

mx::array x_of(const Problem& p) { return mx::random::normal({p.batch, p.sequence, p.in}); }
mx::array w_of(const Problem& p) { return mx::random::normal({p.out, p.in}); }
mx::array row_of(const Problem& p) { return mx::random::normal({p.in}); }

Arrays delta_operands(const Problem& p) {
  return {x_of(p), mx::random::normal({p.in, p.rank}), mx::random::normal({p.rank, p.out})};
}

Arrays lora_operands(const Problem& p) {
  Arrays operands = delta_operands(p);
  operands.push_back(w_of(p));
  return operands;
}

Arrays lora_linear(const Arrays& in, const mlx::DropoutState& dropout) {
  return {mlx::lora_linear(in[0], in[3], std::nullopt, in[1], in[2], kScaling, dropout)};
}

}  // namespace

const std::vector<Operation>& operations() {
  static const std::vector<Operation> all = {
      {"lora_delta", delta_operands,
       [](const Arrays& in) {
         return Arrays{mlx::lora_forward_fused(in[0], in[1], in[2], kScaling)};
       },
       3, 1, unfused_lora_delta, unfused_lora_delta_backward},
      {"lora_linear", lora_operands, [](const Arrays& in) { return lora_linear(in, {}); }, 3, 1,
       unfused_lora_linear, unfused_lora_linear_backward},
      {"lora_linear_dropout", lora_operands,
       [](const Arrays& in) {
         mlx::DropoutState dropout;
         dropout.p = 0.1f;
         return lora_linear(in, dropout);
       },
       3, 1, unfused_lora_linear_dropout, unfused_lora_linear_dropout_backward},
      {"linear",
       [](const Problem& p) {
         return Arrays{x_of(p), w_of(p)};
       },
       [](const Arrays& in) { return Arrays{mlx::linear(in[0], in[1])}; }, 1, 1, unfused_linear,
       unfused_linear_dx},
      {"softmax", [](const Problem& p) { return Arrays{x_of(p)}; },
       [](const Arrays& in) { return Arrays{mlx::softmax(in[0], 0.125f)}; }, 1, 1, unfused_softmax,
       unfused_softmax_backward},
      {"rms_norm",
       [](const Problem& p) {
         return Arrays{x_of(p), row_of(p)};
       },
       [](const Arrays& in) { return Arrays{mlx::rms_norm(in[0], in[1])}; }, 2, 1, unfused_rms_norm,
       unfused_rms_norm_backward},
      {"add_rms_norm",
       [](const Problem& p) {
         return Arrays{x_of(p), x_of(p), row_of(p)};
       },
       [](const Arrays& in) {
         const auto [y, sum] = mlx::add_rms_norm(in[0], in[1], in[2]);
         return Arrays{y, sum};
       },
       3, 2, unfused_add_rms_norm, unfused_add_rms_norm_backward},
      {"layer_norm",
       [](const Problem& p) {
         return Arrays{x_of(p), row_of(p), row_of(p)};
       },
       [](const Arrays& in) { return Arrays{mlx::layer_norm(in[0], in[1], in[2])}; }, 3, 1,
       unfused_layer_norm, unfused_layer_norm_backward},
  };
  return all;
}

const Operation& operation(const std::string& name) {
  for (const Operation& one : operations()) {
    if (one.name == name) return one;
  }
  throw std::invalid_argument("no operation is called " + name);
}

}  // namespace graft::standin
