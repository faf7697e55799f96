#include "graft/mlx/detail/tally.h"

#include <mlx/primitives.h>

#include <memory>
#include <utility>

namespace graft::mlx::detail {
namespace {

// The identity, counting.
class Counted : public mx::UnaryPrimitive {
 public:
  Counted(mx::Stream stream, Caller caller, Pass pass, std::string reason)
      : mx::UnaryPrimitive(stream),
        caller_(std::move(caller)),
        reason_(std::move(reason)),
        tally_(Tallies::instance().line(caller_, pass, reason_)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) override {
    output.copy_shared_buffer(inputs[0]);
    tally_.add();
  }
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) override {
    eval_cpu(inputs, output);
  }

  std::vector<mx::array> vjp(const std::vector<mx::array>&,
                             const std::vector<mx::array>& cotangents, const std::vector<int>&,
                             const std::vector<mx::array>&) override {
    return {counted(cotangents[0], caller_, Pass::kBackward, reason_, stream())};
  }
  std::vector<mx::array> jvp(const std::vector<mx::array>&, const std::vector<mx::array>& tangents,
                             const std::vector<int>&) override {
    return {counted(tangents[0], caller_, Pass::kTangent, reason_, stream())};
  }
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>& inputs,
                                                           const std::vector<int>& axes) override {
    mx::array out(inputs[0].shape(), inputs[0].dtype(),
                  std::make_shared<Counted>(stream(), caller_, Pass::kForward, reason_), inputs);
    return {{out}, axes};
  }
  const char* name() const override { return "GraftCounted"; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  Caller caller_;
  std::string reason_;
  Tally& tally_;
};

}  // namespace

Tallies& Tallies::instance() {
  static auto* tallies = new Tallies;  // Never destroyed: MLX's stream threads outlive main().
  return *tallies;
}

Tally& Tallies::line(const Caller& caller, Pass pass, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  return lines_[Key(caller.op, caller.module, pass, reason)];
}

std::vector<FusionRecord> Tallies::report() {
  const std::lock_guard lock(mutex_);
  std::vector<FusionRecord> records;
  for (const auto& [key, tally] : lines_) {
    const auto runs = tally.runs_.load(std::memory_order_relaxed);
    if (runs == 0) continue;
    const auto& [op, module, pass, reason] = key;
    records.push_back({op, module, pass, reason.empty(), reason, runs});
  }
  return records;
}

void Tallies::reset() {
  const std::lock_guard lock(mutex_);
  for (auto& [key, tally] : lines_) tally.runs_.store(0, std::memory_order_relaxed);
}

mx::array counted(const mx::array& x, const Caller& caller, Pass pass, const std::string& reason,
                  mx::Stream stream) {
  return mx::array(x.shape(), x.dtype(), std::make_shared<Counted>(stream, caller, pass, reason),
                   {x});
}

}  // namespace graft::mlx::detail
