#include "benchmarks/graft_bench/result.h"

#include <fmt/format.h>

#include <algorithm>

#include "benchmarks/graft_bench/candidates.h"
#include "benchmarks/graft_bench/csv.h"

namespace graft::bench {
namespace {

Fields fields_of(const Result& result, const Machine& machine) {
  const Case& item = result.item;
  Fields fields = {{"set", item.set},
                   {"what", name_of(item.op)},
                   {"pass", name_of(item.pass)},
                   {"batch", std::to_string(item.batch)},
                   {"sequence", std::to_string(item.sequence)},
                   {"in", std::to_string(item.in)},
                   {"out", std::to_string(item.out)},
                   {"rank", std::to_string(item.rank)},
                   {"dtype", item.bf16 ? "bf16" : "f32"},
                   {"dropout", fmt::format("{}", item.dropout)},
                   {"sets", std::to_string(result.sets)}};
  add_times(fields, "fused", result.fused);
  add_times(fields, "eval", result.eval);
  add_times(fields, "base", result.base);
  add_times(fields, "blas", result.blas);
  add_times(fields, "mlx", result.composed);
  fields.emplace_back("mlx_order", result.composed_order);
  fields.emplace_back("unfused_us", number(result.unfused(), 2));
  fields.emplace_back("speed_up", number(result.speed_up(), 4));
  fields.emplace_back("eval_speed_up", number(result.eval_speed_up(), 4));
  const bool has_base = result.base.has_value();
  fields.emplace_back("overhead", has_base ? number(overhead(result.fused, *result.base), 5) : "");
  fields.emplace_back("floor", has_base ? number(floor_overhead(item), 5) : "");
  fields.emplace_back("gflops", number(result.gflops(), 2));
  fields.emplace_back("peak_share", number(result.gflops() / machine.gflops(item), 4));
  const Bound bound = result.bound(machine);
  fields.emplace_back("bound", name_of(bound.limit));
  fields.emplace_back("bound_us", number(bound.us, 2));
  return fields;
}

}  // namespace

double Result::unfused() const {
  if (!blas) return composed->median;
  return std::min(blas->median, composed->median);
}

Result result_of(const Case& item, std::size_t sets, const std::vector<Candidate>& candidates,
                 const std::vector<Timing>& timings) {
  Result result;
  result.item = item;
  result.sets = sets;
  const std::string composed = kComposed;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const std::string& name = candidates[i].name;
    const Timing& timing = timings[i];
    if (name == kCore) result.fused = timing;
    if (name == kBase) result.base = timing;
    if (name == kEval) result.eval = timing;
    if (name == kBlas) result.blas = timing;
    if (name.rfind(composed, 0) != 0) continue;
    if (!result.composed || timing.median < result.composed->median) {
      result.composed = timing;
      result.composed_order = name.substr(composed.size());
    }
  }
  return result;
}

std::string beaten_bounds(const Machine& machine, const std::vector<Result>& results) {
  std::string labels;
  for (const Result& result : results) {
    if (beats(result.fused.median, result.bound(machine))) labels += label_of(result.item) + "\n";
  }
  return labels;
}

std::string csv_of(const Facts& facts, const Machine& machine, const std::vector<Result>& results) {
  std::vector<Fields> rows;
  for (const Result& result : results) rows.push_back(fields_of(result, machine));
  return csv_text(facts, rows);
}

}  // namespace graft::bench
