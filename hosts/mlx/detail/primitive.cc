#include "graft/mlx/detail/primitive.h"

#include <stdexcept>

#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

Arrays picked(const Arrays& arrays, const std::vector<int>& indices) {
  Arrays some;
  for (const int i : indices) some.push_back(arrays[static_cast<std::size_t>(i)]);
  return some;
}

// `function` of the inputs that `argnums` names; the others are those of `primals`.
ArraysFunction of_variables(const ArraysFunction& function, const Arrays& primals,
                            const std::vector<int>& argnums) {
  return [function, primals, argnums](const Arrays& values) {
    Arrays all = primals;
    for (std::size_t j = 0; j < argnums.size(); ++j) {
      all[static_cast<std::size_t>(argnums[j])] = values[j];
    }
    return function(all);
  };
}

}  // namespace

Support allowed(mx::Stream stream, bool on_metal_too) {
  if (!fused_enabled()) return Support::no("fusion is turned off");
  if (on_metal(stream)) {
    return on_metal_too ? Support{} : Support::no("there is no Metal kernel for it");
  }
  if (stream.device != mx::Device::cpu && !on_cuda(stream)) {
    return Support::no("this build has no kernels for the stream's GPU");
  }
  return {};
}

Support serves_dx(const Weight& weight) {
  if (weight.serves(Direction::kBackward)) return {};
  return Support::no("the weight is packed for forward only");
}

FusedPrimitive::FusedPrimitive(mx::Stream stream, Caller caller, Pass pass,
                               const std::vector<Caller>& others)
    : mx::Primitive(stream),
      caller_(std::move(caller)),
      tallies_{&Tallies::instance().line(caller_, pass)} {
  for (const Caller& other : others) tallies_.push_back(&Tallies::instance().line(other, pass));
}

Context& FusedPrimitive::thread_context() {
  thread_local Context context;
  return context;
}

void FusedPrimitive::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  if (metal_standin() == nullptr) return evaluate(inputs, outputs);
  run_on_metal(inputs, outputs);
}

void FusedPrimitive::eval_gpu(const Arrays& inputs, Arrays& outputs) {
  if (on_metal(stream())) return run_on_metal(inputs, outputs);
  if (!on_cuda(stream())) {
    throw std::runtime_error(std::string("[") + caller_.op +
                             "] this build has no kernels for the GPU: evaluate on a CPU stream, "
                             "or call the op on a GPU stream to compose it from MLX ops");
  }
  evaluate_on_cuda(inputs, outputs);
  for (Tally* tally : tallies_) tally->add();
}

void FusedPrimitive::run_on_metal(const Arrays& inputs, const Arrays& outputs) {
  Views views(Views::For::kMetal, stream());
  const metal::Plan steps = plan(views, inputs, outputs);
  run_plan(steps, views.inputs(), views.outputs(), stream());
  for (Tally* tally : tallies_) tally->add();
}

metal::Plan FusedPrimitive::plan(Views&, const Arrays&, const Arrays&) const {
  throw std::logic_error(std::string("[") + caller_.op + "] there is no Metal kernel for it");
}

Arrays vjp_in(const ArraysFunction& function, const Arrays& primals, const Arrays& cotangents,
              const std::vector<int>& argnums) {
  return mx::vjp(of_variables(function, primals, argnums), picked(primals, argnums), cotangents)
      .second;
}

Arrays FusedPrimitive::composed_vjp(const Arrays& primals, const Arrays& cotangents,
                                    const std::vector<int>& argnums, const std::string& reason) {
  const auto outputs = [&](const Arrays& inputs) {
    Arrays all = composed(inputs);
    all.erase(all.begin() + static_cast<int>(cotangents.size()), all.end());
    return all;
  };
  // Counted on the way in, since a caller may evaluate any one of the gradients.
  Arrays marked = cotangents;
  marked[0] = counted(marked[0], caller_, Pass::kBackward, reason, stream());
  return vjp_in(outputs, primals, marked, argnums);
}

Arrays FusedPrimitive::vjp(const Arrays& primals, const Arrays& cotangents,
                           const std::vector<int>& argnums, const Arrays&) {
  return composed_vjp(primals, cotangents, argnums, "a gradient of a gradient has no kernel");
}

Arrays FusedPrimitive::jvp(const Arrays& primals, const Arrays& tangents,
                           const std::vector<int>& argnums) {
  const auto function = [this](const Arrays& inputs) { return composed(inputs); };
  Arrays derivatives =
      mx::jvp(of_variables(function, primals, argnums), picked(primals, argnums), tangents).second;
  derivatives[0] = counted(derivatives[0], caller_, Pass::kTangent,
                           "forward-mode derivatives have no kernel", stream());
  return derivatives;
}

std::pair<Arrays, std::vector<int>> FusedPrimitive::vmap(const Arrays& inputs,
                                                         const std::vector<int>& axes) {
  const auto function = [this](const Arrays& values) { return composed(values); };
  Arrays outputs = mx::vmap(function, axes)(inputs);
  outputs[0] = counted(outputs[0], caller_, Pass::kForward,
                       "vmap over this combination of operands has no kernel", stream());
  return {outputs, std::vector<int>(outputs.size(), 0)};
}

Arrays batch_first(const Arrays& inputs, const std::vector<int>& axes) {
  Arrays moved = inputs;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (axes[i] > 0) moved[i] = mx::moveaxis(inputs[i], axes[i], 0);
  }
  return moved;
}

}  // namespace graft::mlx::detail
