#include <cstdint>
#include <string>

#include "packed_weight.h"
#include "place.h"

// What every op is called and takes; kernels of a device are registered beside their op. Shapes and
// meanings are those of graft_lora's functions of the same names.

namespace graft::pytorch {
namespace {

std::string capabilities_cpu() { return capability_lines({}); }

std::int64_t bytes_packed() { return static_cast<std::int64_t>(packed_bytes()); }

// By address: whoever forgets a weight that is gone has no tensor to give.
void forget(std::int64_t address) {
  forget_weight(reinterpret_cast<const void*>(static_cast<std::uintptr_t>(address)));
}

}  // namespace

STABLE_TORCH_LIBRARY(graft, m) {
  m.def(
      "lora_linear_forward(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float "
      "scaling, "
      "float dropout, Tensor? rng, bool save_h, bool pack) -> (Tensor y, Tensor h)");
  m.def(
      "lora_linear_backward(Tensor dy, Tensor x, Tensor h, Tensor weight, Tensor a, Tensor b, "
      "float "
      "scaling, float dropout, Tensor? rng, bool need_dx, bool need_da, bool need_db, bool pack) "
      "-> "
      "(Tensor dx, Tensor da, Tensor db)");
  m.def(
      "lora_delta_forward(Tensor x, Tensor a, Tensor b, float scaling, float dropout, Tensor? rng, "
      "bool save_h) -> (Tensor y, Tensor h)");
  m.def(
      "lora_delta_add_(Tensor(a!) y, Tensor x, Tensor a, Tensor b, float scaling, float dropout, "
      "Tensor? rng, bool save_h) -> Tensor h");
  m.def(
      "lora_delta_backward(Tensor dy, Tensor x, Tensor h, Tensor a, Tensor b, float scaling, float "
      "dropout, Tensor? rng, bool need_dx, bool need_da, bool need_db) -> (Tensor dx, Tensor da, "
      "Tensor db)");
  m.def("forget_weight(int address) -> ()");
  m.def("packed_bytes() -> int");
  m.def("capabilities_cpu() -> str");
  m.def("capabilities_cuda(int index) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(graft, CompositeExplicitAutograd, m) {
  m.impl("forget_weight", TORCH_BOX(&forget));
  m.impl("packed_bytes", TORCH_BOX(&bytes_packed));
  m.impl("capabilities_cpu", TORCH_BOX(&capabilities_cpu));
}

}  // namespace graft::pytorch
