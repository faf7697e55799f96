#include "support/tensor.h"

#include <numeric>
#include <random>

#include "backend/element.h"

namespace graft::test {

namespace {
constexpr std::byte kSentinel{0xA5};
constexpr std::int64_t kMargin = 64;  // elements guarded at each end
}  // namespace

Tensor::Tensor(DType dtype, std::vector<std::int64_t> shape, Layout layout)
    : dtype_(dtype), shape_(std::move(shape)), strides_(shape_.size()) {
  std::vector<int> order = layout.order;
  if (order.empty()) {
    order.resize(shape_.size());
    std::iota(order.begin(), order.end(), 0);
  }
  std::int64_t stride = 1;
  for (std::size_t i = order.size(); i-- > 0;) {
    const auto axis = static_cast<std::size_t>(order[i]);
    strides_[axis] = stride;
    stride *= shape_[axis];
    if (i + 1 == order.size()) stride += layout.gap;
  }
  offset_ = kMargin + layout.offset;
  memory_.assign(static_cast<std::size_t>(offset_ + stride + kMargin) * size_of(dtype), kSentinel);
}

TensorView Tensor::view() const {
  if (shape_.empty()) return {};
  return TensorView(memory_.data() + static_cast<std::size_t>(offset_) * size_of(dtype_), dtype_,
                    shape_, strides_);
}

std::int64_t Tensor::offset_of(std::int64_t index) const {
  std::int64_t offset = 0;
  for (std::size_t axis = shape_.size(); axis-- > 0;) {
    offset += index % shape_[axis] * strides_[axis];
    index /= shape_[axis];
  }
  return offset;
}

double Tensor::load(const TensorView& v, std::int64_t index) const {
  const std::int64_t offset = offset_of(index);
  if (dtype_ == DType::kInt32) return v.data_as<std::int32_t>()[offset];
  return load_element(v, offset);
}

void Tensor::store(const TensorView& v, std::int64_t index, double value) {
  const std::int64_t offset = offset_of(index);
  if (dtype_ == DType::kInt32) {
    v.mutable_data_as<std::int32_t>()[offset] = static_cast<std::int32_t>(value);
  } else {
    store_element(v, offset, static_cast<float>(value));
  }
}

double Tensor::get(std::int64_t index) const { return load(view(), index); }

void Tensor::set(std::int64_t index, double value) { store(view(), index, value); }

Tensor& Tensor::fill_random(std::uint32_t seed, double scale) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0, scale);
  const TensorView v = view();
  for (std::int64_t i = 0; i < v.size(); ++i) store(v, i, normal(generator));
  return *this;
}

Tensor& Tensor::fill(double value) {
  const TensorView v = view();
  for (std::int64_t i = 0; i < v.size(); ++i) store(v, i, value);
  return *this;
}

std::vector<double> Tensor::values() const {
  const TensorView v = view();
  std::vector<double> all(static_cast<std::size_t>(v.size()));
  for (std::int64_t i = 0; i < v.size(); ++i) all[static_cast<std::size_t>(i)] = load(v, i);
  return all;
}

Tensor Tensor::as(DType dtype) const {
  Tensor copy(dtype, shape_);
  const TensorView from = view(), to = copy.view();
  for (std::int64_t i = 0; i < from.size(); ++i) copy.store(to, i, load(from, i));
  return copy;
}

testing::AssertionResult Tensor::guarded() const {
  const std::size_t width = size_of(dtype_);
  std::vector<bool> ours(memory_.size() / width);
  for (std::int64_t i = 0, end = size(); i < end; ++i) {
    ours[static_cast<std::size_t>(offset_ + offset_of(i))] = true;
  }
  for (std::size_t i = 0; i < memory_.size(); ++i) {
    if (!ours[i / width] && memory_[i] != kSentinel) {
      return testing::AssertionFailure()
             << "written outside the tensor, at element "
             << static_cast<std::int64_t>(i / width) - offset_ << " from its first";
    }
  }
  return testing::AssertionSuccess();
}

float rounded(float value, DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return from_bfloat16(to_bfloat16(value));
    case DType::kFloat16:
      return from_float16(to_float16(value));
    default:
      return value;
  }
}

TensorView rows_of(const Tensor& matrix, std::int64_t first, std::int64_t count) {
  const TensorView all = matrix.view();
  const std::int64_t shape[] = {std::min(count, all.dim(0) - first), all.dim(1)};
  const std::int64_t strides[] = {all.stride(0), all.stride(1)};
  auto* const data = static_cast<std::byte*>(all.mutable_data()) +
                     first * all.stride(0) * static_cast<std::int64_t>(size_of(all.dtype()));
  return TensorView(data, all.dtype(), shape, strides);
}

}  // namespace graft::test
