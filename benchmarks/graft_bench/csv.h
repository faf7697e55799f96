#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/graft_bench/arithmetic.h"
#include "benchmarks/graft_bench/facts.h"

namespace graft::bench {

/// Columns of one line of a file of results, by name.
using Fields = std::vector<std::pair<std::string, std::string>>;

std::string number(double value, int decimals);

/// Columns NAME_us, NAME_p10_us and NAME_p90_us, empty where nothing was measured.
void add_times(Fields& fields, const std::string& name, const std::optional<Timing>& timing);

/// Lines `# name: value`, a line of column names, and one line a row; all rows have the same names.
std::string csv_text(const Facts& facts, const std::vector<Fields>& rows);

}  // namespace graft::bench
