#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/metal/limits.h"
#include "graft/metal.h"

namespace graft::metal {

// Yes if a kernel that gives each of `rows` rows a team takes them.
Support rows_fit(std::int64_t rows, std::int64_t features);

// How many elements of a row of so many features a thread keeps in registers; 0 if it does not, and
// the row is read again. A power of two or nearly: each number is a pipeline of its own.
int kept_of(std::int64_t features);

// A launch of a kernel that gives each row a team: the grid, and template arguments KEPT and NARROW
// after `arguments`.
Step row_step(const char* kernel, std::vector<const char*> parts, std::int64_t rows,
              std::int64_t features, std::vector<Kernel::Argument> arguments);

// A call whose body gives each row a team (src/backend/metal/rows.metal): the grid, the arguments T
// and KEPT, and the declarations of `team` and `features`, the last dimension of `matrix`.
Call row_call(const std::string& kernel, const char* matrix, std::int64_t rows,
              std::int64_t features, DType dtype);

// A call whose body makes a sum over each block of ROWS rows of the matrix (rows, features)
// `matrix`, a thread a column of a block: the grid, ROWS, and declarations of `rows`, `features`,
// `col`, `block`, and of the block's rows, `first` to `end`.
Call block_call(const std::string& kernel, const char* matrix, std::int64_t rows,
                std::int64_t features);

}  // namespace graft::metal
