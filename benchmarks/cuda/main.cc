#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "benchmarks/cuda/cases.h"
#include "benchmarks/cuda/cublas.h"
#include "benchmarks/cuda/facts.h"
#include "benchmarks/cuda/run_case.h"
#include "graft/supports.h"

namespace graft::bench {
namespace {

void run(const std::vector<std::string>& filter, int rounds, const std::string& csv,
         const std::string& command) {
  if (const Support here = backend_available(DeviceType::kCuda); !here) {
    throw std::runtime_error(here.reason);
  }
  std::vector<CudaCase> cases = all_cuda_cases();
  std::erase_if(cases, [&](const CudaCase& item) { return !has_all(label_of(item), filter); });
  if (cases.empty()) throw std::runtime_error("--filter: no case has all of these words");
  Cublas cublas;
  const Facts facts = facts_of_device("cuBLAS " + cublas.version(), command);
  std::ofstream file = begin_csv(csv, facts);
  for (const CudaCase& item : cases) {
    write_line(file, label_of(item), run_case(item, cublas, rounds));
  }
  if (file.is_open() && !file) throw std::runtime_error("cannot write " + csv);
}

}  // namespace
}  // namespace graft::bench

int main(int argc, char** argv) {
  CLI::App program("Measures Graft's CUDA kernels beside cuBLAS and copies, on device 0.",
                   "graft-bench-cuda");
  std::vector<std::string> filter;
  int rounds = 15;
  std::string csv;
  program.add_option("--filter", filter, "Only cases with all of these words: forward, r16, ...");
  program.add_option("--rounds", rounds, "Times that each way of computing takes its turn")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  program.add_option("--csv", csv, "Write the results to this file")->type_name("FILE");
  CLI11_PARSE(program, argc, argv);
  std::string command = "graft-bench-cuda";
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  try {
    graft::bench::run(filter, rounds, csv, command);
  } catch (const std::exception& error) {
    std::cerr << "graft-bench-cuda: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
