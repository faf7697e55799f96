#include "benchmarks/graft_bench/csv.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace graft::bench {
namespace {

// In quotation marks if it must be, and those within it twice.
std::string quoted(const std::string& value) {
  if (value.find_first_of(",\"\n") == std::string::npos) return value;
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"') text += '"';
    text += c;
  }
  return text + '"';
}

}  // namespace

std::string number(double value, int decimals) { return fmt::format("{:.{}f}", value, decimals); }

void add_times(Fields& fields, const std::string& name, const std::optional<Timing>& timing) {
  fields.emplace_back(name + "_us", timing ? number(timing->median, 2) : "");
  fields.emplace_back(name + "_p10_us", timing ? number(timing->p10, 2) : "");
  fields.emplace_back(name + "_p90_us", timing ? number(timing->p90, 2) : "");
}

std::string csv_text(const Facts& facts, const std::vector<Fields>& rows) {
  std::string text;
  for (const auto& [name, value] : facts) text += fmt::format("# {}: {}\n", name, value);
  for (const Fields& row : rows) {
    std::vector<std::string> names;
    std::vector<std::string> values;
    for (const auto& [name, value] : row) {
      names.push_back(name);
      values.push_back(quoted(value));
    }
    if (&row == &rows.front()) text += fmt::format("{}\n", fmt::join(names, ","));
    text += fmt::format("{}\n", fmt::join(values, ","));
  }
  return text;
}

}  // namespace graft::bench
