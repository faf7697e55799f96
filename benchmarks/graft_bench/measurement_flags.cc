#include "benchmarks/graft_bench/measurement_flags.h"

#include <fmt/format.h>

#include "benchmarks/graft_bench/problem.h"

namespace graft::bench {

double MeasurementFlags::rotate_bytes() const {
  return rotate_mb < 0.0 ? usual_rotate_bytes() : rotate_mb * 1e6;
}

std::string words_of(const MeasurementFlags& flags) {
  const MeasurementFlags usual;
  std::string text;
  if (flags.threads != usual.threads) text += fmt::format(" --threads {}", flags.threads);
  if (flags.rounds != usual.rounds) text += fmt::format(" --rounds {}", flags.rounds);
  if (flags.block_ms != usual.block_ms) text += fmt::format(" --block-ms {}", flags.block_ms);
  if (flags.rotate_mb >= 0.0) text += fmt::format(" --rotate-mb {}", flags.rotate_mb);
  if (flags.quick) text += " --quick";
  return text;
}

}  // namespace graft::bench
