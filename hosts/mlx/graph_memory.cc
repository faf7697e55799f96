#include "graft/mlx/graph_memory.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "graft/mlx/detail/primitive.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using Id = std::uintptr_t;

// Of a node whose results are views of its inputs: which input the first result is a view of. The
// others are views of those that follow.
std::optional<std::size_t> viewed_input(const mx::array& node) {
  constexpr std::string_view kOfFirst[] = {
      "AsStrided", "Broadcast", "BroadcastAxes", "Contiguous",   "Copy",
      "Depends",   "Flatten",   "ExpandDims",    "GraftCounted", "Reshape",
      "Slice",     "Squeeze",   "Transpose",     "Unflatten",    "StopGradient"};
  constexpr std::string_view kOfLast[] = {"CustomTransforms", "GraftLinearCrossEntropyGradient"};
  const std::string_view name = node.primitive().name();
  const auto is_one_of = [&](const auto& names) {
    return std::ranges::find(names, name) != std::end(names);
  };
  if (is_one_of(kOfFirst)) return 0;
  if (is_one_of(kOfLast)) return node.inputs().size() - node.siblings().size() - 1;
  return std::nullopt;
}

bool is_computed(const mx::array& array) {
  return !array.has_primitive() || array.status() != mx::array::unscheduled;
}

// The nodes that evaluating `outputs` runs, each as one of its results, inputs first.
Arrays in_order(const Arrays& outputs) {
  Arrays order;
  std::unordered_set<Id> met;
  std::vector<std::pair<mx::array, std::size_t>> path;  // each with the input to look at next
  const auto enter = [&](const mx::array& array) {
    if (is_computed(array) || met.contains(array.id())) return;
    for (const mx::array& result : array.outputs()) met.insert(result.id());
    path.emplace_back(array, 0);
  };
  for (const mx::array& output : outputs) {
    enter(output);
    while (!path.empty()) {
      auto& [node, next] = path.back();
      if (next < node.inputs().size()) {
        enter(mx::array(node.inputs()[next++]));
        continue;
      }
      order.push_back(std::move(node));
      path.pop_back();
    }
  }
  return order;
}

class Evaluation {
 public:
  Evaluation(const Arrays& outputs, int ahead)
      : order_(in_order(outputs)), ahead_(static_cast<std::size_t>(ahead)) {
    for (const mx::array& node : order_) {
      for (const mx::array& input : node.inputs()) ++readers_[input.id()];
    }
    for (const mx::array& output : outputs) ++readers_[output.id()];
  }

  GraphMemory follow() {
    for (const mx::array& node : order_) run(node);
    return result_;
  }

 private:
  // Of one or more arrays, counted as long as it lives.
  struct Block {
    std::int64_t& held;
    const std::int64_t bytes;
    Block(std::int64_t& total, std::int64_t size) : held(total), bytes(size) { held += bytes; }
    ~Block() { held -= bytes; }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
  };
  using BlockPtr = std::shared_ptr<Block>;  // null: of what was there before

  void run(const mx::array& node) {
    const std::optional<std::size_t> viewed = viewed_input(node);
    const Arrays outputs = node.outputs();
    if (!viewed) waiting_.emplace_back();
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      BlockPtr& block = blocks_[outputs[i].id()];
      block = viewed
                  ? block_of(node.inputs()[*viewed + i])
                  : std::make_shared<Block>(held_, static_cast<std::int64_t>(outputs[i].nbytes()));
      if (readers_[outputs[i].id()] == 0) leave(outputs[i]);
    }
    result_.tensors = std::max(result_.tensors, held_);
    for (const mx::array& input : node.inputs()) {
      if (--readers_[input.id()] == 0) leave(input);
    }
    while (waiting_.size() > ahead_) waiting_.pop_front();

    const auto* fused = dynamic_cast<const detail::FusedPrimitive*>(&node.primitive());
    if (fused == nullptr || detail::on_metal(node.primitive().stream())) return;
    const auto scratch = static_cast<std::int64_t>(fused->scratch(node.inputs(), outputs));
    result_.scratch = std::max(result_.scratch, scratch);
  }

  BlockPtr block_of(const mx::array& array) const {
    const auto found = blocks_.find(array.id());
    return found == blocks_.end() ? nullptr : found->second;
  }

  // Nobody reads it any more once the last operation has run.
  void leave(const mx::array& array) {
    const auto found = blocks_.find(array.id());
    if (found == blocks_.end()) return;
    if (!waiting_.empty()) waiting_.back().push_back(std::move(found->second));
    blocks_.erase(found);
  }

  const Arrays order_;
  const std::size_t ahead_;
  std::unordered_map<Id, int> readers_;  // nodes that have yet to read an array, and the caller
  std::int64_t held_ = 0;
  std::unordered_map<Id, BlockPtr> blocks_;
  std::deque<std::vector<BlockPtr>> waiting_;  // what operations that have not run will free
  GraphMemory result_;
};

}  // namespace

GraphMemory graph_memory(const Arrays& outputs, int ahead) {
  return Evaluation(outputs, ahead).follow();
}

}  // namespace graft::mlx
