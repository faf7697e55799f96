#include <cstdint>
#include <string>

#include "graft/supports.h"
#include "graft/version.h"
#include "packed_weight.h"
#include "place.h"

// What every op is called and takes; kernels of a device are registered beside their op. Shapes and
// meanings are those of graft_lora's functions of the same names.

namespace graft::pytorch {
namespace {

std::string version() { return kVersion; }

std::string isa() {
  return guarded([] { return std::string(cpu_isa()); });
}

std::string capabilities_cpu() { return capability_lines({}); }

std::int64_t bytes_packed() { return static_cast<std::int64_t>(packed_bytes()); }

// By address: whoever forgets a weight that is gone has no tensor to give.
void forget(std::int64_t address) {
  forget_weight(reinterpret_cast<const void*>(static_cast<std::uintptr_t>(address)));
}

}  // namespace

STABLE_TORCH_LIBRARY(graft, m) {
  m.def("linear_forward(Tensor x, Tensor weight, Tensor? bias, bool pack) -> Tensor");
  m.def("linear_backward(Tensor dy, Tensor weight, bool pack) -> Tensor");
  m.def(
      "lora_linear_forward(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, "
      "float scaling, float dropout, Tensor? rng, bool save_h, bool pack) -> (Tensor y, Tensor h)");
  m.def(
      "lora_linear_backward(Tensor dy, Tensor x, Tensor h, Tensor weight, Tensor a, Tensor b, "
      "float scaling, float dropout, Tensor? rng, bool need_dx, bool need_da, bool need_db, "
      "bool pack) -> (Tensor dx, Tensor da, Tensor db)");
  m.def(
      "lora_delta_forward(Tensor x, Tensor a, Tensor b, float scaling, float dropout, Tensor? rng, "
      "bool save_h) -> (Tensor y, Tensor h)");
  m.def(
      "lora_delta_add_(Tensor(a!) y, Tensor x, Tensor a, Tensor b, float scaling, float dropout, "
      "Tensor? rng, bool save_h) -> Tensor h");
  m.def(
      "lora_delta_backward(Tensor dy, Tensor x, Tensor h, Tensor a, Tensor b, float scaling, "
      "float dropout, Tensor? rng, bool need_dx, bool need_da, bool need_db) -> "
      "(Tensor dx, Tensor da, Tensor db)");
  m.def("softmax_forward(Tensor x, float scale) -> Tensor");
  m.def("softmax_backward(Tensor dy, Tensor y, float scale) -> Tensor");
  m.def(
      "rms_norm_forward(Tensor x, Tensor? residual, Tensor? weight, float eps) -> "
      "(Tensor y, Tensor sum, Tensor rstd)");
  m.def(
      "rms_norm_backward(Tensor dy, Tensor s, Tensor? weight, Tensor rstd, Tensor? dsum, "
      "float eps, bool need_ds, bool need_dweight) -> (Tensor ds, Tensor dweight)");
  m.def(
      "layer_norm_forward(Tensor x, Tensor? weight, Tensor? bias, float eps) -> "
      "(Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "layer_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, "
      "float eps, bool need_dx, bool need_dweight, bool need_dbias) -> "
      "(Tensor dx, Tensor dweight, Tensor dbias)");
  m.def("forget_weight(int address) -> ()");
  m.def("watch_weight(Tensor weight) -> ()");
  m.def("packed_bytes() -> int");
  m.def("version() -> str");
  m.def("cpu_isa() -> str");
  m.def("capabilities_cpu() -> str");
  m.def("capabilities_cuda(int index) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(graft, CompositeExplicitAutograd, m) {
  m.impl("forget_weight", TORCH_BOX(&forget));
  m.impl("packed_bytes", TORCH_BOX(&bytes_packed));
  m.impl("version", TORCH_BOX(&version));
  m.impl("cpu_isa", TORCH_BOX(&isa));
  m.impl("capabilities_cpu", TORCH_BOX(&capabilities_cpu));
}

}  // namespace graft::pytorch
