#pragma once

#include <string>

namespace graft::bench {

/// The flags of everything that measures, with their defaults.
struct MeasurementFlags {
  int threads = 0;
  int rounds = 7;
  double block_ms = 8.0;
  double rotate_mb = -1.0;  // below zero: usual_rotate_bytes()
  bool quick = false;
  std::string csv;

  double rotate_bytes() const;
};

/// Those that are not the default and say how it was measured, as words of a command line with a
/// space before each: " --rounds 1 --quick".
std::string words_of(const MeasurementFlags& flags);

}  // namespace graft::bench
