// Row kernels on a CUDA device with more than a test that runs everywhere can have: many rows, rows
// on every path, the same bits every time, more elements than 32 bits count.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/element.h"
#include "graft/capabilities.h"
#include "graft/layer_norm.h"
#include "graft/rms_norm.h"
#include "graft/rope.h"
#include "graft/softmax.h"
#include "graft/swiglu.h"
#include "layer_norm/reference.h"
#include "rms_norm/reference.h"
#include "rope/reference.h"
#include "softmax/reference.h"
#include "support/compare.h"
#include "support/cuda_place.h"
#include "support/places.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::must;
using test::Tensor;

constexpr Device kCuda{DeviceType::kCuda, 0};

class CudaRows : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = test::CudaDevice::missing(); !why.empty()) GTEST_SKIP() << why;
    context_ = Context(test::cuda_place(nullptr));
  }

  Context context_;
};

std::size_t bytes_of(const ConstTensorView& view) {
  return static_cast<std::size_t>(view.size()) * size_of(view.dtype());
}

// A dense tensor on the device.
class Memory {
 public:
  Memory(DType dtype, std::vector<std::int64_t> shape) : dtype_(dtype), shape_(std::move(shape)) {
    must(cudaMalloc(&data_, std::max<std::size_t>(bytes_of(view()), 16)));
    clear();
  }
  explicit Memory(const Tensor& tensor) : Memory(tensor.view().dtype(), shape_of(tensor)) {
    must(cudaMemcpy(data_, tensor.view().data(), bytes_of(view()), cudaMemcpyHostToDevice));
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  TensorView view() const { return {data_, dtype_, shape_, kCuda}; }
  operator ConstTensorView() const { return view(); }  // NOLINT
  operator TensorView() const { return view(); }       // NOLINT

  void clear() const { must(cudaMemset(data_, 0xFF, bytes_of(view()))); }  // NaN, all of it

  // Rows [first, first + count), in the CPU's memory.
  Tensor rows(std::int64_t first, std::int64_t count) const {
    std::vector<std::int64_t> shape = shape_;
    shape[0] = count;
    Tensor all(dtype_, shape);
    const std::size_t row = bytes_of(view()) / static_cast<std::size_t>(shape_[0]);
    must(cudaMemcpy(all.view().mutable_data(),
                    static_cast<const std::byte*>(data_) + static_cast<std::size_t>(first) * row,
                    static_cast<std::size_t>(count) * row, cudaMemcpyDeviceToHost));
    return all;
  }
  Tensor all() const { return rows(0, shape_[0]); }

  std::vector<std::byte> bytes() const {
    std::vector<std::byte> all(bytes_of(view()));
    must(cudaMemcpy(all.data(), data_, all.size(), cudaMemcpyDeviceToHost));
    return all;
  }

 private:
  static std::vector<std::int64_t> shape_of(const ConstTensorView& view) {
    std::vector<std::int64_t> shape;
    for (int axis = 0; axis < view.rank(); ++axis) shape.push_back(view.dim(axis));
    return shape;
  }

  DType dtype_;
  std::vector<std::int64_t> shape_;
  void* data_ = nullptr;
};

// All that row operations make of one set of inputs, columns divisible by 2.
struct Outputs {
  Memory x, dy, weight, y, dx, ds, rms_ds, normal, rms, sum, gated, dgate, dup, turned;
  Memory mean, rstd, rms_rstd, dweight, dbias, rms_dweight;

  Outputs(DType dtype, std::int64_t m, std::int64_t n)
      : x(Tensor(dtype, {m, n}).fill_random(1)),
        dy(Tensor(dtype, {m, n}).fill_random(2)),
        weight(Tensor(dtype, {n}).fill_random(3)),
        y(dtype, {m, n}),
        dx(dtype, {m, n}),
        ds(dtype, {m, n}),
        rms_ds(dtype, {m, n}),
        normal(dtype, {m, n}),
        rms(dtype, {m, n}),
        sum(dtype, {m, n}),
        gated(dtype, {m, n}),
        dgate(dtype, {m, n}),
        dup(dtype, {m, n}),
        turned(dtype, {m, n}),
        mean(DType::kFloat32, {m}),
        rstd(DType::kFloat32, {m}),
        rms_rstd(DType::kFloat32, {m}),
        dweight(DType::kFloat32, {n}),
        dbias(DType::kFloat32, {n}),
        rms_dweight(DType::kFloat32, {n}) {}

  std::vector<const Memory*> all() const {
    return {&y,   &dx,   &ds,   &rms_ds,   &normal,  &rms,   &sum,         &gated, &dgate,
            &dup, &mean, &rstd, &rms_rstd, &dweight, &dbias, &rms_dweight, &turned};
  }

  void run(Context& context) const {
    softmax_forward(context, {x, 0.7f, y});
    softmax_backward(context, {dy, y, 0.7f, dx});
    layer_norm_forward(context, {x, weight, weight, 1e-5f, normal, mean, rstd});
    layer_norm_backward(context, {dy, x, weight, 1e-5f, mean, rstd, ds, dweight, dbias});
    rms_norm_forward(context, {x, dy, weight, 1e-5f, rms, sum, rms_rstd});
    rms_norm_backward(context, {dy, sum, weight, 1e-5f, rms_rstd, dy, rms_ds, rms_dweight});
    swiglu_forward(context, {x, dy, gated});
    swiglu_backward(context, {dy, x, normal, dgate, dup});
    const std::int64_t m = x.view().dim(0), n = x.view().dim(1);
    const auto heads = [&](const Memory& memory) {
      return TensorView(memory.view().mutable_data(), memory.view().dtype(), {1, m, 1, n}, kCuda);
    };
    rope(context, {heads(x), {true, 10000.0f, false, 77}, false, heads(turned)});
  }
};

struct Shape {
  DType dtype;
  std::int64_t m, n;
};

// A warp a row, warps a row, a block, clusters of blocks, too long for those, and not in packs.
const Shape kShapes[] = {{DType::kBFloat16, 5000, 64},   {DType::kBFloat16, 3001, 512},
                         {DType::kBFloat16, 1500, 4096}, {DType::kFloat16, 900, 5000},
                         {DType::kFloat32, 400, 8192},   {DType::kBFloat16, 150, 32768},
                         {DType::kBFloat16, 20, 70000},  {DType::kFloat32, 3, 140000},
                         {DType::kBFloat16, 1000, 1022}, {DType::kFloat32, 5000, 130}};

TEST_F(CudaRows, SameBitsEveryTime) {
  for (const Shape& shape : kShapes) {
    const Outputs outputs(shape.dtype, shape.m, shape.n);
    std::vector<std::vector<std::byte>> first;
    outputs.run(context_);
    for (const Memory* memory : outputs.all()) first.push_back(memory->bytes());
    for (int round = 1; round < 100; ++round) {
      for (const Memory* memory : outputs.all()) memory->clear();
      outputs.run(context_);
      for (std::size_t i = 0; i < first.size(); ++i) {
        ASSERT_TRUE(outputs.all()[i]->bytes() == first[i])
            << "output " << i << " of " << shape.m << "x" << shape.n << ", round " << round;
      }
      // Copies take longer than kernels: few rounds of the large ones.
      if (round == 10 && shape.m * shape.n > 1 << 20) break;
    }
  }
}

// Rows here and there, of more than any block has in hand at a time, and the sums over all of them.
TEST_F(CudaRows, ManyRowsMatchTheReference) {
  for (const Shape& shape : kShapes) {
    const auto [dtype, m, n] = shape;
    SCOPED_TRACE(std::string(name_of(dtype)) + " " + std::to_string(m) + "x" + std::to_string(n));
    const Outputs outputs(dtype, m, n);
    outputs.run(context_);
    const Tensor weight = outputs.weight.all();
    // One rounding of the largest value, and what float32 loses on the way.
    const double bound = test::epsilon(dtype) + 32 * test::epsilon(DType::kFloat32);
    for (std::int64_t row = 0; row < m; row += std::max<std::int64_t>(m / 7, 1)) {
      SCOPED_TRACE(row);
      const auto expect_near = [&, row = row](const Memory& actual, const Tensor& truth) {
        double largest = 0;
        for (const double value : truth.values()) largest = std::max(largest, std::abs(value));
        EXPECT_TRUE(test::close(actual.rows(row, 1).values(), truth.values(), bound * largest));
      };
      const Tensor x = outputs.x.rows(row, 1), dy = outputs.dy.rows(row, 1);
      Tensor out(DType::kFloat32, {1, n});
      reference::softmax_forward({x, 0.7f, out});
      expect_near(outputs.y, out);
      reference::softmax_backward({dy, outputs.y.rows(row, 1), 0.7f, out});
      expect_near(outputs.dx, out);
      reference::layer_norm_forward({x, weight, weight, 1e-5f, out, {}, {}});
      expect_near(outputs.normal, out);
      reference::rms_norm_forward({outputs.sum.rows(row, 1), {}, weight, 1e-5f, out, {}, {}});
      expect_near(outputs.rms, out);
      const auto one_head = [n = n](const Tensor& tensor) {
        return TensorView(tensor.view().mutable_data(), tensor.view().dtype(), {1, 1, 1, n});
      };
      reference::rope({one_head(x), {true, 10000.0f, false, 77 + row}, false, one_head(out)});
      expect_near(outputs.turned, out);
      reference::layer_norm_backward({dy, x, weight, 1e-5f, {}, {}, out, {}, {}});
      expect_near(outputs.ds, out);
      reference::rms_norm_backward({dy, outputs.sum.rows(row, 1), weight, 1e-5f, {}, dy, out, {}});
      expect_near(outputs.rms_ds, out);
    }
    // In double, from what the kernels were given.
    const Tensor x = outputs.x.all(), dy = outputs.dy.all(), sum = outputs.sum.all();
    const Tensor mean = outputs.mean.all(), rstd = outputs.rstd.all();
    const Tensor rms_rstd = outputs.rms_rstd.all();
    const Tensor dweight = outputs.dweight.all(), dbias = outputs.dbias.all();
    const Tensor rms_dweight = outputs.rms_dweight.all();
    for (std::int64_t column = 0; column < n; column += std::max<std::int64_t>(n / 13, 1)) {
      // Sums in double, and those of the terms' sizes, of which float32 may lose a few roundings.
      double sums[3] = {}, sizes[3] = {};
      for (std::int64_t row = 0; row < m; ++row) {
        const std::int64_t i = row * n + column;
        const double g = dy.get(i), normal = (x.get(i) - mean.get(row)) * rstd.get(row);
        const double terms[] = {g * normal, g, g * sum.get(i) * rms_rstd.get(row)};
        for (int which = 0; which < 3; ++which) {
          sums[which] += terms[which], sizes[which] += std::abs(terms[which]);
        }
      }
      EXPECT_NEAR(dweight.get(column), sums[0], 1e-6 * sizes[0]) << column;
      EXPECT_NEAR(dbias.get(column), sums[1], 1e-6 * sizes[1]) << column;
      EXPECT_NEAR(rms_dweight.get(column), sums[2], 1e-6 * sizes[2]) << column;
    }
  }
}

// The base of some rows again and again: every copy of it must become what the first one does.
TEST_F(CudaRows, MoreElementsThan32BitsCount) {
  constexpr std::int64_t kBase = 64, kColumns = 4096, kCopies = (1 << 13) + 1;
  constexpr std::int64_t kRows = kBase * kCopies;  // 2³¹ elements and 2¹⁸ more
  const std::size_t base_bytes = kBase * kColumns * 2;
  std::size_t free = 0, total = 0;
  must(cudaMemGetInfo(&free, &total));
  if (free < 3 * base_bytes * kCopies) GTEST_SKIP() << "the device has too little memory";
  const Memory base(Tensor(DType::kBFloat16, {kBase, kColumns}).fill_random(1));
  const Memory weight(Tensor(DType::kBFloat16, {kColumns}).fill_random(2));
  const Memory x(DType::kBFloat16, {kRows, kColumns}), y(DType::kBFloat16, {kRows, kColumns});
  const auto copy = [&](const Memory& memory, std::int64_t i) {
    return static_cast<std::byte*>(memory.view().mutable_data()) +
           static_cast<std::size_t>(i) * base_bytes;
  };
  for (std::int64_t i = 0; i < kCopies; ++i) {
    must(cudaMemcpyAsync(copy(x, i), base.view().data(), base_bytes, cudaMemcpyDeviceToDevice));
  }
  const auto expect_copies = [&](const char* what) {
    std::vector<std::byte> first(base_bytes), other(base_bytes);
    must(cudaMemcpy(first.data(), copy(y, 0), base_bytes, cudaMemcpyDeviceToHost));
    for (const std::int64_t i : {std::int64_t{1}, kCopies / 2, kCopies - 2, kCopies - 1}) {
      must(cudaMemcpy(other.data(), copy(y, i), base_bytes, cudaMemcpyDeviceToHost));
      EXPECT_TRUE(other == first) << what << ", copy " << i;
    }
    // Nothing was left as it was: 0xFF… is NaN.
    const Tensor values = y.rows(kRows - 1, 1);
    for (std::int64_t i = 0; i < 4000; ++i) EXPECT_TRUE(std::isfinite(values.get(i))) << what;
    y.clear();
  };
  const auto narrow = [&](const Memory& memory, std::int64_t columns) {
    const std::int64_t shape[] = {kRows, columns}, strides[] = {kColumns, 1};
    return TensorView(memory.view().mutable_data(), DType::kBFloat16, shape, strides, kCuda);
  };
  softmax_forward(context_, {x, 1.0f, y});
  expect_copies("softmax");
  softmax_forward(context_, {narrow(x, 4093), 1.0f, narrow(y, 4093)});
  expect_copies("softmax of rows that are not packs");
  softmax_backward(context_, {x, x, 1.0f, y});
  expect_copies("softmax_backward");
  rms_norm_forward(context_, {x, {}, weight, 1e-5f, y, {}, {}});
  expect_copies("rms_norm");
  const Memory dweight(DType::kFloat32, {kColumns}), few(DType::kFloat32, {kColumns});
  const Memory few_ds(DType::kBFloat16, {kBase, kColumns});
  RmsNormBackward p;
  p.dy = x, p.s = x, p.weight = weight, p.ds = y, p.dweight = dweight;
  rms_norm_backward(context_, p);
  expect_copies("rms_norm_backward");
  p.dy = base, p.s = base, p.ds = few_ds, p.dweight = few;
  rms_norm_backward(context_, p);
  for (std::int64_t i = 0; i < kColumns; i += 97) {
    EXPECT_NEAR(dweight.all().get(i) / (static_cast<double>(kCopies) * few.all().get(i)), 1, 1e-4);
  }
  swiglu_forward(context_, {x, x, y});
  expect_copies("swiglu");
  const auto heads = [&](const Memory& memory) {
    return TensorView(memory.view().mutable_data(), DType::kBFloat16, {kCopies, kBase, 32, 128},
                      kCuda);
  };
  rope(context_, {heads(x), {true, 10000.0f, false, 3}, false, heads(y)});
  expect_copies("rope");
}

TEST_F(CudaRows, CapabilitiesSayThatRowsHaveKernelsInAllTypes) {
  for (const Capability& capability : capabilities(kCuda)) {
    const std::string op = capability.op;
    if (op == "softmax" || op == "rms_norm" || op == "layer_norm" || op == "swiglu" ||
        op == "rope") {
      EXPECT_TRUE(capability.support.yes) << op << ": " << capability.support.reason;
    }
  }
}

}  // namespace
}  // namespace graft
