#include "benchmarks/graft_bench/plan_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "benchmarks/graft_bench/columns.h"

namespace graft::bench {
namespace {

constexpr int kWidth = 80;

constexpr Column kDeltaColumns[] = {
    {"shape", 14, 0, true}, {"r", 2},      {"unfused", 8}, {"fused", 7}, {"MLX", 7},
    {"speed-up", 8},        {"of MLX", 6}, {"fused*", 7},  {"MLX*", 7},  {"", 5},
};

constexpr Column kKernelColumns[] = {
    {"op", 11, 0, true}, {"pass", 4, 0, true}, {"shape", 9, 0, true}, {"fused", 9}, {"MLX", 9},
    {"of MLX", 6},       {"fused*", 9},        {"MLX*", 9},           {"", 5},
};

std::string time_text(const std::optional<Compared::Measured>& measured) {
  return measured ? number(measured->median, measured->median < 9999.95 ? 1 : 0) : "-";
}

std::string times(const std::optional<double>& ratio) {
  return ratio ? fmt::format("{:.2f}x", *ratio) : "-";
}

std::string percent(const std::optional<double>& share) {
  return share ? fmt::format("{:.0f}%", 100.0 * *share) : "-";
}

std::string plain(const std::optional<double>& ratio) { return ratio ? number(*ratio, 4) : ""; }

// "least to most" of a ratio over the results that have it, each as `text` writes it.
template <class Ratio, class Text>
std::string range_of(const std::vector<Compared>& results, const Ratio& ratio, const Text& text) {
  std::vector<double> found;
  for (const Compared& result : results) {
    if (const std::optional<double> value = ratio(result)) found.push_back(*value);
  }
  if (found.empty()) return "no figures";
  const auto [least, most] = std::minmax_element(found.begin(), found.end());
  return fmt::format("{} to {}", text(*least), text(*most));
}

}  // namespace

std::string delta_head() { return head_of(kDeltaColumns, kWidth); }

std::string delta_line(const Compared& result) {
  const Subject& of = result.subject;
  return line_of(
      kDeltaColumns,
      {fmt::format("{}x{}x{}>{}", of.batch, of.sequence, of.in, of.out), std::to_string(of.rank),
       time_text(result.unfused), time_text(result.fused), time_text(result.mlx),
       times(result.speed_up()), percent(result.of_mlx()), time_text(result.fused_together),
       time_text(result.mlx_together), percent(result.of_mlx_together())},
      kWidth);
}

std::string delta_summary(const std::vector<Compared>& results) {
  return fmt::format("speed-up {} (the plan asks 6x to 10x); of MLX {} (the plan asks 95% to 110%)",
                     range_of(
                         results, [](const Compared& result) { return result.speed_up(); }, times),
                     range_of(
                         results, [](const Compared& result) { return result.of_mlx(); }, percent));
}

std::string kernel_head() { return head_of(kKernelColumns, kWidth); }

std::string kernel_line(const Compared& result) {
  const Subject& of = result.subject;
  return line_of(kKernelColumns,
                 {of.op, of.pass == Pass::kForward ? "fwd" : "f+b",
                  fmt::format("{}x{}", of.batch * of.sequence, of.in), time_text(result.fused),
                  time_text(result.mlx), percent(result.of_mlx()), time_text(result.fused_together),
                  time_text(result.mlx_together), percent(result.of_mlx_together())},
                 kWidth);
}

std::string objections_in(const std::vector<Compared>& results) {
  std::set<std::pair<std::string, std::string>> said;
  std::string text;
  for (const Compared& result : results) {
    if (result.objection.empty() || !said.emplace(result.subject.op, result.objection).second) {
      continue;
    }
    text += fmt::format("{}: {}\n", result.subject.op, result.objection);
  }
  return text;
}

Fields fields_of(const Compared& result) {
  const Subject& of = result.subject;
  Fields fields = {{"table", of.table},
                   {"op", of.op},
                   {"pass", name_of(of.pass)},
                   {"batch", std::to_string(of.batch)},
                   {"sequence", std::to_string(of.sequence)},
                   {"in", std::to_string(of.in)},
                   {"out", std::to_string(of.out)},
                   {"rank", std::to_string(of.rank)},
                   {"dtype", "f32"},
                   {"sets", std::to_string(result.sets)}};
  add_times(fields, "unfused", result.unfused);
  add_times(fields, "fused", result.fused);
  add_times(fields, "mlx", result.mlx);
  fields.emplace_back("mlx_way", result.mlx->way);
  fields.emplace_back("speed_up", plain(result.speed_up()));
  fields.emplace_back("of_mlx", plain(result.of_mlx()));
  fields.emplace_back("together", std::to_string(result.together));
  add_times(fields, "fused_together", result.fused_together);
  add_times(fields, "mlx_together", result.mlx_together);
  fields.emplace_back("mlx_together_way", result.mlx_together->way);
  fields.emplace_back("of_mlx_together", plain(result.of_mlx_together()));
  fields.emplace_back("objection", result.objection);
  return fields;
}

}  // namespace graft::bench
