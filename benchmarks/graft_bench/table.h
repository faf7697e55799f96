#pragma once

#include <string>

#include "benchmarks/graft_bench/result.h"

namespace graft::bench {

/// A table of results for a terminal of `width` columns, at least 80: what does not fit is left
/// out, the least telling columns first.
class Table {
 public:
  explicit Table(int width) : width_(width) {}

  std::string head() const;
  std::string line(const Result& result, const Machine& machine) const;

 private:
  int width_;
};

}  // namespace graft::bench
