#include "tensors.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>

#include "graft/error.h"

namespace graft::pytorch {
namespace {

const char* word_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid_argument";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kOutOfMemory:
      return "out_of_memory";
    case ErrorCode::kDevice:
      return "device";
  }
  return "device";
}

[[noreturn]] void throw_single_number(const char* name) {
  throw Error(ErrorCode::kInvalidArgument,
              std::string(name) + ": expected one dimension or more, got a single number");
}

Device device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return {};
  return {DeviceType::kCuda, tensor.get_device_index()};
}

Tensor new_dense(const Tensor& like, std::span<const std::int64_t> shape, std::int32_t dtype) {
  std::array<std::int64_t, ConstTensorView::kMaxRank> strides{};
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(shape[i], 1);
  }
  std::int32_t device_type = 0;
  std::int32_t device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle made = nullptr;
  if (aoti_torch_empty_strided(static_cast<std::int64_t>(shape.size()), shape.data(),
                               strides.data(), dtype, device_type, device_index,
                               &made) != TORCH_SUCCESS) {
    throw Error(ErrorCode::kOutOfMemory, "could not allocate an output");
  }
  return Tensor(made);
}

// From row to row of all leading dimensions together, or none if no single stride leads there.
std::optional<std::int64_t> row_stride(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  if (tensor.numel() == 0) return sizes.back();
  std::optional<std::int64_t> stride;
  std::int64_t expected = 0;  // stride of the next dimension outwards
  for (std::size_t i = sizes.size() - 1; i-- > 0;) {
    if (sizes[i] == 1) continue;
    if (!stride) {
      stride = strides[i];
    } else if (strides[i] != expected) {
      return {};
    }
    expected = strides[i] * sizes[i];
  }
  return stride ? stride : sizes.back();
}

torch::headeronly::ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return torch::headeronly::ScalarType::Float;
    case DType::kFloat16:
      return torch::headeronly::ScalarType::Half;
    case DType::kBFloat16:
      return torch::headeronly::ScalarType::BFloat16;
    case DType::kInt32:
      return torch::headeronly::ScalarType::Int;
  }
  return torch::headeronly::ScalarType::Undefined;
}

}  // namespace

DType dtype_of(const Tensor& tensor, const char* name) {
  std::int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  if (dtype == aoti_torch_dtype_float32()) return DType::kFloat32;
  if (dtype == aoti_torch_dtype_bfloat16()) return DType::kBFloat16;
  if (dtype == aoti_torch_dtype_float16()) return DType::kFloat16;
  throw Error(ErrorCode::kUnsupported,
              std::string(name) + ": expected float32, bfloat16 or float16");
}

ConstTensorView view_of(const Tensor& tensor, const char* name) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  if (sizes.empty()) throw_single_number(name);
  if (sizes.size() > static_cast<std::size_t>(ConstTensorView::kMaxRank)) {
    throw Error(ErrorCode::kUnsupported, std::string(name) + ": has more than 8 dimensions");
  }
  return {tensor.const_data_ptr(),
          dtype_of(tensor, name),
          {sizes.data(), sizes.size()},
          {strides.data(), strides.size()},
          device_of(tensor)};
}

ConstTensorView view_of(const std::optional<Tensor>& tensor, const char* name) {
  return tensor ? view_of(*tensor, name) : ConstTensorView();
}

Tensor cast(const Tensor& tensor, DType dtype) {
  if (dtype_of(tensor, "tensor") == dtype) return tensor;
  return torch::stable::to(tensor, scalar_type_of(dtype));
}

Weight plain_weight(const Tensor& weight, DType multiply) {
  const ConstTensorView view = view_of(weight, "weight");
  if (view.dtype() == multiply) return view;
  const Tensor copy = cast(weight, multiply);
  return Weight::owning(view_of(copy, "weight"), copy);
}

void require_apart(const ConstTensorView& output, const ConstTensorView& input, const char* name) {
  if (output.size() == 0 || input.size() == 0) return;
  std::int64_t last = 0;  // torch's strides are never negative
  for (int axis = 0; axis < input.rank(); ++axis)
    last += (input.dim(axis) - 1) * input.stride(axis);
  const auto bytes = [](std::int64_t elements, DType dtype) {
    return elements * static_cast<std::int64_t>(size_of(dtype));
  };
  const auto* out = output.data_as<std::byte>();
  const auto* in = input.data_as<std::byte>();
  if (std::less()(out, in + bytes(last + 1, input.dtype())) &&
      std::less()(in, out + bytes(output.size(), output.dtype()))) {
    throw Error(ErrorCode::kInvalidArgument,
                std::string("y: expected memory of its own, got some of ") + name + "'s");
  }
}

TensorView transposed(const Tensor& tensor) {
  const std::array<std::int64_t, 2> shape{tensor.size(1), tensor.size(0)};
  const std::array<std::int64_t, 2> strides{1, std::max<std::int64_t>(tensor.size(1), 1)};
  return {tensor.mutable_data_ptr(), dtype_of(tensor, "output"), shape, strides, device_of(tensor)};
}

Rows::Rows(const Tensor& tensor, const char* name, bool dense) : owner_(tensor) {
  if (tensor.dim() < 1) throw_single_number(name);
  std::optional<std::int64_t> stride = row_stride(tensor);
  if (!stride || (dense && tensor.strides().back() != 1 && tensor.sizes().back() != 1)) {
    owner_ = torch::stable::contiguous(tensor);
    stride = row_stride(owner_);
  }
  const auto sizes = owner_.sizes();
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < sizes.size(); ++i) rows *= sizes[i];
  const std::array<std::int64_t, 2> shape{rows, sizes.back()};
  const std::array<std::int64_t, 2> strides{*stride, owner_.strides().back()};
  view_ = {owner_.const_data_ptr(), dtype_of(owner_, name), shape, strides, device_of(owner_)};
}

Dense::Dense(const std::optional<Tensor>& tensor, const char* name) : owner_(tensor) {
  if (owner_ && !owner_->is_contiguous()) owner_ = torch::stable::contiguous(*owner_);
  view_ = view_of(owner_, name);
}

Tensor new_rows(const Tensor& like, std::int64_t features) {
  const auto sizes = like.sizes();
  if (sizes.size() > static_cast<std::size_t>(ConstTensorView::kMaxRank)) {
    throw Error(ErrorCode::kUnsupported, "x: has more than 8 dimensions");
  }
  std::array<std::int64_t, ConstTensorView::kMaxRank> shape{};
  std::copy(sizes.begin(), sizes.end(), shape.begin());
  shape[sizes.size() - 1] = features;
  std::int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return new_dense(like, {shape.data(), sizes.size()}, dtype);
}

Tensor new_floats(const Tensor& like, std::initializer_list<std::int64_t> shape) {
  return new_dense(like, {shape.begin(), shape.size()}, aoti_torch_dtype_float32());
}

TensorView vector(const Tensor& tensor) {
  return {
      tensor.mutable_data_ptr(), dtype_of(tensor, "output"), {tensor.size(0)}, device_of(tensor)};
}

TensorView matrix(const Tensor& tensor, std::int64_t rows, std::int64_t features) {
  return {
      tensor.mutable_data_ptr(), dtype_of(tensor, "output"), {rows, features}, device_of(tensor)};
}

const std::uint64_t* random_numbers(double p, const std::optional<Tensor>& rng, const Tensor& x) {
  if (p == 0) return nullptr;
  std::int32_t dtype = 0;
  if (rng) TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(rng->get(), &dtype));
  if (!rng || dtype != aoti_torch_dtype_int64() || rng->numel() != 2 || !rng->is_contiguous() ||
      device_of(*rng) != device_of(x)) {
    throw Error(ErrorCode::kInvalidArgument,
                "rng: expected two int64 numbers, seed and offset, on x's device");
  }
  return static_cast<const std::uint64_t*>(rng->const_data_ptr());
}

void rethrow() {
  try {
    throw;
  } catch (const Error& error) {
    // By these words scripts know that a smaller batch may do.
    const char* known = error.code() == ErrorCode::kOutOfMemory ? "Graft is out of memory. " : "";
    throw std::runtime_error(std::string("graft ") + word_of(error.code()) + ": " + known +
                             error.what());
  }
}

}  // namespace graft::pytorch
