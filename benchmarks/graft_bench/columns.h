#pragma once

#include <span>
#include <string>
#include <vector>

namespace graft::bench {

/// A column of a table on a terminal.
struct Column {
  const char* title;
  int width;
  int needs = 0;      ///< Columns of the terminal, from which on it is shown.
  bool left = false;  ///< Aligned to the left; figures are to the right.
};

/// @{
/// A line of the table without the columns that a terminal of `width` columns has no room for.
std::string head_of(std::span<const Column> columns, int width);
std::string line_of(std::span<const Column> columns, const std::vector<std::string>& cells,
                    int width);
/// @}

}  // namespace graft::bench
