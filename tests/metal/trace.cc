#include "metal/trace.h"

#include <mlx/allocator.h>
#include <mlx/export.h>
#include <mlx/fast_primitives.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>

#include "graft/mlx/detail/metal.h"
#include "metal/shader.h"

namespace graft::standin {
namespace {

using Arrays = std::vector<mx::array>;

// The lint and the syntax pass of tools/check_shaders.py, with address spaces; "" if nothing is
// wrong, or if there is no clang. Once for a text: what passed leaves a file in the cache.
std::string check_text(const std::string& text) {
  constexpr int kNoClang = 3;
  const std::filesystem::path passed = std::filesystem::path(GRAFT_SHADER_CACHE) /
                                       (std::to_string(std::hash<std::string>()(text)) + ".passed");
  if (std::filesystem::exists(passed)) return "";
  std::filesystem::create_directories(passed.parent_path());
  const std::string file = passed.string() + "." + std::to_string(getpid());
  std::ofstream(file) << text;
  const int status = std::system(("python3 " GRAFT_SOURCE_DIR "/tools/check_shaders.py --syntax " +
                                  file + " > " + file + ".log 2>&1")
                                     .c_str());
  std::ifstream log(file + ".log");
  const std::string said{std::istreambuf_iterator<char>(log), {}};
  std::filesystem::remove(file + ".log");
  std::filesystem::remove(file);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoClang) return "";
  if (status != 0) return "check_shaders: " + said;
  std::ofstream(passed).put('\n');
  return "";
}

class Evaluation {
 public:
  Evaluation(std::uint32_t seed, const std::string& before, Evaluated& result)
      : machine_(seed), before_(before), result_(result) {}

  void set(const mx::array& tracer, const mx::array& value) {
    values_.insert_or_assign(tracer.id(), value);
  }

  // The value of an array of the graph; of all outputs of its node with it.
  mx::array value(const mx::array& array) {
    if (const auto found = values_.find(array.id()); found != values_.end()) return found->second;
    if (!array.has_primitive()) return array;  // a constant
    Arrays inputs;
    for (const mx::array& input : array.inputs()) inputs.push_back(value(input));
    const Arrays nodes = array.outputs();
    // By its name: MLX hides the type information that dynamic_cast wants.
    const mx::Primitive& node = array.primitive();
    const bool is_metal = std::string(node.name()) == mlx::detail::MetalNode::kName;
    const Arrays outputs =
        is_metal ? launch(static_cast<const mlx::detail::MetalNode&>(node), inputs, nodes)
                 : evaluate(array, inputs, nodes);
    for (std::size_t i = 0; i < nodes.size(); ++i) set(nodes[i], outputs[i]);
    return values_.at(array.id());
  }

 private:
  static Arrays evaluate(const mx::array& array, const Arrays& inputs, const Arrays& nodes) {
    std::vector<mx::Shape> shapes;
    std::vector<mx::Dtype> dtypes;
    for (const mx::array& node : nodes) {
      shapes.push_back(node.shape());
      dtypes.push_back(node.dtype());
    }
    Arrays outputs = mx::array::make_arrays(shapes, dtypes, array.primitive_ptr(), inputs);
    mx::eval(outputs);
    return outputs;
  }

  // As MLX's eval_gpu does it: inputs row-contiguous, shapes and scalars as the signature wants
  // them.
  Arrays launch(const mlx::detail::MetalNode& node, const Arrays& all, const Arrays& nodes) {
    const Arrays inputs = node.kernel_inputs(all);
    const auto& kernel = static_cast<const mx::fast::CustomKernel&>(node.kernel());
    const auto state = kernel.state();
    const auto& [x, y, z] = std::get<2>(state);
    const auto& [width, height, depth] = std::get<3>(state);
    const auto size = [](int a, int b, int c) {
      return Extent{{static_cast<std::uint32_t>(a), static_cast<std::uint32_t>(b),
                     static_cast<std::uint32_t>(c)}};
    };
    Launched launched{
        std::get<0>(state), std::get<1>(state), size(x, y, z), size(width, height, depth), {}};

    Arrays dense;
    for (const mx::array& input : inputs) dense.push_back(mx::contiguous(input));
    mx::eval(dense);
    std::vector<Buffer> buffers;
    std::vector<std::vector<std::int64_t>> strides(inputs.size());
    std::vector<int> ranks(inputs.size());
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      buffers.push_back({dense[i].data<char>(), dense[i].nbytes(), true});
      const auto& [with_shape, with_strides, with_rank] = std::get<4>(state)[i];
      if (dense[i].ndim() == 0) continue;
      if (with_shape) {
        buffers.push_back({const_cast<int*>(dense[i].shape().data()), dense[i].ndim() * 4, true});
      }
      if (with_strides) {
        strides[i].assign(dense[i].strides().begin(), dense[i].strides().end());
        buffers.push_back({strides[i].data(), strides[i].size() * 8, true});
      }
      ranks[i] = static_cast<int>(dense[i].ndim());
      if (with_rank) buffers.push_back({&ranks[i], 4, true});
    }
    Arrays outputs;
    for (const mx::array& array : nodes) {
      mx::array output = mx::zeros(array.shape(), array.dtype());
      output.eval();
      buffers.push_back({output.data<char>(), output.nbytes(), false});
      outputs.push_back(output);
    }
    if (result_.fault.empty()) result_.fault = check_text(launched.text);
    if (result_.fault.empty()) {
      result_.fault = Shader(before_ + launched.text, GRAFT_SHADER_CACHE)
                          .launch(machine_, buffers, launched.grid, launched.group);
      launched.traffic = machine_.traffic();
    }
    result_.launched.push_back(launched);
    node.note_evaluation();
    return outputs;
  }

  Machine machine_;
  std::string before_;
  Evaluated& result_;
  std::map<std::uintptr_t, mx::array> values_;
};

}  // namespace

Evaluated evaluate_on_metal(const std::function<Arrays(const Arrays&)>& function,
                            const Arrays& inputs, std::uint32_t seed, const std::string& before) {
  Arrays tracers, traced;
  bool built = false;
  const auto build = [&](const Arrays& arrays) {
    const mlx::detail::MetalTracing tracing;
    tracers = arrays;
    traced = function(arrays);
    built = true;
    return traced;
  };
  try {
    mx::export_function([](const mx::ExportCallbackInput&) {}, build, inputs);
  } catch (const std::exception&) {
    // Graft's own nodes cannot be exported; what is wanted is the graph, and that is there by now.
    if (!built) throw;
  }
  Evaluated result;
  Evaluation evaluation(seed, before, result);
  for (std::size_t i = 0; i < inputs.size(); ++i) evaluation.set(tracers[i], inputs[i]);
  for (const mx::array& output : traced) result.outputs.push_back(evaluation.value(output));
  return result;
}

}  // namespace graft::standin
