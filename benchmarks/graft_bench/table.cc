#include "benchmarks/graft_bench/table.h"

#include <fmt/format.h>

#include <string_view>
#include <vector>

#include "benchmarks/graft_bench/columns.h"

namespace graft::bench {
namespace {

constexpr Column kColumns[] = {
    {"shape", 16, 0, true}, {"r", 3},        {"op", 8, 0, true},     {"pass", 4, 0, true},
    {"unfused", 9},         {"fused", 9},    {"speed-up", 8},        {"overhead", 8},
    {"floor", 6},           {"peak", 5, 88}, {"bound", 7, 97, true}, {"MLX", 9, 113},
    {"via MLX", 9, 113},
};

// Times from 1 µs to seconds, four digits.
std::string time_text(double us) {
  if (us < 999.5) return fmt::format("{:.{}f} us", us, us < 99.95 ? 1 : 0);
  if (us < 999500) return fmt::format("{:.{}f} ms", us / 1e3, us < 9995 ? 2 : us < 99950 ? 1 : 0);
  return fmt::format("{:.2f} s", us / 1e6);
}

std::string percent(double share) { return fmt::format("{:+.1f}%", share * 100.0); }

std::string_view short_name(Op op) {
  switch (op) {
    case Op::kLinear:
      return "linear";
    case Op::kLoraDelta:
      return "delta";
    case Op::kLoraLinear:
      break;
  }
  return "lora";
}

}  // namespace

std::string Table::head() const { return head_of(kColumns, width_); }

std::string Table::line(const Result& result, const Machine& machine) const {
  const Case& item = result.item;
  const bool has_base = result.base.has_value();
  std::string op(short_name(item.op));
  if (item.dropout > 0.0f) op += fmt::format(" {}", item.dropout);
  const std::vector<std::string> cells = {
      shape_of(item),
      item.rank == 0 ? "" : std::to_string(item.rank),
      op,
      item.pass == Pass::kForward ? "fwd" : "f+b",
      time_text(result.unfused()),
      time_text(result.fused.median),
      fmt::format("{:.2f}x", result.speed_up()),
      has_base ? percent(overhead(result.fused, *result.base)) : "",
      has_base ? percent(floor_overhead(item)) : "",
      fmt::format("{:.0f}%", 100.0 * result.gflops() / machine.gflops(item)),
      name_of(result.bound(machine).limit),
      time_text(result.composed->median),
      time_text(result.eval.median)};
  return line_of(kColumns, cells, width_);
}

}  // namespace graft::bench
