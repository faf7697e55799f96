#include "benchmarks/graft_bench/plan.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "graft/mlx/fused_lora_op.h"
#include "graft/mlx/layer_norm.h"
#include "graft/mlx/rms_norm.h"
#include "graft/mlx/softmax.h"

namespace graft::bench {
namespace {

constexpr std::int64_t kRank = 8;
constexpr float kEpsilon = 1e-5f;

// As many sets of one row's vectors as fill large caches would take longer to make than to measure.
constexpr double kMostSets = 64;

// Inputs of a call and, behind them, dy: all that a graph is a function of, compiled or not.
using GivenSets = std::shared_ptr<const std::vector<Arrays>>;

Arrays outputs_of(const Graph& graph, Pass pass, std::size_t trained, const Arrays& given) {
  return bench::outputs_of(graph, pass, trained, Arrays(given.begin(), given.end() - 1),
                           given.back());
}

// MLX's way as it stands and, where it is more than one op, through mx::compile.
void add_way(Comparison& comparison, const std::string& name, const Graph& graph,
             std::size_t trained, const GivenSets& sets, bool compile) {
  const auto step = [graph, pass = comparison.subject.pass, trained](const Arrays& given) {
    return outputs_of(graph, pass, trained, given);
  };
  comparison.mlx.emplace_back(name, [sets, step](std::size_t i) { return step((*sets)[i]); });
  if (!compile) return;
  comparison.mlx.emplace_back(
      name + " compiled",
      [sets, compiled = mx::compile(step)](std::size_t i) { return compiled((*sets)[i]); });
}

// ---- ops with an adapter or a base weight ----

// Of make_sets only what graphs read is kept.
struct LoraSets {
  GivenSets given;
  std::vector<Weight> packed;
};

LoraSets make_lora_sets(const Case& item, double rotate_bytes) {
  std::vector<Arrays> given;
  std::vector<Weight> packed;
  for (const Tensors& set : make_sets(item, rotate_bytes)) {
    given.push_back(inputs_of(item, set));
    given.back().push_back(set.dy);
    packed.push_back(set.packed);
  }
  return {std::make_shared<const std::vector<Arrays>>(std::move(given)), std::move(packed)};
}

Comparison compare_with_mlx(const char* table, const Case& item, const GivenSets& sets) {
  Comparison comparison;
  comparison.subject = {table,         name_of(item.op), item.pass, item.batch,
                        item.sequence, item.in,          item.out,  item.rank};
  comparison.sets = sets->size();
  for (const auto& [name, graph] : composed_graphs(item)) {
    add_way(comparison, name, graph, trained_inputs(item), sets, true);
  }
  return comparison;
}

// Three ops, each with a launch and a wait of its own.
void run_unfused(const Arrays& given) {
  mx::array h = mx::matmul(given[0], given[1]);
  mx::eval(h);
  mx::array product = mx::matmul(h, given[2]);
  mx::eval(product);
  mx::eval(mx::multiply(product, mx::array(kScaling)));
}

Comparison delta_comparison(const Case& item, const PlanOptions& options) {
  const GivenSets sets = make_lora_sets(item, options.rotate_bytes).given;
  Comparison comparison = compare_with_mlx("plan", item, sets);
  std::vector<mlx::FusedLoRAOp> ops;
  for (const Arrays& given : *sets) ops.emplace_back(given[1], given[2], kScaling);
  comparison.fused = [sets, ops](std::size_t i) { return Arrays{ops[i]((*sets)[i][0])}; };
  comparison.unfused = [sets](std::size_t i) { run_unfused((*sets)[i]); };
  return comparison;
}

Comparison layer_comparison(const Case& item, const PlanOptions& options) {
  const LoraSets sets = make_lora_sets(item, options.rotate_bytes);
  Comparison comparison = compare_with_mlx("kernels", item, sets.given);
  comparison.fused = [sets, item](std::size_t i) {
    const auto graph = [&](const Arrays& inputs) {
      return fused_graph(item, inputs, sets.packed[i]);
    };
    return outputs_of(graph, item.pass, trained_inputs(item), (*sets.given)[i]);
  };
  return comparison;
}

// ---- ops on rows of features ----

struct RowsOp {
  const char* name;
  std::size_t vectors;  // of all features, beside x: a weight, a bias
  Graph fused;
  const char* way;  // the name of:
  Graph mlx;
};

std::vector<RowsOp> rows_ops() {
  return {{"softmax", 0, [](const Arrays& in) { return mlx::softmax(in[0]); }, "mx::softmax",
           [](const Arrays& in) { return mx::softmax(in[0], -1, true); }},
          {"rms_norm", 1, [](const Arrays& in) { return mlx::rms_norm(in[0], in[1], kEpsilon); },
           "mx::fast::rms_norm",
           [](const Arrays& in) { return mx::fast::rms_norm(in[0], in[1], kEpsilon); }},
          {"layer_norm", 2,
           [](const Arrays& in) { return mlx::layer_norm(in[0], in[1], in[2], kEpsilon); },
           "mx::fast::layer_norm",
           [](const Arrays& in) { return mx::fast::layer_norm(in[0], in[1], in[2], kEpsilon); }}};
}

GivenSets make_rows_sets(const RowsOp& op, int rows, int features, double rotate_bytes) {
  const double bytes = 4.0 * (2.0 * rows + static_cast<double>(op.vectors)) * features;
  const double count = std::clamp(std::ceil(rotate_bytes / bytes), 1.0, kMostSets);
  std::vector<Arrays> sets(static_cast<std::size_t>(count));
  for (Arrays& given : sets) {
    given.push_back(mx::random::normal({1, rows, features}));
    for (std::size_t i = 0; i < op.vectors; ++i) given.push_back(mx::random::normal({features}));
    given.push_back(mx::random::normal({1, rows, features}));
    mx::eval(given);
  }
  return std::make_shared<const std::vector<Arrays>>(std::move(sets));
}

Comparison rows_comparison(const RowsOp& op, Pass pass, int rows, int features,
                           const PlanOptions& options) {
  const GivenSets sets = make_rows_sets(op, rows, features, options.rotate_bytes);
  const std::size_t trained = 1 + op.vectors;
  Comparison comparison;
  comparison.subject = {"kernels", op.name, pass, 1, rows, features, features, 0};
  comparison.sets = sets->size();
  comparison.fused = [sets, op, pass, trained](std::size_t i) {
    return outputs_of(op.fused, pass, trained, (*sets)[i]);
  };
  add_way(comparison, op.way, op.mlx, trained, sets, false);
  return comparison;
}

// ---- the tables ----

struct Shape {
  int rows;
  int features;
  std::vector<Pass> passes;
};

// A batch of tokens, and one token of a decoder, which has no gradient.
std::vector<Shape> kernel_shapes(bool quick) {
  constexpr Pass forward = Pass::kForward, both = Pass::kForwardBackward;
  if (quick) return {{16, 64, {forward, both}}, {1, 64, {forward}}};
  return {{512, 512, {forward, both}},
          {512, 4096, {forward, both}},
          {1, 512, {forward}},
          {1, 4096, {forward}}};
}

// Calls `add(rows, features, pass)` for every line of an op.
template <class Add>
void for_each_line(bool quick, const Add& add) {
  for (const Shape& shape : kernel_shapes(quick)) {
    for (const Pass pass : shape.passes) add(shape.rows, shape.features, pass);
  }
}

}  // namespace

std::vector<MakeComparison> delta_comparisons(const PlanOptions& options) {
  CaseOptions wanted;
  wanted.quick = options.quick;
  wanted.filter = {"lora_delta", "forward"};
  if (!options.quick) wanted.filter.emplace_back("grid");
  std::vector<MakeComparison> comparisons;
  for (const Case& item : all_cases(wanted)) {
    comparisons.push_back([item, options] { return delta_comparison(item, options); });
  }
  return comparisons;
}

std::vector<MakeComparison> kernel_comparisons(const PlanOptions& options) {
  std::vector<MakeComparison> comparisons;
  for (const Op op : {Op::kLoraLinear, Op::kLinear}) {
    for_each_line(options.quick, [&](int rows, int features, Pass pass) {
      const std::int64_t rank = op == Op::kLinear ? 0 : kRank;
      const Case item{"kernels", op, pass, 1, rows, features, features, rank};
      comparisons.push_back([item, options] { return layer_comparison(item, options); });
    });
  }
  for (const RowsOp& op : rows_ops()) {
    for_each_line(options.quick, [&](int rows, int features, Pass pass) {
      comparisons.push_back([op, pass, rows, features, options] {
        return rows_comparison(op, pass, rows, features, options);
      });
    });
  }
  return comparisons;
}

}  // namespace graft::bench
