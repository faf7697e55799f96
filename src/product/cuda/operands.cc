#include "product/cuda/operands.h"

#include <string>

#include "checks.h"

namespace graft::cuda {

Support float_on_cuda(const char* tensor, const ConstTensorView& view) {
  if (!view.present() || view.dtype() != DType::kInt32) return {};
  return Support::no(std::string(tensor) + ": " + name_of(view.dtype()) +
                     " has no CUDA kernel, float32, float16 and bfloat16 do");
}

Support weight_on_cuda(const Weight& weight) {
  if (weight.is_packed()) {
    return Support::no(
        "weight: packed for the CPU, which no CUDA kernel can read; give a plain one");
  }
  return float_on_cuda("weight", weight.view());
}

Support adapter_on_cuda(const Adapter& adapter) {
  return all_of({float_on_cuda("a", adapter.a), float_on_cuda("b", adapter.b)});
}

void reaches(const Call& call, const Weight& weight) { call.reaches("weight", weight.view()); }

void reaches(const Call& call, const Adapter& adapter, const Dropout& dropout) {
  call.reaches("a", adapter.a);
  call.reaches("b", adapter.b);
  if (dropout.state != nullptr && active(dropout)) {
    const bool apart = dropout.offset_state != nullptr;
    call.reaches("dropout.state", ConstTensorView(dropout.state, DType::kInt32, {apart ? 2 : 4}));
    if (!apart) return;
    call.reaches("dropout.offset_state", ConstTensorView(dropout.offset_state, DType::kInt32, {2}));
  }
}

}  // namespace graft::cuda
