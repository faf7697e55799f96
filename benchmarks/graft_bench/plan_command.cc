#include "benchmarks/graft_bench/plan_command.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <cstdio>
#include <string>
#include <variant>
#include <vector>

#include "apps/graft/commands/common.h"
#include "benchmarks/graft_bench/plan.h"
#include "benchmarks/graft_bench/plan_table.h"
#include "graft/context.h"
#include "graft/llm/files/atomic_file.h"
#include "graft/llm/user_error.h"
#include "graft/mlx/fusion.h"

namespace graft::bench {
namespace {

bool on_gpu(const PlanFlags& flags) { return flags.device == "gpu"; }

void use_device(const PlanFlags& flags) {
  const mx::Device device = on_gpu(flags) ? mx::Device::gpu : mx::Device::cpu;
  if (!mx::is_available(device)) {
    throw llm::UserError(
        "--device gpu: MLX has no GPU here; --device cpu measures the same on the CPU");
  }
  mx::set_default_device(device);
}

std::string gpu_name() {
  const auto& info = mx::device_info(mx::Device::gpu);
  const auto name = info.find("device_name");
  if (name == info.end()) return "unknown";
  const auto* text = std::get_if<std::string>(&name->second);
  return text != nullptr ? *text : "unknown";
}

std::string device_name(const PlanFlags& flags) {
  return on_gpu(flags) ? fmt::format("GPU {}, beside {}", gpu_name(), processor())
                       : fmt::format("CPU {}, {} threads", processor(), num_threads());
}

Facts facts_of(const PlanFlags& flags) {
  return {
      {"device", device_name(flags)},
      {"system", operating_system()},
      {"versions", versions(Blas())},
      {"date", date()},
      {"command", "graft-bench plan --device " + flags.device + words_of(flags)},
  };
}

// Prints a line as soon as it is known.
std::vector<Compared> measure(const std::vector<MakeComparison>& comparisons, Stopwatch& stopwatch,
                              bool gpu, std::string (*line)(const Compared&)) {
  std::vector<Compared> results;
  for (const MakeComparison& make : comparisons) {
    results.push_back(compare(make(), stopwatch, !gpu));
    fmt::print("{}\n", line(results.back()));
    std::fflush(stdout);
  }
  return results;
}

std::string first_objection(const std::vector<Compared>& results) {
  for (const Compared& result : results) {
    if (!result.objection.empty()) return result.subject.op + ": " + result.objection;
  }
  return "";
}

void write_csv(const PlanFlags& flags, const Facts& facts, const std::vector<Compared>& results) {
  if (flags.csv.empty()) return;
  std::vector<Fields> rows;
  for (const Compared& result : results) rows.push_back(fields_of(result));
  llm::write_file_atomically(flags.csv, csv_text(facts, rows));
}

}  // namespace

void run_plan(const PlanFlags& flags) {
  if (!mlx::fused_enabled())
    throw llm::UserError("GRAFT_FUSED=0 leaves nothing to measure; unset it");
  use_device(flags);
  app::use_threads(flags.threads);
  const Facts facts = facts_of(flags);
  print_facts(facts);

  Stopwatch stopwatch(flags.rounds, flags.block_ms);
  const PlanOptions options{flags.quick, flags.rotate_bytes()};
  fmt::print("\ny = scaling*(x@A@B), float32, us a call (* of several in one eval)\n{}\n",
             delta_head());
  std::vector<Compared> results =
      measure(delta_comparisons(options), stopwatch, on_gpu(flags), delta_line);
  fmt::print("{}\n{}", delta_summary(results), objections_in(results));
  const std::string objection = first_objection(results);
  // The first table is safe, should one of the kernels of the second end the program.
  write_csv(flags, facts, results);

  fmt::print(
      "\nOther ops, float32, rows x features, rank 8, us a call (* of several in one eval)\n{}\n",
      kernel_head());
  const std::vector<Compared> kernels =
      measure(kernel_comparisons(options), stopwatch, on_gpu(flags), kernel_line);
  fmt::print("{}", objections_in(kernels));
  results.insert(results.end(), kernels.begin(), kernels.end());
  write_csv(flags, facts, results);
  if (!objection.empty()) throw llm::UserError(objection);
}

}  // namespace graft::bench
