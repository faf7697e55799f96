#include "benchmarks/graft_bench/facts.h"

#include <fmt/format.h>
#include <mlx/version.h>
#include <sys/utsname.h>
#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

#include <chrono>
#include <ctime>
#include <fstream>

#include "graft/version.h"

namespace graft::bench {
namespace {

#ifdef __APPLE__
// Empty if the system has no such name.
std::string system_value(const char* name) {
  std::size_t size = 0;
  if (::sysctlbyname(name, nullptr, &size, nullptr, 0) != 0) return "";
  std::string value(size, '\0');
  if (::sysctlbyname(name, value.data(), &size, nullptr, 0) != 0) return "";
  return value.c_str();  // without the terminating zero, which counts in `size`
}
#endif

}  // namespace

std::string processor() {
#ifdef __APPLE__
  if (std::string name = system_value("machdep.cpu.brand_string"); !name.empty()) return name;
#endif
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
}

std::string operating_system() {
#ifdef __APPLE__
  // Metal's compiler comes with the system, so its version is macOS's and not the kernel's.
  return "macOS " + system_value("kern.osproductversion");
#else
  ::utsname name{};
  if (::uname(&name) != 0) return "unknown";
  return fmt::format("{} {}", name.sysname, name.release);
#endif
}

std::string versions(const Blas& blas) {
  return fmt::format("graft {}, MLX {}, BLAS {}", kVersion, ::mlx::core::version(), blas.version());
}

std::string date() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  return text;
}

void print_facts(const Facts& facts) {
  for (const auto& [name, value] : facts) fmt::print("{:<9} {}\n", name, value);
}

}  // namespace graft::bench
