#include "metal/measure.h"

#include <mlx/primitives.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <stdexcept>

#include "graft/mlx/detail/metal_runner.h"
#include "metal/evaluate.h"

namespace graft::standin {
namespace {

// Goes through a graph and counts what MLX launches in it, besides Graft's nodes; those launches
// read and write whole arrays.
class Launches {
 public:
  void add(const mx::array& array) {
    if (!array.has_primitive() || !seen_.insert(array.primitive_id()).second) return;
    const mx::Primitive& node = array.primitive();
    const std::string name = node.name();
    Arrays inputs = array.inputs();
    if (name.rfind("Graft", 0) == 0) {
      // The stand-in has counted what it launches.
    } else if (name == "Contiguous") {
      add_copies(inputs);
    } else if (!is_view(name)) {
      add_other(inputs, array.outputs());
    }
    for (const mx::array& input : inputs) add(input);
  }

  Cost others() const {
    Cost cost;
    cost.launches = others_;
    cost.bytes = cost.asked_bytes = bytes_;
    return cost;
  }

 private:
  // These change how an array is looked at, and share its memory.
  static bool is_view(const std::string& name) {
    static const std::set<std::string> views = {"Copy",      "ExpandDims", "Flatten",
                                                "Reshape",   "Squeeze",    "StopGradient",
                                                "Transpose", "Unflatten"};
    return views.count(name) > 0;
  }

  // What is transposed is copied to make its rows dense.
  void add_copies(const Arrays& inputs) {
    for (const mx::array& input : inputs) {
      if (input.has_primitive() && std::strcmp(input.primitive().name(), "Transpose") == 0) {
        add_other({input}, {input});
      }
    }
  }

  void add_other(const Arrays& inputs, const Arrays& outputs) {
    ++others_;
    for (const mx::array& input : inputs) bytes_ += input.nbytes();
    for (const mx::array& output : outputs) bytes_ += output.nbytes();
  }

  std::set<std::uintptr_t> seen_;
  std::size_t others_ = 0;
  std::uint64_t bytes_ = 0;
};

void add(Cost& cost, const Traffic& traffic) {
  ++cost.kernels;
  ++cost.launches;
  cost.bytes += traffic.device_touched;
  cost.asked_bytes += traffic.device_reads + traffic.device_writes;
  cost.flops += traffic.flops;
  cost.threadgroup_bytes = std::max(cost.threadgroup_bytes, traffic.threadgroup_bytes);
}

}  // namespace

Costs measure(const Operation& operation, const Problem& problem, bool with_backward) {
  const Arrays operands = operation.operands(problem);
  const auto count = static_cast<std::ptrdiff_t>(operands.size());
  const auto wanted = static_cast<std::ptrdiff_t>(operation.gradients);
  Arrays inputs = operands;
  for (std::size_t i = 0; with_backward && i < operation.outputs; ++i) {
    inputs.push_back(mx::random::normal({problem.batch, problem.sequence, problem.out}));
  }
  mx::eval(inputs);

  Launches forward, all;
  std::size_t forward_kernels = 0, forward_copies = 0;
  const Evaluated run = evaluate_on_metal(
      [&](const Arrays& in) {
        const Arrays rest(in.begin() + wanted, in.begin() + count);
        const auto function = [&](const Arrays& primals) {
          Arrays arrays = primals;
          arrays.insert(arrays.end(), rest.begin(), rest.end());
          return operation.forward(arrays);
        };
        const Arrays primals(in.begin(), in.begin() + wanted);
        const auto count_outputs = [&](const Arrays& outputs) {
          for (const mx::array& output : outputs) forward.add(output), all.add(output);
        };
        if (!with_backward) {
          const Arrays outputs = function(primals);
          count_outputs(outputs);
          return outputs;
        }
        auto [outputs, gradients] =
            mx::vjp(function, primals, Arrays(in.begin() + count, in.end()));
        count_outputs(outputs);
        for (const mx::array& gradient : gradients) all.add(gradient);
        mx::eval(outputs);  // all that is launched before the gradients
        const auto& standin = static_cast<Standin&>(*mlx::detail::metal_standin());
        forward_kernels = standin.launched().size();
        forward_copies = standin.copies().size();
        outputs.insert(outputs.end(), gradients.begin(), gradients.end());
        return outputs;
      },
      inputs);
  if (!run.fault.empty()) throw std::runtime_error(run.fault);
  if (!with_backward) {
    forward_kernels = run.launched.size();
    forward_copies = run.copies.size();
  }

  Costs costs{forward.others(), all.others()};
  costs.backward.launches -= costs.forward.launches;
  costs.backward.bytes -= costs.forward.bytes;
  costs.backward.asked_bytes -= costs.forward.asked_bytes;
  for (std::size_t i = 0; i < run.launched.size(); ++i) {
    add(i < forward_kernels ? costs.forward : costs.backward, run.launched[i].traffic);
  }
  for (std::size_t i = 0; i < run.copies.size(); ++i) {
    Cost& cost = i < forward_copies ? costs.forward : costs.backward;
    ++cost.launches;
    cost.bytes += 2 * run.copies[i];
    cost.asked_bytes += 2 * run.copies[i];
  }
  return costs;
}

}  // namespace graft::standin
