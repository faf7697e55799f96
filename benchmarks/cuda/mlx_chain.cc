// graft-bench-mlx: the plan's table on MLX's CUDA device, through MLX's own eval.

#include <cuda_runtime_api.h>
#include <mlx/mlx.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/cuda/device_memory.h"
#include "benchmarks/cuda/facts.h"
#include "graft/lora.h"
#include "graft/mlx/fused_lora_op.h"
#include "graft/mlx/fusion.h"

namespace graft::bench {
namespace {

namespace mx = ::mlx::core;

constexpr int kFeatures = 512;
constexpr float kScaling = 2.0f;
constexpr int kPairs = 4;  // that a chain goes round

struct ChainCase {
  int batch, sequence, rank;
  mx::Dtype dtype;
};

std::string label_of(const ChainCase& item) {
  return "chain " + std::to_string(item.batch) + "x" + std::to_string(item.sequence) + " r" +
         std::to_string(item.rank) + (item.dtype == mx::float32 ? " float32" : " bfloat16");
}

std::vector<ChainCase> all_cases() {
  std::vector<ChainCase> cases;
  for (const mx::Dtype dtype : {mx::float32, mx::bfloat16}) {
    for (const int batch : {1, 4, 16}) {
      for (const int sequence : {32, 128, 512}) {
        for (const int rank : {4, 8, 16, 32}) cases.push_back({batch, sequence, rank, dtype});
      }
    }
  }
  return cases;
}

double now_us() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::micro>(now).count();
}

// A way to run a chain of calls once, each on what the one before it made; returns microseconds.
struct Way {
  std::string name;
  std::function<double()> run;
  std::vector<double> us;  // a call
};

using Step = std::function<mx::array(const mx::array&, std::size_t pair)>;

// Built, evaluated and waited for.
double run_chain(const mx::array& x, int calls, const Step& step) {
  mx::synchronize();
  const double begin = now_us();
  mx::array y = x;
  for (int i = 0; i < calls; ++i) y = step(y, static_cast<std::size_t>(i % kPairs));
  mx::eval(y);
  mx::synchronize();
  return now_us() - begin;
}

// The same calls of the core, captured once: what the device alone takes.
class BareGraph {
 public:
  BareGraph(const ChainCase& item, int calls) {
    const std::int64_t rows = std::int64_t{item.batch} * item.sequence;
    const DType dtype = item.dtype == mx::float32 ? DType::kFloat32 : DType::kBFloat16;
    TensorView x = memory_.random(dtype, {rows, kFeatures}, 1);
    TensorView y = memory_.zeros(dtype, {rows, kFeatures});
    const TensorView h = memory_.zeros(DType::kFloat32, {rows, item.rank});
    std::vector<Adapter> pairs;
    for (std::uint32_t i = 0; i < kPairs; ++i) {
      const float in = std::sqrt(3.0f / kFeatures);
      const float out = std::sqrt(3.0f / static_cast<float>(item.rank)) / kScaling;
      pairs.push_back({memory_.random(dtype, {kFeatures, item.rank}, 2 + i, in),
                       memory_.random(dtype, {item.rank, kFeatures}, 20 + i, out), kScaling});
    }
    must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    must(cudaDeviceSynchronize(), "tensors");
    Context context = pool_context(stream_);
    const auto call = [&](int i) {
      LoraDeltaForward params;
      params.x = x, params.y = y, params.h = h;
      params.adapter = pairs[static_cast<std::size_t>(i % kPairs)];
      lora_delta_forward(context, params);
      std::swap(x, y);
    };
    call(0);  // what is made once must not be made while capturing
    cudaGraph_t graph = nullptr;
    must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < calls; ++i) call(i);
    must(cudaStreamEndCapture(stream_, &graph), "capture");
    must(cudaGraphInstantiate(&ready_, graph, 0), "instantiate");
    cudaGraphDestroy(graph);
  }
  ~BareGraph() {
    cudaGraphExecDestroy(ready_);
    cudaStreamDestroy(stream_);
  }
  BareGraph(const BareGraph&) = delete;
  BareGraph& operator=(const BareGraph&) = delete;

  double run() {
    must(cudaStreamSynchronize(stream_), "graph");
    const double begin = now_us();
    must(cudaGraphLaunch(ready_, stream_), "graph");
    must(cudaStreamSynchronize(stream_), "graph");
    return now_us() - begin;
  }

 private:
  DeviceMemory memory_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t ready_ = nullptr;
};

mx::array uniform(const mx::Shape& shape, double scale, mx::Dtype dtype) {
  const auto limit = static_cast<float>(scale);
  return mx::astype(mx::random::uniform(mx::array(-limit), mx::array(limit), shape, mx::float32),
                    dtype);
}

// MLX's two products and the factor, put where it is multiplied into least.
mx::array composed(const mx::array& x, const mx::array& a, const mx::array& b,
                   const mx::array& scaling) {
  return mx::matmul(mx::multiply(mx::matmul(x, a), scaling), b);
}

Line run_case(const ChainCase& item, int calls, int rounds) {
  const mx::array x = uniform({item.batch, item.sequence, kFeatures}, 1.0, item.dtype);
  const mx::array scaling(kScaling, item.dtype);
  std::vector<mx::array> as, bs;
  std::vector<mlx::FusedLoRAOp> ops;
  for (int i = 0; i < kPairs; ++i) {
    as.push_back(uniform({kFeatures, item.rank}, std::sqrt(3.0 / kFeatures), item.dtype));
    bs.push_back(
        uniform({item.rank, kFeatures}, std::sqrt(3.0 / item.rank) / kScaling, item.dtype));
    ops.emplace_back(as.back(), bs.back(), kScaling);
  }
  mx::eval(x, scaling);
  mx::eval(as), mx::eval(bs);

  const Step fused = [&](const mx::array& y, std::size_t i) { return ops[i](y); };
  const Step unfused = [&](const mx::array& y, std::size_t i) {
    return composed(y, as[i], bs[i], scaling);
  };
  BareGraph graph(item, calls);
  std::vector<Way> ways;
  ways.push_back({"graft", [&] { return run_chain(x, calls, fused); }, {}});
  ways.push_back({"composed", [&] { return run_chain(x, calls, unfused); }, {}});
  ways.push_back({"graph", [&] { return graph.run(); }, {}});

  mlx::reset_fusion_report();
  for (int round = -3; round < rounds; ++round) {
    for (std::size_t turn = 0; turn < ways.size(); ++turn) {
      Way& way = ways[round % 2 == 0 ? turn : ways.size() - 1 - turn];
      const double us = way.run() / calls;
      if (round >= 0) way.us.push_back(us);  // those before it warm up
    }
  }
  for (const auto& record : mlx::fusion_report()) {
    if (!record.fused) throw std::runtime_error("composed: " + record.reason);
  }
  Line line;
  for (const Way& way : ways) {
    line.emplace_back(way.name + "_us", digits(quantile(way.us, 0.5), 2));
    line.emplace_back(way.name + "_spread",
                      digits(quantile(way.us, 0.1), 2) + ".." + digits(quantile(way.us, 0.9), 2));
  }
  std::vector<double> ratios;
  for (std::size_t i = 0; i < ways[0].us.size(); ++i) {
    ratios.push_back(ways[1].us[i] / ways[0].us[i]);
  }
  line.emplace_back("composed/graft", digits(quantile(ratios, 0.5), 2));
  const mx::array error = mx::max(mx::abs(
      mx::subtract(mx::astype(fused(x, 0), mx::float32), mx::astype(unfused(x, 0), mx::float32))));
  char text[32];
  std::snprintf(text, sizeof text, "%.1e", static_cast<double>(mx::array(error).item<float>()));
  line.emplace_back("difference", text);
  return line;
}

void run(const std::vector<std::string>& filter, int calls, int rounds, const std::string& csv,
         const std::string& command) {
  if (!mx::is_available(mx::Device::gpu)) throw std::runtime_error("MLX has no GPU here");
  mx::set_default_device(mx::Device::gpu);
  // With it MLX's float32 products are true float32 ones, as Graft's are.
  const char* const tf32 = std::getenv("MLX_ENABLE_TF32");
  if (tf32 == nullptr || std::string(tf32) != "0") {
    throw std::runtime_error("set MLX_ENABLE_TF32=0: float32 is to mean the same for both");
  }
  std::vector<ChainCase> cases = all_cases();
  std::erase_if(cases, [&](const ChainCase& item) { return !has_all(label_of(item), filter); });
  if (cases.empty()) throw std::runtime_error("--filter: no case has all of these words");
  const Facts facts = facts_of_device("MLX " + std::string(mx::version()), command);
  std::ofstream file = begin_csv(csv, facts);
  for (const ChainCase& item : cases) {
    write_line(file, label_of(item), run_case(item, calls, rounds));
  }
  if (file.is_open() && !file) throw std::runtime_error("cannot write " + csv);
}

}  // namespace
}  // namespace graft::bench

int main(int argc, char** argv) {
  CLI::App program(
      "Measures chains of LoRA deltas on MLX's CUDA device, fused and composed, and the same "
      "kernels in a bare CUDA graph.",
      "graft-bench-mlx");
  std::vector<std::string> filter;
  int calls = 100, rounds = 9;
  std::string csv;
  program.add_option("--filter", filter, "Only cases with all of these words: r16, float32, ...");
  program.add_option("--calls", calls, "Calls in a chain")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  program.add_option("--rounds", rounds, "Times that each way of computing takes its turn")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  program.add_option("--csv", csv, "Write the results to this file")->type_name("FILE");
  CLI11_PARSE(program, argc, argv);
  std::string command = "MLX_ENABLE_TF32=0 graft-bench-mlx";
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  try {
    graft::bench::run(filter, calls, rounds, csv, command);
  } catch (const std::exception& error) {
    std::cerr << "graft-bench-mlx: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
