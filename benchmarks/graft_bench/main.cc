#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>

#include "apps/graft/commands/flags.h"
#include "apps/graft/commands/number_range.h"
#include "apps/graft/commands/run_program.h"
#include "benchmarks/graft_bench/lora_command.h"
#include "benchmarks/graft_bench/plan_command.h"
#include "benchmarks/graft_bench/rows_command.h"

namespace graft::bench {
namespace {

constexpr const char* kPlanHelp =
    R"(First table: y = scaling*(x@A@B), float32, 512 -> 512 features, over batch 1, 4,
16, sequence 32, 128, 512 and rank 4, 8, 16, 32. Second table: other ops, at a
few shapes. Times are medians in microseconds a call:
  unfused   x@A, then (.)@B, then *scaling, each evaluated on its own: three
            launches, three waits
  fused     Graft's op in one eval; for y, a FusedLoRAOp made once and applied
  MLX       MLX's own ops in one graph and one eval: the fastest of the plain
            orders and the same through mx::compile; of softmax and the norms,
            MLX's one op
  speed-up  unfused / fused; the plan asks 6x to 10x
  of MLX    fused / MLX; the plan asks 95% to 110%
  fused*    a call's share of 4 to 32 independent calls in one graph and one
            eval, where waiting for the device counts once; MLX* alike, and then
            fused* / MLX*
Inputs rotate. Nothing is called fused where composed ops ran, or where the
result differs from MLX's: a dash stands there, and the reason below the table.
In the first table that ends in an error.)";

void add_measurement_flags(CLI::App& command, MeasurementFlags& flags) {
  app::add_threads_flag(command, flags.threads);
  command.add_option("--rounds", flags.rounds, "Times that each way of computing takes its turn")
      ->check(app::at_least(1))
      ->capture_default_str();
  command.add_option("--block-ms", flags.block_ms, "Milliseconds of a turn, or one call if longer")
      ->check(app::above(0.0))
      ->capture_default_str();
  command
      .add_option("--rotate-mb", flags.rotate_mb,
                  "Megabytes of inputs to go round; usually twice the cores' own caches, and 0 "
                  "measures one set that stays in them")
      ->check(app::between(0.0, 4096.0));
  command.add_flag("--quick", flags.quick, "A few small shapes only");
  command.add_option("--csv", flags.csv, "Write the results to this file")->type_name(app::kFile);
}

void add_lora(CLI::App& program) {
  const auto flags = std::make_shared<LoraFlags>();
  CLI::App* command = program.add_subcommand(
      "lora", "Fused LoRA against OpenBLAS calls and against MLX's own ops, in one run");
  app::add_dtype_flag(*command, flags->dtype, "Element type of all tensors");
  command->add_option("--dropout", flags->dropout, "Of the rows with dropout; 0 leaves them out")
      ->check(app::between(0.0f, 0.99f))
      ->capture_default_str();
  add_measurement_flags(*command, *flags);
  command
      ->add_option("--filter", flags->filter,
                   "Only cases with this word (or words, all of them): plan, grid, model, wide, "
                   "linear, lora_delta, lora_linear, forward, r8, dropout0, 4x128x576>1536, ...")
      ->take_all();
  command->add_option("--without", flags->without, "Only cases with none of these words")
      ->take_all();
  command->add_option("--svg", flags->svg, "Write a plot of the overheads to this file")
      ->type_name(app::kFile);
  command->callback([flags] { run_lora(*flags); });
}

void add_plan(CLI::App& program) {
  const auto flags = std::make_shared<PlanFlags>();
  CLI::App* command = program.add_subcommand(
      "plan", "Fused ops against MLX's own through MLX's eval, on a GPU or the CPU");
  command->add_option("--device", flags->device, "Where MLX runs them")
      ->check(CLI::IsMember({"gpu", "cpu"}))
      ->capture_default_str();
  add_measurement_flags(*command, *flags);
  command->footer(kPlanHelp);
  command->callback([flags] { run_plan(*flags); });
}

void add_rows(CLI::App& program) {
  const auto flags = std::make_shared<RowsFlags>();
  CLI::App* command =
      program.add_subcommand("rows", "The core's softmax and norms beside copies, as lines of CSV");
  command->add_option("rows", flags->rows, "Rows of the tensors")
      ->check(app::between<std::int64_t>(1, 1 << 24))
      ->required();
  command->add_option("features", flags->features, "Elements of a row")
      ->check(app::between<std::int64_t>(1, 1 << 24))
      ->required();
  app::add_dtype_flag(*command, flags->dtype, "Element type of inputs and outputs");
  app::add_threads_flag(*command, flags->threads);
  command->add_option("--milliseconds", flags->milliseconds, "What each operation gets")
      ->check(app::above(0.0))
      ->capture_default_str();
  command
      ->add_option("--rotate-mb", flags->rotate_mb,
                   "Megabytes of tensors to go round; 0 measures one set")
      ->check(app::between(0.0, 4096.0))
      ->capture_default_str();
  command->callback([flags] { run_rows(*flags); });
}

}  // namespace
}  // namespace graft::bench

int main(int argc, char** argv) {
  CLI::App program("Measures how fast Graft is on this machine.", "graft-bench");
  graft::app::set_up_program(program);
  graft::bench::add_lora(program);
  graft::bench::add_plan(program);
  graft::bench::add_rows(program);
  return graft::app::run_program(program, argc, argv, "out of memory");
}
