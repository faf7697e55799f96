#include "benchmarks/graft_bench/columns.h"

#include <fmt/format.h>

namespace graft::bench {

std::string head_of(std::span<const Column> columns, int width) {
  std::vector<std::string> titles;
  for (const Column& column : columns) titles.emplace_back(column.title);
  return line_of(columns, titles, width);
}

std::string line_of(std::span<const Column> columns, const std::vector<std::string>& cells,
                    int width) {
  std::string text;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const Column& column = columns[i];
    if (column.needs > width) continue;
    if (!text.empty()) text += ' ';
    text += column.left ? fmt::format("{:<{}}", cells[i], column.width)
                        : fmt::format("{:>{}}", cells[i], column.width);
  }
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

}  // namespace graft::bench
