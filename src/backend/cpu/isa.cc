#include "backend/cpu/isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "backend/cpu/targets.h"
#include "graft/error.h"
#include "graft/supports.h"
#include "hwy/highway.h"

namespace graft {
namespace {

// A named level of the CPU: what Highway may dispatch to, and whether to use bf16 dot products.
struct Isa {
  const char* name;
  std::int64_t targets;
  bool bf16_dot;
};

bool cpu_has_bf16_dot() {
#if HWY_ARCH_X86 && (HWY_TARGETS & HWY_AVX3)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

std::vector<Isa> find_isas() {
  const std::int64_t here = hwy::SupportedTargets() & HWY_TARGETS;
  const std::int64_t fallback = HWY_SCALAR | HWY_EMU128;
  std::vector<Isa> found;
  if ((here & HWY_AVX3) && cpu_has_bf16_dot()) {
    found.push_back({"avx512_bf16", HWY_AVX3 | fallback, true});
  }
  if (here & HWY_AVX3) found.push_back({"avx512", HWY_AVX3 | fallback, false});
  if (here & HWY_AVX2) found.push_back({"avx2", HWY_AVX2 | fallback, false});
  if (here & HWY_NEON) found.push_back({"neon", HWY_NEON | fallback, false});
  found.push_back({"portable", fallback, false});
  return found;
}

const std::vector<Isa>& isas() {
  static const std::vector<Isa> found = find_isas();
  return found;
}

std::atomic<const Isa*> chosen{nullptr};

void choose(const Isa& isa) {
  hwy::GetChosenTarget().Update(isa.targets);
  chosen.store(&isa);
}

const Isa& current() {
  cpu::init_isa();
  return *chosen.load();
}

}  // namespace

namespace cpu {

void init_isa() {
  static std::once_flag once;
  std::call_once(once, [] {
    const char* wanted = std::getenv("GRAFT_CPU_ISA");
    for (const Isa& isa : isas()) {
      if (wanted != nullptr && std::string(wanted) == isa.name) return choose(isa);
    }
    choose(isas().front());
  });
}

Support available() { return {}; }

bool use_bf16_dot() { return current().bf16_dot; }

}  // namespace cpu

const char* cpu_isa() { return current().name; }

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) names.emplace_back(isa.name);
  return names;
}

void set_cpu_isa(const std::string& name) {
  cpu::init_isa();
  std::string known;
  for (const Isa& isa : isas()) {
    if (name == isa.name) return choose(isa);
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw Error(ErrorCode::kUnsupported,
              "[set_cpu_isa] name: expected one of " + known + ", got '" + name + "'");
}

}  // namespace graft
