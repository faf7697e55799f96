#pragma once

#include <string>
#include <utility>
#include <vector>

#include "benchmarks/graft_bench/blas.h"

namespace graft::bench {

/// Names and values that a file of results begins with: device, versions, date, limits.
using Facts = std::vector<std::pair<std::string, std::string>>;

/// @{
/// What the facts of every benchmark have in common.
std::string processor();                 ///< "Apple M2 Pro"; "unknown" if the system does not say.
std::string operating_system();          ///< "macOS 15.1", "Linux 6.1.0".
std::string versions(const Blas& blas);  ///< Of Graft, MLX and the BLAS.
std::string date();                      ///< "2026-01-31 12:00 UTC".
/// @}

/// One line a fact, for a terminal.
void print_facts(const Facts& facts);

}  // namespace graft::bench
