#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// Hopper's matrix units. A warpgroup (four warps, 128 threads) multiplies tiles that lie in shared
// memory and adds to a sum in its registers:
//
//     d (64, N) += a (64, 16) * b (16, N)
//
// The units run on their own: wgmma_commit closes a group of products, wgmma_wait waits for all but
// the last few groups, and until then nobody may touch d.
//
// Thread t of warp w holds of d the rows 16w + t/4 and 16w + t/4 + 8 (t within the warp), and of
// every 8 columns the two from 2(t mod 4) on:
//
//     d[4j + 0, 4j + 1]   row 16w + t/4,     columns 8j + 2(t mod 4) + 0, 1
//     d[4j + 2, 4j + 3]   row 16w + t/4 + 8, the same columns

namespace graft::cuda {

/// How the matrix units find a tile in shared memory: it consists of boxes that TMA wrote, rows of
/// 128 bytes whose 16-byte pieces are swizzled (piece p of row i lies at p xor i mod 8), so that
/// eight rows of one column are in different banks. Row groups of eight, 1024 bytes, follow each
/// other. `next_box` is the way in bytes from a box to the one beside it; it matters only where the
/// tile is wider than a box in the direction of its rows (b as (K, N) with N > 64).
__device__ inline std::uint64_t tile_descriptor(std::uint32_t address, std::uint32_t next_box) {
  constexpr std::uint64_t kSwizzle128 = 1ull << 62;
  constexpr std::uint64_t kRowGroup = 1024;
  return (address & 0x3FFFF) >> 4 | static_cast<std::uint64_t>(next_box >> 4) << 16 |
         (kRowGroup >> 4) << 32 | kSwizzle128;
}

/// The same of b as (K, N), N = 16, in rows of 32 bytes: a row group is 256 bytes, in which the two
/// pieces of rows 4 to 7 have changed places.
__device__ inline std::uint64_t narrow_descriptor(std::uint32_t address) {
  constexpr std::uint64_t kSwizzle32 = 3ull << 62;
  constexpr std::uint64_t kRowGroup = 256;
  return (address & 0x3FFFF) >> 4 | 1ull << 16 | (kRowGroup >> 4) << 32 | kSwizzle32;
}

/// What d's registers hold is there before products start, or are read by them.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Until at most `Pending` of the groups are unfinished.
template <int Pending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// The operands of an instruction that holds N / 2 registers of d.
#define GRAFT_D8(i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define GRAFT_D16(i) GRAFT_D8(i), GRAFT_D8(i + 8)
#define GRAFT_D32(i) GRAFT_D8(i), GRAFT_D8(i + 8), GRAFT_D8(i + 16), GRAFT_D8(i + 24)
#define GRAFT_D64(i) GRAFT_D32(i), GRAFT_D32(i + 32)
#define GRAFT_NAMES8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define GRAFT_NAMES16 GRAFT_NAMES8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define GRAFT_NAMES32                        \
  GRAFT_NAMES8                               \
  ", %8, %9, %10, %11, %12, %13, %14, %15"   \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define GRAFT_NAMES64                        \
  GRAFT_NAMES32                              \
  ", %32, %33, %34, %35, %36, %37, %38, %39" \
  ", %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55" \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define GRAFT_NAMES128                               \
  GRAFT_NAMES64                                      \
  ", %64, %65, %66, %67, %68, %69, %70, %71"         \
  ", %72, %73, %74, %75, %76, %77, %78, %79"         \
  ", %80, %81, %82, %83, %84, %85, %86, %87"         \
  ", %88, %89, %90, %91, %92, %93, %94, %95"         \
  ", %96, %97, %98, %99, %100, %101, %102, %103"     \
  ", %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119" \
  ", %120, %121, %122, %123, %124, %125, %126, %127"

// NAMES of d's registers, then descriptors of a and b, whether to add to d or to overwrite it, and
// whether a lies as (K, rows) instead of (rows, K), b as (K, N) instead of (N, K).
#define GRAFT_WGMMA(N, TYPE, NAMES, A, B, ADD, A_TURNED, B_TURNED, ...)                          \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD                                       \
               ", 0;\n"                                                                          \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" NAMES "}, " A \
               ", " B ", add, 1, 1, " A_TURNED ", " B_TURNED ";\n}\n"                            \
               : __VA_ARGS__                                                                     \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(AIsKM ? 1 : 0),                 \
                 "n"(BIsKN ? 1 : 0))

/// d (64, N) = a (64, 16) * b (16, N), or d += with `add`; a lies as (rows, K) or, with AIsKM, as
/// (K, rows); b as (N, K) or, with BIsKN, as (K, N). Elements are T, sums float32.
template <int N, bool BIsKN, class T, bool AIsKM = false, int Registers>
__device__ inline void wgmma(float (&d)[Registers], std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(N / 2 <= Registers && (N == 16 || N == 32 || N == 64 || N == 128 || N == 256));
#define GRAFT_WGMMA_OF(TYPE)                                                                       \
  if constexpr (N == 16) {                                                                         \
    GRAFT_WGMMA("16", TYPE, GRAFT_NAMES8, "%8", "%9", "%10", "%11", "%12", GRAFT_D8(0));           \
  } else if constexpr (N == 32) {                                                                  \
    GRAFT_WGMMA("32", TYPE, GRAFT_NAMES16, "%16", "%17", "%18", "%19", "%20", GRAFT_D16(0));       \
  } else if constexpr (N == 64) {                                                                  \
    GRAFT_WGMMA("64", TYPE, GRAFT_NAMES32, "%32", "%33", "%34", "%35", "%36", GRAFT_D32(0));       \
  } else if constexpr (N == 128) {                                                                 \
    GRAFT_WGMMA("128", TYPE, GRAFT_NAMES64, "%64", "%65", "%66", "%67", "%68", GRAFT_D64(0));      \
  } else {                                                                                         \
    GRAFT_WGMMA("256", TYPE, GRAFT_NAMES128, "%128", "%129", "%130", "%131", "%132", GRAFT_D64(0), \
                GRAFT_D64(64));                                                                    \
  }
  if constexpr (std::is_same_v<T, __half>) {
    GRAFT_WGMMA_OF("f16")
  } else {
    GRAFT_WGMMA_OF("bf16")
  }
#undef GRAFT_WGMMA_OF
#undef GRAFT_WGMMA
}

/// The same with a in registers: thread t of warp w holds of a the elements that it holds of a
/// d (64, 16) in bfloat16 or float16, two a register: a[0] of d[0, 1], a[1] of d[2, 3], a[2] of
/// d[4, 5], a[3] of d[6, 7]. They stay untouched until the products are done.
template <int N, bool BIsKN, class T, int Registers>
__device__ inline void wgmma(float (&d)[Registers], const std::uint32_t (&a)[4], std::uint64_t b,
                             bool add) {
  static_assert(N / 2 <= Registers && (N == 16 || N == 32 || N == 64 || N == 128 || N == 256));
#define GRAFT_WGMMA(N, TYPE, NAMES, A, B, ADD, TURNED, ...)                                       \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD                                        \
               ", 0;\n"                                                                           \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" NAMES "}, {" A \
               "}, " B ", add, 1, 1, " TURNED ";\n}\n"                                            \
               : __VA_ARGS__                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),  \
                 "n"(BIsKN ? 1 : 0))
#define GRAFT_WGMMA_OF(TYPE)                                                                     \
  if constexpr (N == 16) {                                                                       \
    GRAFT_WGMMA("16", TYPE, GRAFT_NAMES8, "%8, %9, %10, %11", "%12", "%13", "%14", GRAFT_D8(0)); \
  } else if constexpr (N == 32) {                                                                \
    GRAFT_WGMMA("32", TYPE, GRAFT_NAMES16, "%16, %17, %18, %19", "%20", "%21", "%22",            \
                GRAFT_D16(0));                                                                   \
  } else if constexpr (N == 64) {                                                                \
    GRAFT_WGMMA("64", TYPE, GRAFT_NAMES32, "%32, %33, %34, %35", "%36", "%37", "%38",            \
                GRAFT_D32(0));                                                                   \
  } else if constexpr (N == 128) {                                                               \
    GRAFT_WGMMA("128", TYPE, GRAFT_NAMES64, "%64, %65, %66, %67", "%68", "%69", "%70",           \
                GRAFT_D64(0));                                                                   \
  } else {                                                                                       \
    GRAFT_WGMMA("256", TYPE, GRAFT_NAMES128, "%128, %129, %130, %131", "%132", "%133", "%134",   \
                GRAFT_D64(0), GRAFT_D64(64));                                                    \
  }
  if constexpr (std::is_same_v<T, __half>) {
    GRAFT_WGMMA_OF("f16")
  } else {
    GRAFT_WGMMA_OF("bf16")
  }
#undef GRAFT_WGMMA_OF
#undef GRAFT_WGMMA
}

template <bool BIsKN, class T>
__device__ inline void wgmma_16(float (&d)[8], const std::uint32_t (&a)[4], std::uint64_t b,
                                bool add) {
  wgmma<16, BIsKN, T>(d, a, b, add);
}

#undef GRAFT_NAMES128
#undef GRAFT_NAMES64
#undef GRAFT_NAMES32
#undef GRAFT_NAMES16
#undef GRAFT_NAMES8
#undef GRAFT_D64
#undef GRAFT_D32
#undef GRAFT_D16
#undef GRAFT_D8

}  // namespace graft::cuda
