// A fault to be found: dA with the wrong sign. The linker puts this between the host's calls and
// the library (--wrap), so that neither has a trace of it, and the scripts that compare Graft with
// PEFT can show that they would notice.

#include <cstdint>

#include "graft/lora.h"

// graft::lora_linear_backward(graft::Context&, const graft::LoraLinearBackward&)
#define GRAFT_WRAPPED _ZN5graft20lora_linear_backwardERNS_7ContextERKNS_18LoraLinearBackwardE
#define GRAFT_JOIN(a, b) a##b
#define GRAFT_NAME(prefix, symbol) GRAFT_JOIN(prefix, symbol)

extern "C" {
void GRAFT_NAME(__real_, GRAFT_WRAPPED)(graft::Context&, const graft::LoraLinearBackward&);
void GRAFT_NAME(__wrap_, GRAFT_WRAPPED)(graft::Context&, const graft::LoraLinearBackward&);
}

void GRAFT_NAME(__wrap_, GRAFT_WRAPPED)(graft::Context& context,
                                        const graft::LoraLinearBackward& params) {
  GRAFT_NAME(__real_, GRAFT_WRAPPED)(context, params);
  const graft::TensorView da = params.da;
  if (!da.present()) return;
  for (std::int64_t i = 0; i < da.dim(0); ++i) {
    for (std::int64_t j = 0; j < da.dim(1); ++j) {
      float& value = da.mutable_data_as<float>()[i * da.stride(0) + j * da.stride(1)];
      value = -value;
    }
  }
}
