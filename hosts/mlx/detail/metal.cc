#include "graft/mlx/detail/metal.h"

#include <mlx/backend/metal/metal.h>
#include <mlx/fast.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>

namespace graft::mlx::detail {
namespace {

thread_local bool tracing = false;

mx::Dtype dtype_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return mx::float32;
    case DType::kFloat16:
      return mx::float16;
    case DType::kBFloat16:
      return mx::bfloat16;
    case DType::kInt32:
      return mx::int32;
  }
  return mx::float32;
}

mx::fast::TemplateArg argument_of(const std::variant<int, bool, DType>& value) {
  if (const auto* dtype = std::get_if<DType>(&value)) return dtype_of(*dtype);
  if (const auto* flag = std::get_if<bool>(&value)) return *flag;
  return std::get<int>(value);
}

// Made once for a text: MLX compiles a function's pipelines when they are first launched, and keeps
// them.
const mx::fast::CustomKernelFunction& function_of(const metal::Call& call) {
  static std::mutex mutex;
  static auto* functions = new std::map<std::string, mx::fast::CustomKernelFunction>;
  const std::lock_guard lock(mutex);
  const auto found = functions->find(call.kernel);
  if (found != functions->end()) return found->second;
  return functions
      ->emplace(call.kernel, mx::fast::metal_kernel(call.kernel, call.inputs, call.outputs,
                                                    call.body, call.header))
      .first->second;
}

}  // namespace

bool on_metal(mx::Stream stream) {
  return tracing || (stream.device == mx::Device::gpu && mx::metal::is_available());
}

MetalTracing::MetalTracing() : outer_(std::exchange(tracing, true)) {}
MetalTracing::~MetalTracing() { tracing = outer_; }

void MetalNode::eval_cpu(const Arrays&, Arrays&) {
  throw std::runtime_error(std::string("[") + caller().op +
                           "] this graph was built for Metal and cannot be evaluated on the CPU");
}

void MetalNode::eval_gpu(const Arrays& inputs, Arrays& outputs) {
  kernel_->eval_gpu(kernel_inputs(inputs), outputs);
  note_evaluation();
}

Arrays MetalNode::kernel_inputs(const Arrays& inputs) const {
  return read_ == 0 ? inputs : Arrays(inputs.begin(), inputs.begin() + static_cast<int>(read_));
}

std::shared_ptr<mx::Primitive> kernel_of(const metal::Call& call, const Arrays& inputs,
                                         const Outputs& outputs, mx::Stream stream) {
  std::vector<std::pair<std::string, mx::fast::TemplateArg>> arguments;
  for (const auto& [name, value] : call.arguments) arguments.emplace_back(name, argument_of(value));
  const auto& [x, y, z] = call.grid;
  const auto& [width, height, depth] = call.threadgroup;
  // A traced graph has no stream on a GPU to name.
  const mx::StreamOrDevice where = tracing ? mx::StreamOrDevice{} : mx::StreamOrDevice(stream);
  const Arrays made =
      function_of(call)(inputs, outputs.shapes, outputs.dtypes, {x, y, z}, {width, height, depth},
                        arguments, std::nullopt, false, where);
  return made[0].primitive_ptr();
}

Arrays zeros(const Outputs& outputs, mx::Stream s) {
  Arrays arrays;
  for (std::size_t i = 0; i < outputs.shapes.size(); ++i) {
    arrays.push_back(mx::zeros(outputs.shapes[i], outputs.dtypes[i], s));
  }
  return arrays;
}

bool asks_for(const std::vector<int>& argnums, int i) {
  return std::find(argnums.begin(), argnums.end(), i) != argnums.end();
}

}  // namespace graft::mlx::detail
