// The stand-in for Metal, on kernels that are right and on the same kernels with one fault each.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "metal/layouts.h"
#include "metal/shader.h"

namespace graft::standin {
namespace {

struct Result {
  std::string fault;
  std::vector<float> y;
};

// Runs a kernel with the parameters that MLX would give it: x and y of `count` floats.
Result run(const std::string& body, const Extent& grid, const Extent& group, std::uint32_t seed = 0,
           std::size_t count = 256) {
  const std::string text =
      "[[kernel]] void test_kernel(\n"
      "  const device float* x [[buffer(0)]],\n"
      "  device float* y [[buffer(1)]],\n"
      "  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],\n"
      "  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],\n"
      "  uint3 thread_position_in_grid [[thread_position_in_grid]]) {\n"
      "  const uint i = thread_position_in_grid.x, t = thread_position_in_threadgroup.x;\n" +
      body + "}\n";
  std::vector<float> x(count);
  for (std::size_t i = 0; i < count; ++i) x[i] = static_cast<float>(i);
  Result result{"", std::vector<float>(count, -1.0f)};
  Machine machine(seed);
  const Shader shader(text, GRAFT_SHADER_CACHE);
  result.fault = shader.launch(
      machine,
      {{x.data(), count * sizeof(float), true}, {result.y.data(), count * sizeof(float), false}},
      grid, group);
  return result;
}

constexpr Extent kGrid{{256, 1, 1}}, kGroup{{128, 1, 1}};

void expect_right(const std::string& body) {
  for (std::uint32_t seed = 0; seed < 3; ++seed) {
    EXPECT_EQ(run(body, kGrid, kGroup, seed).fault, "") << body;
  }
}

// The fault is found whatever order threads run in. Of two, the order may decide which comes first.
void expect_fault(const std::string& body, const std::string& what) {
  for (std::uint32_t seed = 0; seed < 3; ++seed) {
    const std::string fault = run(body, kGrid, kGroup, seed).fault;
    EXPECT_NE(fault.find(what), std::string::npos) << "found: " << fault << "\n" << body;
  }
}

TEST(MetalStandin, RunsEveryThreadOnce) {
  const Result result = run("y[i] = 2.0f * x[i];\n", kGrid, kGroup);
  EXPECT_EQ(result.fault, "");
  for (std::size_t i = 0; i < 256; ++i) EXPECT_EQ(result.y[i], 2.0f * static_cast<float>(i));
}

TEST(MetalStandin, LastThreadgroupsAreSmaller) {
  const Result result = run("y[i] = float(t);\n", {{200, 1, 1}}, kGroup);
  EXPECT_EQ(result.fault, "");
  EXPECT_EQ(result.y[199], 71.0f);
  EXPECT_EQ(result.y[200], -1.0f);
}

constexpr const char* kReverse = R"(
  threadgroup float tile[128];
  tile[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[127 - t];
)";

TEST(MetalStandin, ThreadsShareThreadgroupMemory) {
  expect_right(kReverse);
  const Result result = run(kReverse, kGrid, kGroup);
  EXPECT_EQ(result.y[0], 127.0f);
  EXPECT_EQ(result.y[255], 128.0f);
}

TEST(MetalStandin, FindsAMissingBarrier) {
  expect_fault("threadgroup float tile[128];\n tile[t] = x[i];\n y[i] = tile[127 - t];\n",
               "threadgroup array 0");
  const std::string two_rounds = R"(
    threadgroup float tile[128];
    for (int k = 0; k < 2; ++k) {
      tile[t] = x[i];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = tile[127 - t];
)";
  expect_fault(two_rounds + "}\n", "race");
  expect_right(two_rounds + "threadgroup_barrier(mem_flags::mem_threadgroup); }\n");
}

TEST(MetalStandin, FindsABarrierOnOtherMemory) {
  expect_fault(
      "threadgroup float tile[128];\n tile[t] = 0; threadgroup_barrier(mem_flags::mem_threadgroup);"
      "tile[t] = x[i];\n threadgroup_barrier(mem_flags::mem_device);\n y[i] = tile[127 - t];\n",
      "race");
}

TEST(MetalStandin, ASimdgroupBarrierOrdersItsLanesOnly) {
  const auto body = [](const std::string& from) {
    return "threadgroup float tile[128];\n tile[t] = x[i];\n"
           "simdgroup_barrier(mem_flags::mem_threadgroup);\n y[i] = tile[" +
           from + "];\n";
  };
  expect_right(body("t ^ 31"));
  expect_fault(body("t ^ 32"), "threadgroup array 0");
}

TEST(MetalStandin, FindsIndicesOutOfBounds) {
  expect_fault("y[i] = x[i + 1];\n",
               "out of bounds: thread 127 of threadgroup 1 reads byte 1024 of x");
  expect_fault("if (i == 3) y[-1] = 0;\n", "out of bounds");
  expect_fault("threadgroup float tile[64];\n tile[t] = 0; y[i] = 0;\n", "threadgroup array 0");
  expect_fault("y[i] = *(const device float*)(8);\n", "no buffer");
}

TEST(MetalStandin, NamesTheLineOfAFault) {
  expect_fault("const float a = 1;\nconst float b = a;\ny[i] = x[i + 1] * b;\n", "line 10");
}

TEST(MetalStandin, FindsReadsOfWhatNobodyWrote) {
  expect_fault("threadgroup float tile[128];\n y[i] = tile[t];\n", "uninitialised");
  expect_fault("y[i] += x[i];\n", "uninitialised");
  expect_right("threadgroup float tile[128];\n tile[t] = 1; y[i] = tile[t];\n");
}

// Memory of one threadgroup is not another's, even where both say the same.
TEST(MetalStandin, ThreadgroupMemoryStartsAnew) {
  expect_fault(
      "threadgroup float tile[128];\n if (i < 128) tile[t] = 1;\n"
      "threadgroup_barrier(mem_flags::mem_threadgroup);\n y[i] = tile[t];\n",
      "uninitialised");
}

TEST(MetalStandin, FindsRacesAcrossThreadgroups) {
  expect_fault("y[t] = x[i];\n", "race: thread");
  expect_fault("y[i] = 1;\n threadgroup_barrier(mem_flags::mem_device);\n y[i ^ 128] += 1;\n",
               " of y");
}

TEST(MetalStandin, FindsDivergentBarriers) {
  expect_fault("y[i] = 0;\n if (t < 64) threadgroup_barrier(mem_flags::mem_none);\n",
               "divergent: nobody can go on; 64 returned, 64 wait at the barrier of line 9");
  expect_fault(
      "y[i] = 0;\n if (t < 64) { threadgroup_barrier(mem_flags::mem_none); }\n"
      "else { threadgroup_barrier(mem_flags::mem_none); }\n",
      "divergent");
  expect_fault("if (t % 32 < 5) y[i] = simd_sum(1.0f);\n", "divergent");
}

TEST(MetalStandin, FindsTooMuchThreadgroupMemory) {
  expect_right("threadgroup float tile[8192];\n tile[t] = 0; y[i] = 0;\n");
  expect_fault("threadgroup float tile[8193];\n tile[t] = 0; y[i] = 0;\n", "threadgroup memory");
}

TEST(MetalStandin, FindsTooManyThreads) {
  EXPECT_EQ(run("y[i] = 0;\n", {{1024, 1, 1}}, {{1024, 1, 1}}, 0, 1024).fault, "");
  EXPECT_NE(run("y[i] = 0;\n", {{1025, 1, 1}}, {{1025, 1, 1}}, 0, 1025).fault, "");
}

TEST(MetalStandin, FindsWritesToAnInput) {
  expect_fault("((device float*)x)[i] = 0; y[i] = 0;\n", "constant buffer: x");
}

TEST(MetalStandin, LanesShowEachOtherTheirValues) {
  const Result sum =
      run("y[i] = simd_sum(x[i]) + simd_max(float(t)) + simd_shuffle(x[i], 3);\n", kGrid, kGroup);
  EXPECT_EQ(sum.fault, "");
  for (int i = 0; i < 256; ++i) {
    const int first = i / 32 * 32;
    const float expected = static_cast<float>(32 * first + 496 + (first % 128 + 31) + first + 3);
    EXPECT_EQ(sum.y[static_cast<std::size_t>(i)], expected) << i;
  }
  // A simdgroup that is not full has the lanes it has.
  EXPECT_EQ(run("y[i] = simd_sum(1.0f);\n", {{40, 1, 1}}, {{40, 1, 1}}).y[39], 8.0f);
}

TEST(MetalStandin, SimdgroupMatricesMultiply) {
  const std::string text = R"(
  #include <metal_simdgroup_matrix>
  [[kernel]] void multiply(const device float* a [[buffer(0)]], const device float* b [[buffer(1)]],
                           device float* c [[buffer(2)]]) {
    simdgroup_float8x8 left, right, sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    simdgroup_load(left, a, 9, ulong2(1, 0));
    simdgroup_load(right, b, 8, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(sum, left, right, sum);
    simdgroup_store(sum, c);
  })";
  std::vector<float> a(72), b(64), c(64);
  for (std::size_t i = 0; i < 72; ++i) a[i] = static_cast<float>(i % 7) - 3;
  for (std::size_t i = 0; i < 64; ++i) b[i] = static_cast<float>(i % 5) - 1;
  // Whichever lane holds what; that it is the right one is shown by MLX's kernels (steel_test.cc).
  for (const std::string layout : {"", kTransposed, kRowsSwapped, kRenumbered}) {
    SCOPED_TRACE(layout);
    Machine machine;
    EXPECT_EQ(
        Shader(layout + text, GRAFT_SHADER_CACHE)
            .launch(machine, {{a.data(), 288, true}, {b.data(), 256, true}, {c.data(), 256, false}},
                    {{32, 1, 1}}, {{32, 1, 1}}),
        "");
    for (std::size_t row = 0; row < 8; ++row) {
      for (std::size_t col = 0; col < 8; ++col) {
        float sum = 0;
        for (std::size_t k = 0; k < 8; ++k) sum += a[row * 9 + 1 + k] * b[col * 8 + k];
        EXPECT_EQ(c[row * 8 + col], sum) << row << ", " << col;
      }
    }
    EXPECT_EQ(machine.traffic().flops, 2u * 8 * 8 * 8);
    EXPECT_EQ(machine.traffic().device_writes, 256u);
  }
}

// As MLX's own kernels are written: buffers of a type that the instantiation says.
TEST(MetalStandin, KernelsMayBeTemplates) {
  const std::string text = R"(
  template <typename T, int Step>
  [[kernel, max_total_threads_per_threadgroup(32)]] void sums(
      const device T* x [[buffer(0)]], device T* y [[buffer(1)]],
      const constant T& first [[buffer(2)]], uint lane [[thread_index_in_simdgroup]]) {
    const vec<T, 2> pair = vec<T, 2>(x[lane], first) - vec<T, 2>(first, T(Step));
    y[lane] = simd_prefix_inclusive_sum(pair.x) + pair.y;
  }
  template [[host_name("sums_4")]] [[kernel]] decltype(sums<float, 4>) sums<float, 4>;
  )";
  std::vector<float> x(32, 5.0f), y(32);
  float first = 3;
  Machine machine;
  EXPECT_EQ(Shader(text, GRAFT_SHADER_CACHE)
                .launch(machine, {{x.data(), 128, true}, {y.data(), 128, false}, {&first, 4, true}},
                        {{32, 1, 1}}, {{32, 1, 1}}),
            "");
  for (std::size_t i = 0; i < 32; ++i) EXPECT_EQ(y[i], 2.0f * static_cast<float>(i + 1) - 1.0f);
}

TEST(MetalStandin, SmallFloatsRoundEveryOperation) {
  const Result result =
      run("const bfloat a = bfloat(256.0f), b = bfloat(1.0f); const half c = half(2048.0f), d = "
          "half(1.0f);"
          "y[i] = i == 0 ? float(a + b) : i == 1 ? float(c + d) : a + 1.0f;\n",
          {{3, 1, 1}}, {{3, 1, 1}});
  EXPECT_EQ(result.fault, "");
  EXPECT_EQ(result.y[0], 256.0f);
  EXPECT_EQ(result.y[1], 2048.0f);
  EXPECT_EQ(result.y[2], 257.0f);  // bfloat and float make float
}

TEST(MetalStandin, CompilerErrorsHaveTheTextsLines) {
  try {
    run("y[i] = 0;\n nonsense;\n", kGrid, kGroup);
    FAIL() << "it compiled";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("shader.metal:9"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace graft::standin
