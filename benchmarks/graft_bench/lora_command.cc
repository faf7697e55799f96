#include "benchmarks/graft_bench/lora_command.h"

#include <fmt/format.h>

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

// A call of the core on tensors of one tile.
double measure_launch(Stopwatch& stopwatch, const Blas& blas) {
  const Case tiny{"", Op::kLoraDelta, Pass::kForward, 1, 16, 16, 16, 1};
  const std::vector<Tensors> sets = make_sets(tiny, 0.0);
  std::vector<Candidate> candidates = candidates_for(tiny, sets, blas);
  candidates.resize(1);
  return stopwatch.measure(candidates, 1).front().p10;
}

// Adds what the machine does now, at most: others may have slowed it down before. Takes some 50 ms,
// and longer where `resident` bytes are many.
void measure_limits(const LoraFlags& flags, double resident, Machine& machine) {
  const int threads = num_threads();
  machine.gflops_f32 = std::max(machine.gflops_f32, peak_gflops_f32(threads));
  if (flags.dtype == "bf16") {
    machine.gflops_bf16 = std::max(machine.gflops_bf16, peak_gflops_bf16(threads));
  }
  machine.gflops_bf16 = std::max(machine.gflops_bf16, machine.gflops_f32);
  machine.add_moved(resident, moved_gbs(threads, resident));
}

std::string command_line(const LoraFlags& flags) {
  std::string text = "graft-bench lora --dtype " + flags.dtype;
  if (flags.dropout != LoraFlags().dropout) {
    text += fmt::format(" --dropout {}", flags.dropout);
  }
  text += words_of(flags);
  for (const std::string& word : flags.filter) text += " --filter '" + word + "'";
  for (const std::string& word : flags.without) text += " --without '" + word + "'";
  return text;
}

Facts facts_of(const LoraFlags& flags, const Machine& machine, const Blas& blas) {
  const Spread moved = machine.gbs_spread();
  return {
      {"device", fmt::format("{}, {} threads", processor(), num_threads())},
      {"isa", cpu_isa()},
      {"versions", versions(blas)},
      {"date", date()},
      {"command", command_line(flags)},
      {"limits", fmt::format("{:.0f} GFLOP/s {}, {:.0f} to {:.0f} GB/s, {:.1f} us a call",
                             flags.dtype == "bf16" ? machine.gflops_bf16 : machine.gflops_f32,
                             flags.dtype, moved.p10, moved.p90, machine.launch_us)},
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
      all_cases({flags.dtype == "bf16", flags.dropout, flags.quick, flags.filter, flags.without});
  if (cases.empty()) {
    throw llm::UserError("--filter, --without: no case has these words; a case reads like '" +
                         label_of(all_cases({}).front()) + "'");
  }
  app::use_threads(flags.threads);
  mx::set_default_device(mx::Device::cpu);  // as the core, whose kernels are the CPU's
  const Blas blas;
  Stopwatch stopwatch(flags.rounds, flags.block_ms);
  Machine machine;
  machine.launch_us = measure_launch(stopwatch, blas);
  measure_limits(flags, flags.rotate_bytes(), machine);
  print_facts(facts_of(flags, machine, blas));

  const Table table(app::stdout_is_terminal() ? app::terminal_width() : 120);
  fmt::print("\n{}\n", table.head());
  mlx::reset_fusion_report();
  std::vector<Result> results;
  for (const Case& item : cases) {
    const std::vector<Tensors> sets = make_sets(item, flags.rotate_bytes());
    measure_limits(flags, static_cast<double>(sets.size()) * bytes(item), machine);
    const std::vector<Candidate> candidates = candidates_for(item, sets, blas);
    const std::vector<Timing> timings = stopwatch.measure(candidates, sets.size());
    refuse_composed();
    results.push_back(result_of(item, sets.size(), candidates, timings));
    fmt::print("{}\n", table.line(results.back(), machine));
    std::fflush(stdout);
  }
  if (const std::string beaten = beaten_bounds(machine, results); !beaten.empty()) {
    fmt::print(stderr, "The machine was faster than its limits were measured in:\n{}", beaten);
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
