#pragma once

#include <string>
#include <utility>
#include <vector>

#include "benchmarks/cuda/cases.h"
#include "benchmarks/cuda/cublas.h"

namespace graft::bench {

/// Columns of a case's line, by name: sizes, the path that ran, and of each contender its
/// microseconds (median, 10th and 90th percentile) and the ratios that the table is about.
using Line = std::vector<std::pair<std::string, std::string>>;

/// Measures one case. Where Graft does not take it, the line says why.
Line run_case(const CudaCase& item, Cublas& cublas, int rounds);

}  // namespace graft::bench
