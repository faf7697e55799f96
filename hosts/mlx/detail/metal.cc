#include "graft/mlx/detail/metal.h"

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/backend/metal/metal.h>
#include <mlx/export.h>
#include <mlx/fast.h>
#include <mlx/fast_primitives.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>

#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

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
                                                    call.body, call.header, call.strided.empty()))
      .first->second;
}

}  // namespace

void MetalNode::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  MetalStandin* const standin = metal_standin();
  if (standin == nullptr) {
    throw std::runtime_error(std::string("[") + caller().op +
                             "] this graph was built for Metal and cannot be evaluated on the CPU");
  }
  Arrays read = kernel_inputs(inputs);
  for (mx::array& input : read) {
    if (copies_strided()) input = row_contiguous(input, stream());
  }
  for (mx::array& output : outputs) output.set_data(mx::allocator::malloc(output.nbytes()));
  mx::cpu::get_command_encoder(stream()).dispatch(
      [standin, kernel = kernel_, read, outputs]() mutable {
        standin->launch(*kernel, read, outputs);
      });
  if (counts_) count();
}

void MetalNode::eval_gpu(const Arrays& inputs, Arrays& outputs) {
  kernel_->eval_gpu(kernel_inputs(inputs), outputs);
  if (counts_) count();
}

Arrays MetalNode::kernel_inputs(const Arrays& inputs) const {
  return read_ == 0 ? inputs : Arrays(inputs.begin(), inputs.begin() + static_cast<int>(read_));
}

bool MetalNode::copies_strided() const {
  // By its type, not dynamic_cast: MLX hides the type information that it wants.
  return std::get<5>(static_cast<const mx::fast::CustomKernel&>(*kernel_).state());
}

Arrays arranged(const metal::Call& call, Arrays inputs, mx::Stream s) {
  const auto& any = call.strided;
  if (any.empty()) return inputs;  // MLX sees to it when it launches
  for (std::size_t i = 0; i < call.inputs.size(); ++i) {
    const bool strided = std::find(any.begin(), any.end(), call.inputs[i]) != any.end();
    if (!strided && inputs[i].ndim() > 0) inputs[i] = mx::contiguous(inputs[i], false, s);
  }
  return inputs;
}

std::shared_ptr<mx::Primitive> kernel_of(const metal::Call& call, const Arrays& inputs,
                                         const Outputs& outputs, mx::Stream stream) {
  std::vector<std::pair<std::string, mx::fast::TemplateArg>> arguments;
  for (const auto& [name, value] : call.arguments) arguments.emplace_back(name, argument_of(value));
  const auto& [x, y, z] = call.grid;
  const auto& [width, height, depth] = call.threadgroup;
  const auto node = [&](const Arrays& operands, mx::StreamOrDevice where) {
    return function_of(call)(operands, outputs.shapes, outputs.dtypes, {x, y, z},
                             {width, height, depth}, arguments, std::nullopt, false, where);
  };
  if (stream.device != mx::Device::cpu) return node(inputs, stream)[0].primitive_ptr();

  // For a stand-in. Where there is no Metal, MLX makes its node while it traces a function to
  // export, and then only on no stream in particular.
  Arrays alike;
  for (const mx::array& input : inputs) alike.push_back(mx::zeros(input.shape(), input.dtype()));
  std::shared_ptr<mx::Primitive> kernel;
  const auto traced = [&](const Arrays& operands) {
    const Arrays made = node(operands, {});
    kernel = made[0].primitive_ptr();
    return made;
  };
  mx::export_function([](const mx::ExportCallbackInput&) {}, traced, alike);
  return kernel;
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

bool any_empty(const Arrays& arrays) {
  return std::any_of(arrays.begin(), arrays.end(),
                     [](const mx::array& array) { return array.size() == 0; });
}

}  // namespace graft::mlx::detail
