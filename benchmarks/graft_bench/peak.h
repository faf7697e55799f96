#pragma once

namespace graft::bench {

/// @{
/// 10⁹ operations a second that `threads` threads reach together in fused multiply-adds that touch
/// nothing but registers; in the instruction set that the core's kernels use.
double peak_gflops_f32(int threads);
double peak_gflops_bf16(int threads);  ///< bfloat16 dot products; 0 where the core has none.
/// @}

/// 10⁹ bytes a second that `threads` threads read together, going round in `bytes` bytes.
double read_gbs(int threads, double bytes);

}  // namespace graft::bench
