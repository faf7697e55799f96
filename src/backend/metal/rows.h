#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/metal/limits.h"
#include "graft/metal.h"

namespace graft::metal {

// Yes if kernels take a weight or a bias of the features; absent, they need none.
Support vector_fits(const char* name, const ConstTensorView& vector);

// Yes if a kernel that gives each of `rows` rows a team takes them.
Support rows_fit(std::int64_t rows, std::int64_t features);

// How many elements of a row of so many features a thread keeps in registers; 0 if it does not, and
// the row is read again. A power of two or nearly: each number is a pipeline of its own.
int kept_of(std::int64_t features);

// A launch of a kernel that gives each row a team: the grid, template arguments KEPT and NARROW
// after `arguments`, and as scalars the features and a number (eps, a scale).
Step row_step(const char* kernel, std::vector<const char*> parts, std::int64_t rows,
              std::int64_t features, std::vector<Kernel::Argument> arguments, float number);

// Kernels that sum a matrix over its rows sum blocks of so many rows apart; and how many that
// makes.
int rows_of_block(std::int64_t rows);
std::int64_t row_blocks(std::int64_t rows);

// Adds the launches of a kernel that makes sums over the blocks of a matrix (rows, features), one
// for each of `outputs`, and of those that add blocks up, for outputs that are not absent,
// (features) float32. Always in the same order, so that results are the same in every run.
void add_sums(Plan& plan, const char* kernel, std::vector<const char*> parts, std::int64_t rows,
              std::int64_t features, DType dtype, std::vector<Operand> reads,
              std::vector<Operand> outputs);

}  // namespace graft::metal
