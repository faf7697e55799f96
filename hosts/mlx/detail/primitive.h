#pragma once

#include <mlx/backend/cpu/encoder.h>
#include <mlx/mlx.h>
#include <mlx/primitives.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graft/context.h"
#include "graft/mlx/detail/cuda_runner.h"
#include "graft/mlx/detail/metal_runner.h"
#include "graft/mlx/detail/tally.h"
#include "graft/mlx/detail/views.h"
#include "graft/mlx/weight.h"
#include "graft/supports.h"

namespace graft::mlx::detail {

using ArraysFunction = std::function<Arrays(const Arrays&)>;

// Why a call may not run fused whatever its operands: fusion is off, or the stream is on a device
// without kernels. `on_metal_too`: the operation has some for Metal.
Support allowed(mx::Stream stream, bool on_metal_too);

// No if `weight` is packed for forward only. Yes if it is absent, being among the arrays.
Support serves_dx(const Weight& weight);

// A graph node that one of the library's kernels evaluates. Derivatives and vectorizations that a
// subclass has no kernel for are composed from MLX ops through `composed`, and counted as such.
class FusedPrimitive : public mx::Primitive {
 public:
  // `others` are counted with `caller` where one kernel does the work of several.
  FusedPrimitive(mx::Stream stream, Caller caller, Pass pass,
                 const std::vector<Caller>& others = {});

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override;
  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override;
  Arrays jvp(const Arrays& primals, const Arrays& tangents,
             const std::vector<int>& argnums) override;
  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override;

  // Bytes of scratch that the core's kernels take for it. The arrays need not be evaluated.
  virtual std::size_t scratch(const Arrays& inputs, const Arrays& outputs) const = 0;

 protected:
  // All outputs from MLX's own ops.
  virtual Arrays composed(const Arrays& inputs) const = 0;

  // All outputs by kernels of the CPU.
  virtual void evaluate(const Arrays& inputs, Arrays& outputs) = 0;

  // All outputs by kernels of CUDA.
  virtual void evaluate_on_cuda(const Arrays& inputs, const Arrays& outputs) = 0;

  // What kernels of Metal are launched for it. Pure; the arrays are `views`'s to look at.
  virtual metal::Plan plan(Views& views, const Arrays& inputs, const Arrays& outputs) const;

  // Gradients of `composed` in the inputs that `argnums` names, counted as backward with `reason`.
  // There may be fewer cotangents than outputs; the last outputs then have none.
  Arrays composed_vjp(const Arrays& primals, const Arrays& cotangents,
                      const std::vector<int>& argnums, const std::string& reason);

  // Hands `work(context)` to the stream, to run after what is there already. `work` must not hold
  // the primitive, only values; the outputs' memory is kept until it has run.
  template <class Work>
  void dispatch(const Arrays& outputs, Work work) {
    std::vector<std::shared_ptr<mx::array::Data>> keep;
    for (const auto& out : outputs) keep.push_back(out.data_shared_ptr());
    mx::cpu::get_command_encoder(stream()).dispatch(
        [keep = std::move(keep), work = std::move(work), tallies = tallies_] {
          work(thread_context());
          for (Tally* tally : tallies) tally->add();
        });
  }

  const Caller& caller() const { return caller_; }
  mx::Stream own_stream() const { return const_cast<FusedPrimitive*>(this)->stream(); }

 private:
  void run_on_metal(const Arrays& inputs, const Arrays& outputs);

  // Scratch of the stream's own thread, as MLX gives each a thread.
  static Context& thread_context();

  Caller caller_;
  std::vector<Tally*> tallies_;
};

// If the same axis position can be moved to the front in every array that `axes` marks (-1 marks
// none), those arrays with it moved there.
Arrays batch_first(const Arrays& inputs, const std::vector<int>& axes);

// The outputs of a node.
struct Outputs {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;

  void add(mx::Shape shape, mx::Dtype dtype) {
    shapes.push_back(std::move(shape));
    dtypes.push_back(dtype);
  }
};

// What an op's gradients() is told, and what it may ask for.
template <class State>
struct Gradients {
  const State& state;
  const Arrays &primals, &cotangents;
  const std::vector<int>& argnums;
  const Arrays& outputs;
  const Caller& caller;
  mx::Stream s;
  // Those in `of` from MLX ops, for a reason. Of the outputs only the first `visible` have
  // cotangents that anybody gives.
  std::function<Arrays(const Support& no, std::size_t visible, const std::vector<int>& of)>
      composed;

  // Whether the gradient of input i is asked for.
  bool asked(std::size_t i) const {
    return std::find(argnums.begin(), argnums.end(), static_cast<int>(i)) != argnums.end();
  }
  // `computed`, which are those that are asked for, each in the dtype of its primal.
  Arrays as_primals(Arrays computed) const {
    for (std::size_t i = 0; i < computed.size(); ++i) {
      const mx::array& primal = primals[static_cast<std::size_t>(argnums[i])];
      computed[i] = mx::astype(computed[i], primal.dtype(), s);
    }
    return computed;
  }
};

// A node that is a call of the core, as Op says it with static functions alone:
//
//   State, Params     what the call is besides its arrays, comparable; the core's struct for it
//   kName, kPass, kRun                  kRun(context, params) is the core's function
//   outputs(state, inputs)              their shapes and dtypes
//   params(state, views, inputs, outputs)
//   has_rows(state, inputs)  which inputs a batch of is just more rows of them; none: it is not
//   kBatchJoinsFirst         if that batch has to join the first dimension, the number of
//                            dimensions being fixed
//   composed(state, inputs, stream)     all outputs from MLX's own ops
//   gradients(call)          if it has any by kernels: as Gradients above says
//   before_run(state, inputs)           if params are to be completed on the CPU's stream, just
//                            before kRun
//   others(state)            if one call is several callers' work: those besides the first
template <class Op>
class FusedNode final : public FusedPrimitive {
 public:
  using State = typename Op::State;

  FusedNode(mx::Stream stream, Caller caller, State state)
      : FusedPrimitive(stream, std::move(caller), Op::kPass, others(state)),
        state_(std::move(state)) {}

  static Arrays make(const State& state, const Arrays& inputs, const Caller& caller, mx::Stream s) {
    const Outputs outputs = Op::outputs(state, inputs);
    return mx::array::make_arrays(outputs.shapes, outputs.dtypes,
                                  std::make_shared<FusedNode>(s, caller, state), inputs);
  }

  // Whether the device of `s` has kernels for it; the arrays need not be evaluated.
  static Support supported(const State& state, const Arrays& inputs, mx::Stream s) {
    if (auto support = allowed(s, kHasPlan); !support) return support;
    const Outputs made = Op::outputs(state, inputs);
    Arrays outputs;
    for (std::size_t i = 0; i < made.shapes.size(); ++i) {
      outputs.emplace_back(made.shapes[i], made.dtypes[i], nullptr, Arrays{});
    }
    return supported(state, inputs, outputs, s);
  }
  // The same of a node whose outputs are there.
  static Support supported(const State& state, const Arrays& inputs, const Arrays& outputs,
                           mx::Stream s) {
    if (auto support = allowed(s, kHasPlan); !support) return support;
    Views views(Views::For::kQuestion, s);
    const auto params = Op::params(state, views, inputs, outputs);
    return views.viewable() ? supports(params) : views.viewable();
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    if constexpr (requires { &Op::gradients; }) {
      const auto from_ops = [&](const Support& no, std::size_t visible,
                                const std::vector<int>& of) {
        const Arrays given(cotangents.begin(), cotangents.begin() + static_cast<int>(visible));
        return composed_vjp(primals, given, of, no.reason);
      };
      return Op::gradients(Gradients<State>{state_, primals, cotangents, argnums, outputs, caller(),
                                            stream(), from_ops});
    } else {
      return FusedPrimitive::vjp(primals, cotangents, argnums, outputs);
    }
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    const std::vector<bool> has_rows = Op::has_rows(state_, inputs);
    bool more_rows = has_rows.size() == axes.size();
    for (std::size_t i = 0; more_rows && i < axes.size(); ++i) {
      more_rows = (axes[i] >= 0) == has_rows[i];
    }
    if (!more_rows) return FusedPrimitive::vmap(inputs, axes);
    Arrays moved = batch_first(inputs, axes);
    constexpr bool kJoins = requires { Op::kBatchJoinsFirst; };
    const int batch = moved[0].shape(0);
    for (mx::array& array : moved) {
      if (kJoins) array = mx::flatten(array, 0, 1, stream());
    }
    Arrays outputs = make(state_, moved, caller(), stream());
    for (mx::array& array : outputs) {
      if (kJoins) array = mx::unflatten(array, 0, {batch, array.shape(0) / batch}, stream());
    }
    return {outputs, std::vector<int>(outputs.size(), 0)};
  }

  std::size_t scratch(const Arrays& inputs, const Arrays& outputs) const override {
    Views views(Views::For::kQuestion, own_stream());
    return scratch_of(Op::params(state_, views, inputs, outputs));
  }

  const char* name() const override { return Op::kName; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const FusedNode&>(other).state_ == state_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return Op::outputs(state_, inputs).shapes;
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    return Op::composed(state_, inputs, own_stream());
  }

  void evaluate(const Arrays& inputs, Arrays& outputs) override {
    Views views(Views::For::kCpu, stream());
    const auto params = Op::params(state_, views, inputs, outputs);
    if constexpr (requires { Op::before_run(state_, inputs); }) {
      dispatch(outputs, [params, complete = Op::before_run(state_, inputs)](Context& context) {
        auto completed = params;
        complete(completed);
        Op::kRun(context, completed);
      });
    } else {
      dispatch(outputs, [params](Context& context) { Op::kRun(context, params); });
    }
  }

  // What the CPU completes on its stream, CUDA's kernels read from the device's memory.
  void evaluate_on_cuda(const Arrays& inputs, const Arrays& outputs) override {
    Views views(Views::For::kCuda, stream());
    const auto params = Op::params(state_, views, inputs, outputs);
    if constexpr (kComputes) {
      run_on_cuda(
          views.cuda_arrays(), [&](Context& context) { Op::kRun(context, params); }, stream());
    }
  }

  metal::Plan plan(Views& views, const Arrays& inputs, const Arrays& outputs) const override {
    if constexpr (kHasPlan) {
      return metal::plan(Op::params(state_, views, inputs, outputs));
    } else {
      return FusedPrimitive::plan(views, inputs, outputs);
    }
  }

 private:
  static std::vector<Caller> others(const State& state) {
    if constexpr (requires { Op::others(state); }) {
      return Op::others(state);
    } else {
      return {};
    }
  }

  static constexpr bool kComputes = requires(const typename Op::Params& params) {
    scratch_bytes(params);
  };
  static std::size_t scratch_of(const typename Op::Params& params) {
    if constexpr (kComputes) {
      return scratch_bytes(params);
    } else {
      return 0;
    }
  }

  static constexpr bool kHasPlan = requires(const typename Op::Params& params) {
    metal::plan(params);
  };

  State state_;
};

// All outputs of a call: from a fused node if the device has kernels for it, else from MLX ops, and
// counted with the reason.
template <class Op>
Arrays fused_or_composed(const typename Op::State& state, const Arrays& inputs,
                         const Caller& caller, mx::Stream s) {
  // Made first, so that what its outputs are is found once.
  Arrays fused = FusedNode<Op>::make(state, inputs, caller, s);
  const Support support = FusedNode<Op>::supported(state, inputs, fused, s);
  if (support) return fused;
  Arrays outputs = Op::composed(state, inputs, s);
  outputs[0] = counted(outputs[0], caller, Op::kPass, support.reason, s);
  return outputs;
}

// mx::vjp of `function` in the inputs that `argnums` names; the others are held constant.
Arrays vjp_in(const ArraysFunction& function, const Arrays& primals, const Arrays& cotangents,
              const std::vector<int>& argnums);

}  // namespace graft::mlx::detail
