#pragma once

#include <mlx/backend/cpu/encoder.h>
#include <mlx/mlx.h>
#include <mlx/primitives.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graft/context.h"
#include "graft/mlx/detail/tally.h"
#include "graft/mlx/weight.h"
#include "graft/supports.h"

namespace graft::mlx::detail {

using Arrays = std::vector<mx::array>;
using ArraysFunction = std::function<Arrays(const Arrays&)>;

// Why a call may not run fused whatever its operands: fusion is off, or the stream is on a device
// without kernels.
Support allowed(mx::Stream stream);

// No if `weight` is packed for forward only. Yes if it is absent, being among the arrays.
Support serves_dx(const Weight& weight);

// No if one of the first `count` arrays has a dtype the library cannot even view.
Support dtypes_known(const Arrays& inputs, std::size_t count);

// A graph node that one of the library's kernels evaluates. Derivatives and vectorizations that a
// subclass has no kernel for are composed from MLX ops through `composed`, and counted as such.
class FusedPrimitive : public mx::Primitive {
 public:
  FusedPrimitive(mx::Stream stream, Caller caller, Pass pass)
      : mx::Primitive(stream),
        caller_(std::move(caller)),
        tally_(Tallies::instance().line(caller_, pass)) {}

  void eval_gpu(const Arrays& inputs, Arrays& outputs) override;
  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override;
  Arrays jvp(const Arrays& primals, const Arrays& tangents,
             const std::vector<int>& argnums) override;
  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override;

 protected:
  // What eval_cpu computes, all outputs, from MLX's own ops.
  virtual Arrays composed(const Arrays& inputs) const = 0;

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
        [keep = std::move(keep), work = std::move(work), tally = &tally_] {
          work(thread_context());
          tally->add();
        });
  }

  const Caller& caller() const { return caller_; }

  // One more evaluation, for the report.
  void count() const { tally_.add(); }

 private:
  // Scratch of the stream's own thread.
  static Context& thread_context();

  Caller caller_;
  Tally& tally_;
};

// mx::vjp of `function` in the inputs that `argnums` names; the others are held constant.
Arrays vjp_in(const ArraysFunction& function, const Arrays& primals, const Arrays& cotangents,
              const std::vector<int>& argnums);

// If the same axis position can be moved to the front in every array that `axes` marks (-1 marks
// none), those arrays with it moved there.
Arrays batch_first(const Arrays& inputs, const std::vector<int>& axes);

}  // namespace graft::mlx::detail
