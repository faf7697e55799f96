#include "benchmarks/cuda/facts.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "benchmarks/cuda/device_memory.h"
#include "benchmarks/cuda/digest.h"
#include "graft/version.h"

namespace graft::bench {
namespace {

std::string now() {
  const std::time_t seconds = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", std::gmtime(&seconds));
  return text;
}

std::string version_of(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

Facts facts_of_device(const std::string& peers, const std::string& command) {
  cudaDeviceProp device{};
  must(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime);
  return {{"device", std::string(device.name) + ", " + std::to_string(device.multiProcessorCount) +
                         " multiprocessors"},
          {"driver", "CUDA " + version_of(driver)},
          {"versions", "Graft " + std::string(kVersion) + ", CUDA runtime " + version_of(runtime) +
                           ", " + peers},
          {"kernels", kCudaDigest},
          {"date", now()},
          {"command", command}};
}

std::string digits(double value, int decimals) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

bool has_all(const std::string& label, const std::vector<std::string>& words) {
  const std::string spaced = " " + label + " ";
  for (const std::string& word : words) {
    if (spaced.find(" " + word + " ") == std::string::npos) return false;
  }
  return true;
}

std::ofstream begin_csv(const std::string& path, const Facts& facts) {
  for (const auto& [name, value] : facts) std::printf("%s: %s\n", name.c_str(), value.c_str());
  std::ofstream file;
  if (path.empty()) return file;
  file.open(path);
  for (const auto& [name, value] : facts) file << "# " << name << ": " << value << '\n';
  file << "case,column,value\n";
  return file;
}

void write_line(std::ofstream& file, const std::string& label, const Line& line) {
  std::printf("%-62s", label.c_str());
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

}  // namespace graft::bench
