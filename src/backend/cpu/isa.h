#pragma once

namespace graft::cpu {

/// Whether bf16 products may use the AVX-512 BF16 dot instructions: the build has them, the CPU has
/// them, and set_cpu_isa() or GRAFT_CPU_ISA does not ask for less.
bool use_bf16_dot();

/// Applies GRAFT_CPU_ISA once. Call it before the first Highway dispatch.
void init_isa();

}  // namespace graft::cpu
