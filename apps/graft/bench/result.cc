#include "apps/graft/bench/result.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

#include "apps/graft/bench/candidates.h"

namespace graft::app::bench {
namespace {

// A name, and what stands under it.
using Field = std::pair<const char*, std::string>;

std::string number(double value, int decimals) { return fmt::format("{:.{}f}", value, decimals); }

void add_times(std::vector<Field>& fields, const char* median, const char* p10, const char* p90,
               const std::optional<Timing>& spread) {
  fields.emplace_back(median, spread ? number(spread->median, 2) : "");
  fields.emplace_back(p10, spread ? number(spread->p10, 2) : "");
  fields.emplace_back(p90, spread ? number(spread->p90, 2) : "");
}

std::vector<Field> fields_of(const Result& result, const Machine& machine) {
  const Case& item = result.item;
  std::vector<Field> fields = {{"set", item.set},
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
  add_times(fields, "fused_us", "fused_p10_us", "fused_p90_us", result.fused);
  add_times(fields, "eval_us", "eval_p10_us", "eval_p90_us", result.eval);
  add_times(fields, "base_us", "base_p10_us", "base_p90_us", result.base);
  add_times(fields, "blas_us", "blas_p10_us", "blas_p90_us", result.blas);
  add_times(fields, "mlx_us", "mlx_p10_us", "mlx_p90_us", result.composed);
  fields.emplace_back("mlx_order", result.composed_order);
  fields.emplace_back("unfused_us", number(result.unfused(), 2));
  fields.emplace_back("speed_up", number(result.speed_up(), 4));
  fields.emplace_back("eval_speed_up", number(result.eval_speed_up(), 4));
  const bool has_base = result.base.has_value();
  fields.emplace_back("overhead", has_base ? number(overhead(result.fused, *result.base), 5) : "");
  fields.emplace_back("floor", has_base ? number(floor_overhead(item), 5) : "");
  fields.emplace_back("gflops", number(result.gflops(), 2));
  fields.emplace_back("peak_share", number(result.gflops() / machine.gflops(item), 4));
  fields.emplace_back("bound", name_of(result.bound.limit));
  fields.emplace_back("bound_us", number(result.bound.us, 2));
  return fields;
}

}  // namespace

double Result::unfused() const {
  if (!blas) return composed->median;
  return std::min(blas->median, composed->median);
}

Result result_of(const Case& item, std::size_t sets, const Machine& machine,
                 const std::vector<Candidate>& candidates, const std::vector<Timing>& timings) {
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
  result.bound = bound_of(item, machine, static_cast<double>(sets) * bytes(item));
  return result;
}

std::string csv_of(const Facts& facts, const Machine& machine, const std::vector<Result>& results) {
  std::string text;
  for (const auto& [name, value] : facts) text += fmt::format("# {}: {}\n", name, value);
  for (const Result& result : results) {
    std::vector<std::string> names;
    std::vector<std::string> values;
    for (auto& [name, value] : fields_of(result, machine)) {
      names.emplace_back(name);
      values.push_back(std::move(value));
    }
    if (&result == &results.front()) text += fmt::format("{}\n", fmt::join(names, ","));
    text += fmt::format("{}\n", fmt::join(values, ","));
  }
  return text;
}

}  // namespace graft::app::bench
