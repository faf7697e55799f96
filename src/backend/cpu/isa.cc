#include "backend/cpu/isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "backend/cpu/targets.h"
#include "graft/error.h"
#include "graft/supports.h"
#include "hwy/highway.h"

namespace graft {
namespace {

// A named level of the CPU: what Highway is to dispatch to, and whether to use bf16 dot products.
struct Isa {
  const char* name;
  std::int64_t target;
  bool bf16_dot;
};

bool cpu_has_bf16_dot() {
#if HWY_ARCH_X86 && (HWY_TARGETS & HWY_AVX3)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

constexpr std::int64_t kFallback = HWY_SCALAR | HWY_EMU128;
constexpr Isa kIsas[] = {
    // best first
    {"avx512_bf16", HWY_AVX3, true}, {"avx512", HWY_AVX3, false},    {"avx2", HWY_AVX2, false},
    {"neon", HWY_NEON, false},       {"portable", kFallback, false},
};

bool is_here(const Isa& isa) {
  if (isa.target == kFallback) return true;
  return (hwy::SupportedTargets() & HWY_TARGETS & isa.target) != 0 &&
         (!isa.bf16_dot || cpu_has_bf16_dot());
}

const Isa& dispatch_to(const Isa& isa) {
  hwy::GetChosenTarget().Update(isa.target | kFallback);
  return isa;
}

// GRAFT_CPU_ISA, or else the best.
const Isa& first_choice() {
  const char* const wanted = std::getenv("GRAFT_CPU_ISA");
  const Isa* best = nullptr;
  for (const Isa& isa : kIsas) {
    if (!is_here(isa)) continue;
    if (wanted != nullptr && std::string(wanted) == isa.name) return isa;
    if (best == nullptr) best = &isa;
  }
  return *best;
}

// Of the process, because Highway's own choice is.
std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa = &dispatch_to(first_choice());
  return isa;
}

}  // namespace

namespace cpu {

void init_isa() { chosen(); }

Support available() { return {}; }

bool use_bf16_dot() { return chosen().load()->bf16_dot; }

}  // namespace cpu

const char* cpu_isa() { return chosen().load()->name; }

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (is_here(isa)) names.emplace_back(isa.name);
  }
  return names;
}

void set_cpu_isa(const std::string& name) {
  std::string known;
  for (const Isa& isa : kIsas) {
    if (!is_here(isa)) continue;
    if (name == isa.name) return chosen().store(&dispatch_to(isa));
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw Error(ErrorCode::kUnsupported,
              "[set_cpu_isa] name: expected one of " + known + ", got '" + name + "'");
}

}  // namespace graft
