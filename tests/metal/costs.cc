// Prints what a LoRA pair's contribution moves on Metal, forward, as the stand-in counts it, beside
// what the unfused sequence moves at least: two products and a scaling, each reading its operands
// and writing its result once. docs/metal.md has the table.
#include <cstdio>

#include "graft/mlx/lora.h"
#include "metal/trace.h"

namespace {

namespace mx = mlx::core;
using Arrays = std::vector<mx::array>;

constexpr int kFeatures = 512;

double unfused_bytes(double rows, double rank) {
  const double h = rows * rank, y = rows * kFeatures, weights = 2 * kFeatures * rank;
  return 4 * (rows * kFeatures + weights + 2 * h + y + 2 * y);
}

}  // namespace

int main() {
  std::printf("| x | rank | launches | bytes | unfused | asked for | FLOPs | least FLOPs |\n");
  std::printf("|---|---|---|---|---|---|---|---|\n");
  for (const int sequence : {32, 128, 512}) {
    for (const int rank : {4, 8, 16, 32}) {
      const auto result = graft::standin::evaluate_on_metal(
          [](const Arrays& p) {
            return Arrays{graft::mlx::lora_forward_fused(p[0], p[1], p[2], 2.0f)};
          },
          {mx::random::normal({1, sequence, kFeatures}), mx::random::normal({kFeatures, rank}),
           mx::random::normal({rank, kFeatures})});
      if (!result.fault.empty()) {
        std::fprintf(stderr, "%s\n", result.fault.c_str());
        return 1;
      }
      double touched = 0, asked = 0, flops = 0;
      for (const auto& launched : result.launched) {
        const graft::standin::Traffic& traffic = launched.traffic;
        touched += static_cast<double>(traffic.device_touched);
        asked += static_cast<double>(traffic.device_reads + traffic.device_writes);
        flops += static_cast<double>(traffic.flops);
      }
      std::printf(
          "| (1, %d, %d) | %d | %zu of 3 | %.0f KB | %.0f KB | %.1f MB | %.2f M | %.2f M |\n",
          sequence, kFeatures, rank, result.launched.size(), touched / 1e3,
          unfused_bytes(sequence, rank) / 1e3, asked / 1e6, flops / 1e6,
          4.0 * sequence * kFeatures * rank / 1e6);
    }
  }
}
