#pragma once

#include <string>
#include <utility>
#include <vector>

#include "benchmarks/cuda/cases.h"
#include "benchmarks/cuda/cublas.h"
#include "benchmarks/cuda/facts.h"

namespace graft::bench {

/// Measures one case: the path that ran, and of each contender its microseconds (median, 10th and
/// 90th percentile) and the ratios that the table is about. Where Graft does not take the case, the
/// line says why.
Line run_case(const CudaCase& item, Cublas& cublas, int rounds);

}  // namespace graft::bench
