#include "benchmarks/graft_bench/lora_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "apps/graft/commands/common.h"
#include "apps/graft/terminal/format.h"
#include "benchmarks/graft_bench/blas.h"
#include "benchmarks/graft_bench/candidates.h"
#include "benchmarks/graft_bench/facts.h"
#include "benchmarks/graft_bench/overhead_plot.h"
#include "benchmarks/graft_bench/peak.h"
#include "benchmarks/graft_bench/table.h"
#include "graft/context.h"
#include "graft/llm/files/atomic_file.h"
#include "graft/llm/user_error.h"
#include "graft/mlx/fusion.h"
#include "graft/supports.h"

namespace graft::bench {
namespace {

constexpr double kFallbackCacheBytes = 8e6;

double last_cache_bytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  const long bytes = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (bytes > 0) return static_cast<double>(bytes);
#endif
  return kFallbackCacheBytes;
}

// A call of the core on tensors of one tile.
double measure_launch(Stopwatch& stopwatch, const Blas& blas) {
  const Case tiny{"", Op::kLoraDelta, Pass::kForward, 1, 16, 16, 16, 1};
  const std::vector<Tensors> sets = make_sets(tiny, 0.0);
  std::vector<Candidate> candidates = candidates_for(tiny, sets, blas);
  candidates.resize(1);
  return stopwatch.measure(candidates, 1).front().median;
}

// The arithmetic alone: a tenth of a second.
Machine measure_peaks(const LoraFlags& flags) {
  Machine machine;
  machine.gflops_f32 = peak_gflops_f32(num_threads());
  machine.gflops_bf16 = flags.dtype == "bf16" ? peak_gflops_bf16(num_threads()) : 0.0;
  if (machine.gflops_bf16 == 0.0) machine.gflops_bf16 = machine.gflops_f32;
  return machine;
}

// With the higher peaks: a machine that others slow down may have been slow for one of the two.
Machine with_peaks_of(Machine machine, const Machine& other) {
  machine.gflops_f32 = std::max(machine.gflops_f32, other.gflops_f32);
  machine.gflops_bf16 = std::max(machine.gflops_bf16, other.gflops_bf16);
  return machine;
}

Machine measure_machine(const LoraFlags& flags, Stopwatch& stopwatch, const Blas& blas) {
  const int threads = num_threads();
  Machine machine = measure_peaks(flags);
  machine.cache_bytes = last_cache_bytes();
  machine.cache_gbs = read_gbs(threads, machine.cache_bytes / 4);
  machine.memory_gbs = read_gbs(threads, std::clamp(4 * machine.cache_bytes, 64e6, 512e6));
  machine.launch_us = measure_launch(stopwatch, blas);
  return machine;
}

std::string command_line(const LoraFlags& flags) {
  std::string text = "graft-bench lora --dtype " + flags.dtype;
  if (flags.dropout != LoraFlags().dropout) {
    text += fmt::format(" --dropout {}", flags.dropout);
  }
  text += words_of(flags);
  for (const std::string& word : flags.filter) text += " --filter '" + word + "'";
  return text;
}

Facts facts_of(const LoraFlags& flags, const Machine& machine, const Blas& blas) {
  return {
      {"device", fmt::format("{}, {} threads", processor(), num_threads())},
      {"isa", cpu_isa()},
      {"versions", versions(blas)},
      {"date", date()},
      {"command", command_line(flags)},
      {"limits",
       fmt::format("{:.0f} GFLOP/s {}, {:.0f} GB/s from cache, {:.0f} GB/s from memory, {:.1f} us "
                   "a call",
                   flags.dtype == "bf16" ? machine.gflops_bf16 : machine.gflops_f32, flags.dtype,
                   machine.cache_gbs, machine.memory_gbs, machine.launch_us)},
  };
}

// A figure named fused must not be of composed ops.
void refuse_composed() {
  for (const mlx::FusionRecord& record : mlx::fusion_report()) {
    if (record.fused) continue;
    throw llm::UserError(
        fmt::format("{} {} did not run fused: {}", record.op, name_of(record.pass), record.reason));
  }
}

}  // namespace

void run_lora(const LoraFlags& flags) {
  if (!mlx::fused_enabled())
    throw llm::UserError("GRAFT_FUSED=0 leaves nothing to measure; unset it");
  const std::vector<Case> cases =
      all_cases({flags.dtype == "bf16", flags.dropout, flags.quick, flags.filter});
  if (cases.empty()) {
    throw llm::UserError("--filter: no case has all of these words; a case reads like '" +
                         label_of(all_cases({}).front()) + "'");
  }
  app::use_threads(flags.threads);
  mx::set_default_device(mx::Device::cpu);  // as the core, whose kernels are the CPU's
  const Blas blas;
  Stopwatch stopwatch(flags.rounds, flags.block_ms);
  Machine machine = measure_machine(flags, stopwatch, blas);
  print_facts(facts_of(flags, machine, blas));

  const Table table(app::stdout_is_terminal() ? app::terminal_width() : 120);
  fmt::print("\n{}\n", table.head());
  mlx::reset_fusion_report();
  std::vector<Result> results;
  for (const Case& item : cases) {
    machine = with_peaks_of(machine, measure_peaks(flags));
    const std::vector<Tensors> sets = make_sets(item, flags.rotate_bytes());
    const std::vector<Candidate> candidates = candidates_for(item, sets, blas);
    const std::vector<Timing> timings = stopwatch.measure(candidates, sets.size());
    refuse_composed();
    results.push_back(result_of(item, sets.size(), machine, candidates, timings));
    fmt::print("{}\n", table.line(results.back(), machine));
    std::fflush(stdout);
  }
  if (!flags.csv.empty()) {
    llm::write_file_atomically(flags.csv, csv_of(facts_of(flags, machine, blas), machine, results));
  }
  if (flags.svg.empty()) return;
  const std::string svg = overhead_plot_svg(
      results,
      fmt::format("What LoRA adds to a layer, {}, {} threads", flags.dtype, num_threads()));
  if (svg.empty())
    throw llm::UserError("--svg: no lora_linear among the cases, so there is no plot");
  llm::write_file_atomically(flags.svg, svg);
}

}  // namespace graft::bench
