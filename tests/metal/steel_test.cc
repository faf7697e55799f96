// MLX's own matrix product on the stand-in. It asks a simdgroup matrix for thread_elements(), and
// so depends on which lane holds what, which Graft's kernels do not: it is a check of the stand-in.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <array>
#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "hosts/mlx/truth.h"
#include "metal/layouts.h"
#include "metal/mlx_text.h"
#include "metal/shader.h"

namespace graft::standin {
namespace {

namespace mx = ::mlx::core;
using mlx::testing::Matrix;
using mlx::testing::matrix;
using mlx::testing::normal;

// d = a · b, or 2 a · b − c / 2, where a is m × k, and b is k × n or, transposed, n × k.
struct Product {
  int m, n, k;
  bool transpose_b = false;
  mx::Dtype dtype = mx::float32;
  bool add_c = false;
};
constexpr float kAlpha = 2.0f, kBeta = -0.5f;

// How MLX splits it: into tiles for a threadgroup, steps along k, and simdgroups along both sides.
struct Tiles {
  int rows = 32, cols = 32, depth = 16;
  static constexpr int kSimdgroups = 2;
};

std::string name_of(mx::Dtype dtype) {
  return dtype == mx::float32 ? "float" : dtype == mx::float16 ? "half" : "bfloat16_t";
}

std::string steel_text(const Product& p, const Tiles& tiles) {
  // What it uses of MLX's kernels/utils.h, for complex numbers and for batches with strides:
  // nothing of either is run here.
  const std::string others = R"(
    struct complex64_t {
      complex64_t() = default;
      complex64_t(float real_, float imag_) : real(real_), imag(imag_) {}
      float real, imag;
    };
    template <class Strides>
    long elem_to_loc(uint, const constant int*, Strides, int) { return 0; }
  )";
  const auto text = [&](const std::string& file) {
    return mlx_kernel_text("steel/gemm/" + file, {{"has_batch", false},
                                                  {"use_out_source", p.add_c},
                                                  {"do_axpby", true},
                                                  {"align_M", p.m % tiles.rows == 0},
                                                  {"align_N", p.n % tiles.cols == 0},
                                                  {"align_K", p.k % tiles.depth == 0}});
  };
  std::string kernel = "gemm<" + name_of(p.dtype);
  for (const int size : {tiles.rows, tiles.cols, tiles.depth, Tiles::kSimdgroups,
                         Tiles::kSimdgroups, 0, int{p.transpose_b}}) {
    kernel += ", " + std::to_string(size);
  }
  return others + text("gemm.h") + text("kernels/steel_gemm_fused.h") + instantiate(kernel + ">");
}

struct Result {
  mx::array d;
  std::string fault;
};

Result run_steel(const Product& p, const Tiles& tiles, const std::array<mx::array, 3>& operands,
                 const std::string& before = "") {
  const int tiles_n = (p.n + tiles.cols - 1) / tiles.cols;
  const int tiles_m = (p.m + tiles.rows - 1) / tiles.rows;
  // As MLX's GEMMParams and GEMMAddMMParams lie in memory; the strides of batches are long zeros.
  std::array<int, 18> params = {p.m, p.n, p.k, p.k, p.transpose_b ? p.k : p.n, p.n};
  params[6] = tiles_n;
  params[7] = tiles_m;
  params[15] = p.k / tiles.depth;
  std::array<int, 6> add_params = {
      p.n, 1, 0, 0, std::bit_cast<int>(kAlpha), std::bit_cast<int>(kBeta)};

  Result result{mx::zeros({p.m, p.n}, p.dtype), ""};
  std::vector<Buffer> buffers;
  for (mx::array array : {operands[0], operands[1], operands[2], result.d}) {
    array.eval();
    buffers.push_back({array.data<char>(), array.nbytes(), buffers.size() < 3});
  }
  if (!p.add_c) buffers[2] = {};
  buffers.push_back({params.data(), sizeof(params)});
  buffers.push_back(p.add_c ? Buffer{add_params.data(), sizeof(add_params)} : Buffer{});
  buffers.resize(8);  // no batch: no shape, no strides
  Extent group{{32, Tiles::kSimdgroups, Tiles::kSimdgroups}}, grid = group;
  grid[0] *= static_cast<std::uint32_t>(tiles_n);
  grid[1] *= static_cast<std::uint32_t>(tiles_m);
  Machine machine;
  result.fault = Shader(before + steel_text(p, tiles), GRAFT_SHADER_CACHE)
                     .launch(machine, buffers, grid, group);
  return result;
}

// MLX 0.32.4 reads rows of c, though it does not use them, to the end of a tile
// (apply_epilogue_safe in steel/gemm/mma.h looks at columns only), which the stand-in reports: here
// c has such rows.
std::array<mx::array, 3> operands_of(const Product& p) {
  return {normal({p.m, p.k}, 1, 1.0f, p.dtype),
          normal(p.transpose_b ? mx::Shape{p.n, p.k} : mx::Shape{p.k, p.n}, 2, 1.0f, p.dtype),
          normal({p.m + 32, p.n}, 3, 1.0f, p.dtype)};
}

Matrix truth_of(const Product& p, const std::array<mx::array, 3>& operands) {
  const Matrix b = matrix(operands[1]);
  const Matrix ab = matrix(operands[0]) * (p.transpose_b ? transpose(b) : b);
  const Matrix c = matrix(mx::slice(operands[2], {0, 0}, {p.m, p.n}));
  return p.add_c ? double{kAlpha} * ab + double{kBeta} * c : ab;
}

class Steel : public testing::Test {
 protected:
  void SetUp() override {
    try {
      steel_text({8, 8, 8}, {});
    } catch (const MissingText& missing) {
      GTEST_SKIP() << missing.what();
    }
  }
};

void expect_right(const Product& p, const Tiles& tiles) {
  SCOPED_TRACE(testing::Message() << p.m << " x " << p.n << " x " << p.k << " " << p.dtype
                                  << (p.transpose_b ? " nt" : " nn"));
  const auto operands = operands_of(p);
  const Result result = run_steel(p, tiles, operands);
  EXPECT_EQ(result.fault, "");
  mlx::testing::expect_rounded(result.d, truth_of(p, operands).data, p.k);
}

TEST_F(Steel, WholeTilesAreRight) {
  for (const mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (const bool transpose_b : {false, true}) {
      expect_right({64, 64, 128, transpose_b, dtype}, {64, 64});
    }
  }
}

// Of four tiles, one is whole, one is short of rows, one of columns, and one of both.
TEST_F(Steel, RaggedTilesAreRight) {
  for (const mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (const bool transpose_b : {false, true}) {
      expect_right({45, 53, 37, transpose_b, dtype}, {});
    }
  }
}

TEST_F(Steel, AddsAMatrix) { expect_right({45, 53, 37, true, mx::float32, true}, {}); }

// The stand-in's checks see what MLX's kernel does: it copies structs of bytes.
TEST_F(Steel, IsSeenToReadBeyondAnOperand) {
  const Product p{64, 64, 128};
  auto operands = operands_of(p);
  operands[0] = mx::slice(operands[0], {0, 0}, {63, 128});
  const std::string fault = run_steel(p, {64, 64}, operands).fault;
  EXPECT_NE(fault.find("out of bounds"), std::string::npos) << fault;
  EXPECT_NE(fault.find(" of A, which has 32256"), std::string::npos) << fault;
}

// Were the stand-in's layout wrong, the product would be.
TEST_F(Steel, IsWrongWithAnotherLayout) {
  for (const bool transpose_b : {false, true}) {
    const Product p{64, 64, 128, transpose_b};
    const auto operands = operands_of(p);
    const std::vector<double> truth = truth_of(p, operands).data;
    for (const char* layout : {kTransposed, kRowsSwapped}) {
      const Result result = run_steel(p, {64, 64}, operands, layout);
      EXPECT_EQ(result.fault, "");
      EXPECT_GT(mlx::testing::rms_error(result.d, truth), mlx::testing::root_mean_square(truth))
          << layout;
    }
  }
}

// What a product cannot show: rows and columns renumbered alike. gated_delta_test.cc can.
TEST_F(Steel, IsRightWithRowsAndColumnsRenumbered) {
  const Product p{64, 64, 128};
  const auto operands = operands_of(p);
  const Result result = run_steel(p, {64, 64}, operands, kRenumbered);
  EXPECT_EQ(result.fault, "");
  mlx::testing::expect_rounded(result.d, truth_of(p, operands).data, p.k);
}

}  // namespace
}  // namespace graft::standin
