#pragma once

// The instruction sets that Highway sources are compiled for: AVX-512, AVX2 and the portable
// fallback on x86 (older x86 sets would only add compile time), NEON on Arm. Include this before
// any Highway header. Include guards are right even in sources compiled once a target: the macro
// stays defined.

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2)
