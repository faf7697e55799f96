#include "linear/weight_checks.h"

#include "graft/error.h"
#include "linear/packed_weight_impl.h"

namespace graft {

void check_weight(const Check& check, const BaseWeight& weight, Device device,
                  cpu::Direction direction) {
  check.that(weight.present(), "weight: expected a packed or a plain weight, got none");
  if (weight.packed() == nullptr) {
    check.rank("weight", weight.plain(), 2);
    check.device("weight", weight.plain(), device);
    return;
  }
  check.that(device == Device{}, "weight: packed for the CPU, but the other tensors are elsewhere");
  check.that(direction == cpu::Direction::kForward || weight.packed()->serves_backward(),
             "weight: packed for forward only; pack it for kForwardAndBackward");
  const cpu::Kernels& made = *weight.packed()->impl().kernels;
  const cpu::Kernels& used = cpu::kernels_for(weight.dtype());
  check.that(made.width == used.width,
             "weight: packed for another instruction set than set_cpu_isa() chose; pack it again");
}

void check_rows_output(const Check& check, const char* tensor, const TensorView& view,
                       Device device) {
  check.device(tensor, view, device);
  check.last_axis_dense(tensor, view);
  check.writable(tensor, view);
}

Support weight_on_cpu(const BaseWeight& weight) {
  return weight.packed() != nullptr ? Support{} : float_on_cpu("weight", weight.plain());
}

}  // namespace graft
