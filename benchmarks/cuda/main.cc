#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "benchmarks/cuda/cases.h"
#include "benchmarks/cuda/cublas.h"
#include "benchmarks/cuda/device_memory.h"
#include "benchmarks/cuda/digest.h"
#include "benchmarks/cuda/run_case.h"
#include "graft/supports.h"
#include "graft/version.h"

namespace graft::bench {
namespace {

std::string now() {
  const std::time_t seconds = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", std::gmtime(&seconds));
  return text;
}

// What a file of results begins with.
std::vector<std::pair<std::string, std::string>> facts_of(const Cublas& cublas,
                                                          const std::string& command) {
  cudaDeviceProp device{};
  must(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime);
  const auto version = [](int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  return {{"device", std::string(device.name) + ", " + std::to_string(device.multiProcessorCount) +
                         " multiprocessors"},
          {"driver", "CUDA " + version(driver)},
          {"versions", "Graft " + std::string(kVersion) + ", CUDA runtime " + version(runtime) +
                           ", cuBLAS " + cublas.version()},
          {"kernels", kCudaDigest},
          {"date", now()},
          {"command", command}};
}

bool has_all(const std::string& label, const std::vector<std::string>& words) {
  const std::string spaced = " " + label + " ";
  for (const std::string& word : words) {
    if (spaced.find(" " + word + " ") == std::string::npos) return false;
  }
  return true;
}

void run(const std::vector<std::string>& filter, int rounds, const std::string& csv,
         const std::string& command) {
  if (const Support here = backend_available(DeviceType::kCuda); !here) {
    throw std::runtime_error(here.reason);
  }
  std::vector<CudaCase> cases = all_cuda_cases();
  std::erase_if(cases, [&](const CudaCase& item) { return !has_all(label_of(item), filter); });
  if (cases.empty()) throw std::runtime_error("--filter: no case has all of these words");
  Cublas cublas;
  const auto facts = facts_of(cublas, command);
  for (const auto& [name, value] : facts) std::printf("%s: %s\n", name.c_str(), value.c_str());
  std::ofstream file;
  if (!csv.empty()) {
    file.open(csv);
    for (const auto& [name, value] : facts) file << "# " << name << ": " << value << '\n';
    file << "case,column,value\n";
  }
  for (const CudaCase& item : cases) {
    const std::string label = label_of(item);
    std::printf("%-62s", label.c_str());
    const Line line = run_case(item, cublas, rounds);
    for (const auto& [name, value] : line) {
      if (name.find("_spread") == std::string::npos) {
        std::printf("  %s %s", name.c_str(), value.c_str());
      }
      if (file.is_open()) file << label << ',' << name << ',' << value << '\n';
    }
    std::printf("\n");
    std::fflush(stdout);
    file.flush();
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
