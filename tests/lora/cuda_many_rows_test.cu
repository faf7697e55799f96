#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/philox.h"
#include "graft/linear.h"
#include "graft/lora.h"
#include "support/cuda_place.h"
#include "support/places.h"

// LoRA layers of many rows, whose work the blocks of a GPU share out in several ways: beside a
// reference in float64 on the same device, which a host would take minutes for. Of y, h and dx
// every 61st part of the rows is compared, of dA and dB everything.

namespace graft {
namespace {

using test::must;

constexpr DType kF32 = DType::kFloat32, kF16 = DType::kFloat16, kBF16 = DType::kBFloat16;

// A matrix as the reference reads it: of a tensor's elements, or of doubles; each with a factor of
// its own, where they have some.
struct Matrix {
  const void* data;
  DType dtype;
  bool doubles;
  std::int64_t row_stride, col_stride;
  const double* factors = nullptr;

  explicit Matrix(const ConstTensorView& t, const double* of_elements = nullptr)
      : data(t.data()),
        dtype(t.dtype()),
        doubles(false),
        row_stride(t.stride(0)),
        col_stride(t.stride(1)),
        factors(of_elements) {}
  Matrix(const double* values, std::int64_t cols)
      : data(values), dtype(kF32), doubles(true), row_stride(cols), col_stride(1) {}

  __device__ double at(std::int64_t i, std::int64_t j) const {
    const std::int64_t at = i * row_stride + j * col_stride;
    return factors != nullptr ? factors[at] * element(at) : element(at);
  }
  __device__ double element(std::int64_t at) const {
    if (doubles) return static_cast<const double*>(data)[at];
    if (dtype == kF32) return static_cast<double>(static_cast<const float*>(data)[at]);
    if (dtype == kF16)
      return static_cast<double>(__half2float(static_cast<const __half*>(data)[at]));
    return static_cast<double>(__bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]));
  }
};

// Uniform in [-scale, scale), from a multiplicative hash of the index; bfloat16's values in any
// type.
__global__ void fill(void* data, DType dtype, std::int64_t count, std::uint32_t seed, float scale) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    std::uint32_t bits = static_cast<std::uint32_t>(i) * 0x9E3779B1u ^ seed * 0x85EBCA77u;
    bits ^= bits >> 15, bits *= 0x2C1B3C6Du, bits ^= bits >> 12, bits *= 0x297A2D39u;
    bits ^= bits >> 15;
    const float unit = static_cast<float>(bits >> 8) * (1.0f / 8388608.0f) - 1.0f;
    const __nv_bfloat16 value = __float2bfloat16(unit * scale);
    if (dtype == kF32) static_cast<float*>(data)[i] = __bfloat162float(value);
    if (dtype == kF16) static_cast<__half*>(data)[i] = __float2half(__bfloat162float(value));
    if (dtype == kBF16) static_cast<__nv_bfloat16*>(data)[i] = value;
  }
}

// out (rows, cols) = factor · a (rows, depth) · b (depth, cols), or +=, of every `step`-th row of
// a; with a factor more for each element, where there are `factors` of all rows.
__global__ void multiply(Matrix a, Matrix b, std::int64_t rows, std::int64_t cols,
                         std::int64_t depth, std::int64_t step, double factor, bool add,
                         double* out, const double* factors = nullptr) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= rows * cols) return;
  const std::int64_t i = at / cols * step, j = at % cols;
  double sum = 0;
  for (std::int64_t k = 0; k < depth; ++k) sum += a.at(i, k) * b.at(k, j);
  if (factors != nullptr) sum *= factors[i * cols + j];
  out[at] = factor * sum + (add ? out[at] : 0.0);
}

__global__ void add_row(Matrix row, std::int64_t rows, std::int64_t cols, double* out) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < rows * cols) out[at] += row.at(0, at % cols);
}

// Of a thread's elements the largest |got - truth| beyond a rounding of got's type, and the sum of
// squares of truth.
__global__ void compare(Matrix got, Matrix truth, std::int64_t rows, std::int64_t cols,
                        std::int64_t step, double rounding, double2* of_threads) {
  double2 mine{0, 0};
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (std::int64_t at = first; at < rows * cols; at += std::int64_t{gridDim.x} * blockDim.x) {
    const double value = got.at(at / cols * step, at % cols),
                 expected = truth.at(at / cols, at % cols);
    const double error = fabs(value - expected) - rounding * fabs(expected);
    mine.x = isfinite(value) ? fmax(mine.x, error) : INFINITY;
    mine.y += expected * expected;
  }
  of_threads[first] = mine;
}

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    for (void* block : blocks_) cudaFree(block);
  }

  void* bytes(std::int64_t count) {
    void* block = nullptr;
    must(cudaMalloc(&block, static_cast<std::size_t>(count)));
    must(cudaMemset(block, 0xFF, static_cast<std::size_t>(count)));  // NaN, until it is written
    blocks_.push_back(block);
    return block;
  }
  double* doubles(std::int64_t count) { return static_cast<double*>(bytes(count * 8)); }
  TensorView empty(DType dtype, std::int64_t rows, std::int64_t cols) {
    void* const block = bytes(rows * cols * static_cast<std::int64_t>(size_of(dtype)));
    return {block, dtype, {rows, cols}, {DeviceType::kCuda, 0}};
  }
  TensorView random(DType dtype, std::int64_t rows, std::int64_t cols, std::uint32_t seed,
                    double scale = 1) {
    const TensorView t = empty(dtype, rows, cols);
    fill<<<256, 256>>>(t.mutable_data(), dtype, t.size(), seed, static_cast<float>(scale));
    return t;
  }

 private:
  std::vector<void*> blocks_;
};

struct Shape {
  std::int64_t m, k, n, rank;
};

// A layer, its results and what they should be.
class Layer {
 public:
  Layer(const Shape& shape, DType type, DType adapter, std::uint32_t seed = 0,
        const TensorView& shared_x = {})
      : s(shape), step_(std::max<std::int64_t>(1, shape.m / 61)) {
    const double by_k = 1 / std::sqrt(static_cast<double>(s.k));
    x = shared_x.present() ? shared_x : memory_.random(type, s.m, s.k, 1);
    w = memory_.random(type, s.n, s.k, seed + 2, by_k);
    bias = memory_.random(kF32, 1, s.n, seed + 3);
    // float32 as PEFT keeps it, (rank, k); the others as MLX does.
    a = adapter == kF32 ? memory_.random(adapter, s.rank, s.k, seed + 4, by_k).transposed()
                        : ConstTensorView(memory_.random(adapter, s.k, s.rank, seed + 4, by_k));
    b = memory_.random(adapter, s.rank, s.n, seed + 5);
    dy = memory_.random(type, s.m, s.n, seed + 6);
    y = memory_.empty(type, s.m, s.n), h = memory_.empty(kF32, s.m, s.rank);
    dx = memory_.empty(type, s.m, s.k);
    da = memory_.empty(kF32, s.k, s.rank), db = memory_.empty(kF32, s.rank, s.n);
  }

  LoraLinearForward forward() const {
    const ConstTensorView as_row(bias.data(), kF32, {s.n}, bias.device());
    return {x, Weight(w), as_row, {a, b, kScaling}, dropout_, y, h};
  }
  LoraLinearBackward backward() const {
    return {dy, x, h, Weight(w), {a, b, kScaling}, dropout_, dx, da, db};
  }

  void set(const Dropout& dropout) {
    dropout_ = dropout;
    std::vector<double> factors(static_cast<std::size_t>(s.m * s.k));
    for (std::size_t i = 0; i < factors.size(); ++i) {
      factors[i] = dropout_keeps(i, dropout) ? static_cast<double>(dropout.scale()) : 0.0;
    }
    factors_ = memory_.doubles(s.m * s.k);
    must(cudaMemcpy(factors_, factors.data(), factors.size() * 8, cudaMemcpyHostToDevice));
  }

  LinearForward linear_forward() const { return {x, Weight(w), forward().bias, y}; }
  LinearBackward linear_backward() const { return {dy, Weight(w), dx}; }

  void expect_linear() {
    const std::int64_t rows = (s.m + step_ - 1) / step_;
    double* const truth = product(Matrix(x), Matrix(w.transposed()), rows, s.n, s.k, step_);
    add_row<<<blocks_of(rows * s.n), 256>>>(Matrix(bias), rows, s.n, truth);
    expect("y", y, truth, rows, step_, 0.02);
    expect("dx", dx, product(Matrix(dy), Matrix(w), rows, s.k, s.n, step_), rows, step_, 0.02);
  }
  void expect_forward() {
    const std::int64_t rows = (s.m + step_ - 1) / step_;
    double* const h_truth = product(Matrix(x, factors_), Matrix(a), rows, s.rank, s.k, step_);
    double* const truth = product(Matrix(x), Matrix(w.transposed()), rows, s.n, s.k, step_);
    add(product_of(h_truth, s.rank), Matrix(b), rows, s.n, s.rank, truth);
    add_row<<<blocks_of(rows * s.n), 256>>>(Matrix(bias), rows, s.n, truth);
    expect("h", h, h_truth, rows, step_, 1e-3);
    expect("y", y, truth, rows, step_, 0.02);
  }
  void expect_backward() {
    const std::int64_t rows = (s.m + step_ - 1) / step_;
    double* const g = product(Matrix(dy), Matrix(b.transposed()), s.m, s.rank, s.n, 1);
    double* const truth = product(Matrix(dy), Matrix(w), rows, s.k, s.n, step_);
    multiply<<<blocks_of(rows * s.k), 256>>>(product_of(g, s.rank), Matrix(a.transposed()), rows,
                                             s.k, s.rank, step_, kScaling, true, truth, factors_);
    expect("dx", dx, truth, rows, step_, 0.02);
    expect("da", da,
           product(Matrix(x.transposed(), factors_), product_of(g, s.rank), s.k, s.rank, s.m, 1,
                   kScaling),
           s.k, 1, 0.02);
    expect_db();
  }
  // Of the h that forward has stored, so that dropout changes nothing here.
  void expect_db() {
    expect(
        "db", db,
        product(Matrix(ConstTensorView(h).transposed()), Matrix(dy), s.rank, s.n, s.m, 1, kScaling),
        s.rank, 1, 0.02);
  }

  std::vector<std::byte> results() const {
    std::vector<std::byte> all;
    for (const TensorView& t : {y, h, dx, da, db}) {
      const std::size_t before = all.size();
      all.resize(before + static_cast<std::size_t>(t.size()) * size_of(t.dtype()));
      must(cudaMemcpy(all.data() + before, t.data(), all.size() - before, cudaMemcpyDeviceToHost));
    }
    return all;
  }

 private:
  static constexpr float kScaling = 0.5f;

  static unsigned blocks_of(std::int64_t threads) {
    return static_cast<unsigned>((threads + 255) / 256);
  }
  static Matrix product_of(const double* values, std::int64_t cols) { return {values, cols}; }

  double* product(const Matrix& left, const Matrix& right, std::int64_t rows, std::int64_t cols,
                  std::int64_t depth, std::int64_t step, double factor = 1) {
    double* const out = memory_.doubles(rows * cols);
    multiply<<<blocks_of(rows * cols), 256>>>(left, right, rows, cols, depth, step, factor, false,
                                              out);
    return out;
  }
  static void add(const Matrix& left, const Matrix& right, std::int64_t rows, std::int64_t cols,
                  std::int64_t depth, double* out) {
    multiply<<<blocks_of(rows * cols), 256>>>(left, right, rows, cols, depth, 1, kScaling, true,
                                              out);
  }

  void expect(const char* name, const TensorView& got, const double* truth, std::int64_t rows,
              std::int64_t step, double tolerance) {
    constexpr int kBlocks = 64, kThreads = 256;
    auto* const sums = static_cast<double2*>(memory_.bytes(kBlocks * kThreads * 16));
    const double rounding = got.dtype() == kBF16 ? 1.0 / 256 : got.dtype() == kF16 ? 1.0 / 2048 : 0;
    compare<<<kBlocks, kThreads>>>(Matrix(got), product_of(truth, got.dim(1)), rows, got.dim(1),
                                   step, rounding, sums);
    std::vector<double2> of_threads(kBlocks * kThreads);
    must(cudaMemcpy(of_threads.data(), sums, kBlocks * kThreads * 16, cudaMemcpyDeviceToHost));
    double worst = 0, square = 0;
    for (const double2& each : of_threads) worst = std::max(worst, each.x), square += each.y;
    const double size = std::sqrt(square / static_cast<double>(rows * got.dim(1)));
    EXPECT_GT(size, 0) << name;
    EXPECT_LE(worst / size, tolerance) << name;
  }

  Memory memory_;
  Shape s;
  std::int64_t step_;  // from a compared row to the next
  Dropout dropout_;
  double* factors_ = nullptr;  // (m, k), of the dropout

 public:
  TensorView x;
  ConstTensorView w, bias, a, b, dy;
  TensorView y, h, dx, da, db;
};

class CudaManyRows : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = test::CudaDevice::missing(); !why.empty()) GTEST_SKIP() << why;
  }

  void check(const Shape& shape, DType type = kBF16, DType adapter = kBF16,
             const Dropout& dropout = {}) {
    SCOPED_TRACE(testing::Message()
                 << shape.m << " x " << shape.k << " -> " << shape.n << ", rank " << shape.rank
                 << ' ' << name_of(type) << ' ' << name_of(adapter));
    Layer layer(shape, type, adapter);
    if (dropout.p > 0) layer.set(dropout);
    Context context(test::cuda_place(nullptr));
    lora_linear_forward(context, layer.forward());
    lora_linear_backward(context, layer.backward());
    must(cudaDeviceSynchronize());
    layer.expect_forward();
    layer.expect_backward();
    const auto first = layer.results();
    for (int round = 0; round < 10; ++round) {
      lora_linear_forward(context, layer.forward());
      lora_linear_backward(context, layer.backward());
      ASSERT_TRUE(layer.results() == first) << "round " << round;
    }
  }
};

// Some blocks have a tile less than others: for all of h, or some of it, or no block does; forward
// and backward, where dA and dB are made beside the tiles.
TEST_F(CudaManyRows, LightBlocksMakeH) { check({4096, 2048, 4096, 16}); }
// And dB with g, of the dy that is there for it.
TEST_F(CudaManyRows, LightBlocksMakeDbToo) {
  check({2048, 4096, 4096, 16});
  check({4090, 4096, 4104, 13}, kF16, kF32);
  check({8192, 4096, 4096, 16});
}
TEST_F(CudaManyRows, LightBlocksMakeDbBesideMaskedTiles) {
  Context context(test::cuda_place(nullptr));
  for (const Shape& shape : {Shape{2048, 4096, 1024, 16}, Shape{4090, 4096, 4104, 13}}) {
    SCOPED_TRACE(testing::Message() << shape.m << " x " << shape.k << " -> " << shape.n);
    Layer layer(shape, kBF16, kBF16);
    LoraLinearForward forward = layer.forward();
    LoraLinearBackward backward = layer.backward();
    forward.dropout = backward.dropout = {0.1f, 7};
    lora_linear_forward(context, forward);
    lora_linear_backward(context, backward);
    must(cudaDeviceSynchronize());
    layer.expect_db();
  }
}
TEST_F(CudaManyRows, OthersMakeSomeOfH) { check({8192, 2048, 2048, 16}); }
TEST_F(CudaManyRows, AllMakeH) { check({8448, 1024, 4096, 16}); }
TEST_F(CudaManyRows, OneTileABlock) { check({512, 4096, 4096, 16}); }
TEST_F(CudaManyRows, BlocksWithoutATileMakeHInParts) {
  for (const std::int64_t m : {129, 200, 256}) check({m, 4096, 4096, 16});
  check({256, 2048, 2048, 128});
  check({320, 4096, 1024, 5}, kF16, kF32);
}
TEST_F(CudaManyRows, SomeHaveTwoTiles) { check({1024, 1024, 5120, 16}); }
TEST_F(CudaManyRows, Float16) { check({2048, 1024, 3072, 16}, kF16, kF16); }
TEST_F(CudaManyRows, Float32Adapters) { check({2048, 1024, 3072, 12}, kBF16, kF32); }
TEST_F(CudaManyRows, WideRanks) {
  for (const std::int64_t rank : {17, 64, 128, 200, 256}) check({2304, 1024, 2048, rank});
}
// h by a launch of its own: an odd row block, parts of K that are not alike, columns of h that are
// not there, A in either order or copied.
TEST_F(CudaManyRows, WideRanksOfAnySize) {
  for (const std::int64_t rank : {65, 100, 136, 256}) {
    check({1111, 1000, 2056, rank});
    check({300, 72, 520, rank}, kF16, kF16);
    check({513, 2056, 264, rank}, kBF16, kF32);
  }
}
TEST_F(CudaManyRows, WideRanksOfManyRows) {
  check({8448, 512, 1024, 256});
  check({16500, 256, 512, 128});
}
// h whole, by blocks whose multiprocessors' clusters have a tile less: two row blocks each, one, or
// one beside others that make the rest in parts; odd steps, rows and columns that are not there.
TEST_F(CudaManyRows, WideRanksMadeWhole) {
  const Dropout dropout{0.5f, 5, 3};
  check({4096, 520, 4096, 128});
  check({4000, 264, 4096, 72}, kF16, kF32);
  check({2304, 328, 2048, 100});
  check({4090, 520, 4096, 256}, kBF16, kF32);
  check({4096, 72, 4096, 200}, kF16, kF16);
  check({4090, 520, 4096, 24}, kBF16, kBF16, dropout);
  check({4096, 264, 4096, 128}, kF16, kF32, dropout);
  check({4096, 328, 4096, 250}, kBF16, kF32, dropout);
}
// A tile's masked pair comes before the rest; h is made of a masked x.
TEST_F(CudaManyRows, WideRanksWithDropout) {
  const Dropout dropout{0.1f, 7, 0xfffffff0u};
  check({2304, 1024, 2048, 64}, kBF16, kBF16, dropout);
  check({4095, 2056, 1032, 17}, kBF16, kF32, dropout);
  check({1111, 1000, 2056, 32}, kF16, kF16, dropout);
  check({513, 2056, 264, 128}, kBF16, kF32, dropout);
  check({300, 72, 520, 200}, kF16, kF32, {0.5f, 3});
  check({2304, 1024, 2048, 256}, kBF16, kBF16, dropout);
}
// dA and dB by a launch of their own: rows that are no multiple of its steps, tails of features and
// of ranks, rows in one part and in eight.
TEST_F(CudaManyRows, OuterProductsAfterTheTiles) {
  for (const std::int64_t rank : {17, 24, 48, 64, 100, 128, 200, 256}) {
    check({1000, 520, 264, rank});
    check({777, 1032, 72, rank}, kF16, kF32);
  }
  check({4100, 8192, 8200, 48});
  check({9000, 264, 8, 64}, kBF16, kF32);
  check({8192, 128, 256, 256});
}
// One of them alone, by the same kernel.
TEST_F(CudaManyRows, OneOuterProductAfterTheTiles) {
  Context context(test::cuda_place(nullptr));
  for (const std::int64_t rank : {24, 128}) {
    Layer layer({1000, 520, 264, rank}, kBF16, kBF16);
    lora_linear_forward(context, layer.forward());
    for (const bool of_a : {false, true}) {
      LoraLinearBackward backward = layer.backward();
      if (of_a) {
        backward.db = {};
      } else {
        backward.da = {};
      }
      lora_linear_backward(context, backward);
    }
    must(cudaDeviceSynchronize());
    layer.expect_backward();
  }
}
// q, k and v, in one launch: tiles and columns of h lie beside each other.
TEST_F(CudaManyRows, SiblingsShareALaunch) {
  Context context(test::cuda_place(nullptr));
  for (const DType adapter : {kBF16, kF32}) {
    for (const std::int64_t m : {300, 4096}) {
      for (const std::array<Shape, 3>& shapes :
           {std::array<Shape, 3>{{{m, 1024, 4096, 16}, {m, 1024, 1024, 16}, {m, 1024, 1024, 16}}},
            {{{m, 520, 1000, 13}, {m, 520, 264, 40}, {m, 520, 72, 1}}},
            {{{m, 512, 256, 256}, {m, 512, 512, 7}, {m, 512, 1024, 200}}}}) {
        SCOPED_TRACE(testing::Message() << m << ' ' << shapes[0].rank << ' ' << name_of(adapter));
        std::vector<std::unique_ptr<Layer>> layers;
        std::vector<LoraLinearForward> calls;
        for (const Shape& shape : shapes) {
          const auto seed = static_cast<std::uint32_t>(10 * layers.size());
          layers.push_back(std::make_unique<Layer>(shape, kBF16, adapter, seed,
                                                   layers.empty() ? TensorView() : layers[0]->x));
          calls.push_back(layers.back()->forward());
        }
        lora_linear_forward(context, LoraSiblingsForward(calls));
        for (const auto& layer : layers) layer->expect_forward();
      }
    }
  }
}
TEST_F(CudaManyRows, SizesThatAreNoMultipleOfTiles) {
  check({4095, 1016, 4104, 13});
  check({1111, 1000, 2056, 5}, kBF16, kF32);
}
// Columns behind the last whole tile, made with h: of y forward, and of a dx alone.
TEST_F(CudaManyRows, RaggedColumns) {
  check({4095, 2056, 4104, 13});
  check({3900, 2048, 4112, 16}, kF16, kF32);
  Context context(test::cuda_place(nullptr));
  for (const Shape& shape : {Shape{4095, 2048, 4104, 1}, {4095, 4104, 2048, 1}}) {
    Layer layer(shape, kBF16, kBF16);
    linear_forward(context, layer.linear_forward());
    linear_backward(context, layer.linear_backward());
    must(cudaDeviceSynchronize());
    layer.expect_linear();
  }
}

}  // namespace
}  // namespace graft
