#pragma once

#include <mlx/mlx.h>

#include <memory>
#include <utility>
#include <vector>

#include "graft/metal.h"
#include "graft/mlx/detail/primitive.h"

namespace graft::mlx::detail {

// Whether calls on `stream` go to Metal kernels: it is on a GPU, and that is Metal's.
bool on_metal(mx::Stream stream);

// Runs launches where there is no Metal: tests put one here, to execute what MLX would compile.
class MetalStandin {
 public:
  virtual ~MetalStandin() = default;
  // `kernel` is MLX's node. Inputs are row-contiguous, outputs allocated. Called on the stream's
  // thread.
  virtual void launch(const mx::Primitive& kernel, const Arrays& inputs, Arrays& outputs) = 0;
};

// While a stand-in is set, calls on any CPU stream go to Metal kernels, and it runs them. Graphs
// are to be evaluated while the one they were built under is set. Null: none. Returns the one
// before.
MetalStandin* set_metal_standin(MetalStandin* standin);

// A graph node that launches one Metal kernel. The kernel is MLX's own node, made when the graph is
// built and evaluated by this one: as a node of the graph it would have no derivatives, and no
// mx::custom_function around it has any in forward mode or under vmap (MLX 0.32.4).
class MetalNode : public FusedPrimitive {
 public:
  // `composed` computes the same outputs from MLX ops, for derivatives; a node with `counts` is one
  // evaluation in the report. The kernel reads the first `read` inputs, all if it is 0.
  MetalNode(mx::Stream stream, const Caller& caller, Pass pass, bool counts,
            std::shared_ptr<mx::Primitive> kernel, ArraysFunction composed, std::size_t read = 0)
      : FusedPrimitive(stream, caller, pass),
        counts_(counts),
        kernel_(std::move(kernel)),
        composed_(std::move(composed)),
        read_(read) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override;
  const char* name() const override { return kName; }

  static constexpr const char* kName = "GraftMetal";
  Arrays kernel_inputs(const Arrays& inputs) const;
  // Whether inputs that are not row-contiguous are copied before the kernel is launched.
  bool copies_strided() const;

 protected:
  Arrays composed(const Arrays& inputs) const override { return composed_(inputs); }

 private:
  bool counts_;
  std::shared_ptr<mx::Primitive> kernel_;
  ArraysFunction composed_;
  std::size_t read_;
};

// The outputs of a launch, which `shapes` and `dtypes` are of.
struct Outputs {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
};

Arrays zeros(const Outputs& outputs, mx::Stream s);

// Whether one of them has no elements.
bool any_empty(const Arrays& arrays);

// Whether a gradient of input i is asked for.
bool asks_for(const std::vector<int>& argnums, int i);

// `inputs`, those that the call wants row-major made so.
Arrays arranged(const metal::Call& call, Arrays inputs, mx::Stream s);

// MLX's node for `call` on arrays in the order of its inputs: they say what its text depends on.
std::shared_ptr<mx::Primitive> kernel_of(const metal::Call& call, const Arrays& inputs,
                                         const Outputs& outputs, mx::Stream stream);

}  // namespace graft::mlx::detail
