#pragma once

#include <cstdint>
#include <string>

namespace graft::bench {

/// The flags of `graft-bench rows`, with their defaults.
struct RowsFlags {
  std::int64_t rows = 0;
  std::int64_t features = 0;
  std::string dtype = "f32";
  int threads = 0;
  double milliseconds = 40.0;  ///< What each operation gets.
  double rotate_mb = 0.0;      ///< What the sets of tensors that it goes round in have together.
};

/// Times the core's softmax, layer norm and RMS norm, forward and backward, and beside them copies
/// of x to y on two threads: what `graft-bench rows` runs. Prints lines of CSV without a head:
///
///     op,direction,dtype,rows,features,median_us,p10_us,p90_us
void run_rows(const RowsFlags& flags);

}  // namespace graft::bench
