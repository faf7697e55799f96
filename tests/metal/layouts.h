#pragma once

// Wrong layouts of simdgroup matrices, to put before a shader's text: where the stand-in then has
// what belongs at (row, col).
namespace graft::standin {

inline constexpr const char* kTransposed = "#define GRAFT_PLACE_OF(row, col) col, row\n";
inline constexpr const char* kRowsSwapped = "#define GRAFT_PLACE_OF(row, col) row ^ 1, col\n";
inline constexpr const char* kRenumbered = "#define GRAFT_PLACE_OF(row, col) row ^ 4, col ^ 4\n";

}  // namespace graft::standin
