#include "graft/mlx/detail/views.h"

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>

#include <any>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "graft/lora.h"
#include "graft/mlx/detail/metal_runner.h"

namespace graft::mlx::detail {
namespace {

DType known_dtype(mx::Dtype dtype) {
  const auto known = dtype_of(dtype);
  if (!known) throw std::logic_error("graft::mlx: no view of this dtype");
  return *known;
}

// The stride between rows if all dimensions but the last collapse into one.
std::optional<std::int64_t> row_stride(const mx::array& x) {
  std::int64_t stride = 0;   // of the innermost dimension so far
  std::int64_t covered = 0;  // what the next outer stride must be
  bool first = true;
  for (int axis = static_cast<int>(x.ndim()) - 2; axis >= 0; --axis) {
    if (x.shape(axis) == 1) continue;
    const std::int64_t here = x.strides(axis);
    if (first) {
      stride = here;
      first = false;
    } else if (here != covered) {
      return std::nullopt;
    }
    covered = here * x.shape(axis);
  }
  return first ? std::int64_t{x.shape(-1)} : stride;
}

// Copies a strided array into row-major order. Plain, since it is off the usual path.
void gather(const std::byte* from, std::byte* to, std::size_t itemsize, const mx::Shape& shape,
            const mx::Strides& strides) {
  std::size_t count = 1;
  for (const auto dim : shape) count *= static_cast<std::size_t>(dim);
  std::vector<mx::ShapeElem> index(shape.size(), 0);
  for (std::size_t i = 0; i < count; ++i) {
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      offset += index[axis] * strides[axis];
    }
    std::memcpy(to + i * itemsize, from + offset * static_cast<std::int64_t>(itemsize), itemsize);
    for (int axis = static_cast<int>(shape.size()) - 1; axis >= 0; --axis) {
      auto& at = index[static_cast<std::size_t>(axis)];
      if (++at < shape[static_cast<std::size_t>(axis)]) break;
      at = 0;
    }
  }
}

mx::array scheduled_copy(const mx::array& x, mx::Stream stream) {
  mx::array copy(x.shape(), x.dtype(), nullptr, {});
  copy.set_data(mx::allocator::malloc(copy.nbytes()));
  auto& encoder = mx::cpu::get_command_encoder(stream);
  encoder.dispatch([from = x.data<std::byte>(), keep = x.data_shared_ptr(),
                    to = copy.data<std::byte>(), itemsize = x.itemsize(), shape = x.shape(),
                    strides = x.strides()] { gather(from, to, itemsize, shape, strides); });
  encoder.add_temporary(copy);
  return copy;
}

std::vector<std::int64_t> sizes_of(const mx::array& x) {
  return {x.shape().begin(), x.shape().end()};
}

}  // namespace

std::optional<DType> dtype_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return DType::kFloat32;
  if (dtype == mx::float16) return DType::kFloat16;
  if (dtype == mx::bfloat16) return DType::kBFloat16;
  if (dtype == mx::int32) return DType::kInt32;
  return std::nullopt;
}

mx::Dtype dtype_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return mx::float32;
    case DType::kFloat16:
      return mx::float16;
    case DType::kBFloat16:
      return mx::bfloat16;
    case DType::kInt32:
      return mx::int32;
  }
  throw std::logic_error("graft::mlx: unknown dtype");
}

std::int64_t rows_of(const mx::Shape& shape) {
  std::int64_t rows = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) {
    rows *= shape[axis];
  }
  return rows;
}

std::string shape_string(const mx::Shape& shape) {
  std::string text = "(";
  for (const auto dim : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(dim);
  }
  return text + ")";
}

mx::Shape with_last(mx::Shape shape, mx::ShapeElem last) {
  shape.back() = last;
  return shape;
}

void reject(const char* op, const char* tensor, const std::string& expected,
            const std::string& got) {
  throw std::invalid_argument("[" + std::string(op) + "] " + tensor + ": expected " + expected +
                              ", got " + got);
}

void expect_shape(const char* op, const char* tensor, const mx::array& array,
                  const mx::Shape& expected) {
  if (array.shape() != expected) {
    reject(op, tensor, shape_string(expected), shape_string(array.shape()));
  }
}

void expect_floating(const char* op, const char* tensor, const mx::array& array) {
  if (mx::issubdtype(array.dtype(), mx::floating)) return;
  std::ostringstream got;
  got << array.dtype();
  reject(op, tensor, "a floating-point dtype", got.str());
}

void expect_rows(const char* op, const char* tensor, const mx::array& array) {
  if (array.ndim() == 0) reject(op, tensor, "at least one dimension", "a scalar");
  expect_floating(op, tensor, array);
}

void expect_matrix(const char* op, const char* tensor, const mx::array& array) {
  if (array.ndim() != 2) reject(op, tensor, "a matrix", shape_string(array.shape()));
}

void expect_present(const char* op, const char* name, const Weight& weight) {
  if (!weight.present()) reject(op, name, "a weight", "none");
}

void expect_dropout(const char* op, float p) {
  if (!Dropout{p}.valid()) reject(op, "dropout", "a chance in [0, 1)", std::to_string(p));
}

void expect_epsilon(const char* op, float eps) {
  if (!(std::isfinite(eps) && eps >= 0.0f)) {
    reject(op, "eps", "a number of at least 0", std::to_string(eps));
  }
}

void expect_scale(const char* op, float scale) {
  if (!(std::isfinite(scale) && scale > 0.0f)) {
    reject(op, "scale", "a positive number", std::to_string(scale));
  }
}

const mx::array* array_of(const Weight& weight) { return std::any_cast<mx::array>(weight.owner()); }

mx::Shape shape_of(const Weight& weight) {
  return {static_cast<int>(weight.out_features()), static_cast<int>(weight.in_features())};
}

ConstTensorView matrix_view(const mx::array& matrix) {
  const std::array<std::int64_t, 2> shape{matrix.shape(0), matrix.shape(1)};
  const std::array<std::int64_t, 2> strides{matrix.strides(0), matrix.strides(1)};
  return {matrix.data<std::byte>(), known_dtype(matrix.dtype()), shape, strides};
}

mx::array dense_array(const mx::array& x, mx::Stream stream) {
  return x.flags().row_contiguous ? x : scheduled_copy(x, stream);
}

TensorView allocate(mx::array& out) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
  return {out.data<std::byte>(), known_dtype(out.dtype()), sizes_of(out)};
}

Views::Views(For purpose, mx::Stream stream) : purpose_(purpose), stream_(stream) {
  if (on_metal(stream)) device_.type = DeviceType::kMetal;
  if (!on_cuda(stream)) return;
  device_ = {DeviceType::kCuda, cuda_index(stream)};
  if (purpose_ == For::kCuda) cuda_.inputs.reserve(8), cuda_.outputs.reserve(4);
}

const std::byte* Views::memory_of(const mx::array& x) {
  if (purpose_ == For::kCpu) return x.data<std::byte>();
  cuda_.inputs.push_back(x);
  return cuda_memory(x);
}

mx::array Views::copied(const mx::array& x) {
  if (purpose_ == For::kCpu) return scheduled_copy(x, stream_);
  cuda_.temporaries.push_back(dense_on_cuda(x, stream_));
  return cuda_.temporaries.back();
}

mx::array Views::dense(const mx::array& x) { return x.flags().row_contiguous ? x : copied(x); }

ConstTensorView Views::view(const mx::array& x, std::vector<std::int64_t> shape,
                            std::vector<std::int64_t> strides) {
  const DType dtype = known_dtype(x.dtype());
  if (strides.empty()) return {memory_of(x), dtype, shape, device_};
  return {memory_of(x), dtype, shape, strides, device_};
}

// x flattened to (rows, last dimension). Where strides cannot say that, or `dense` asks for rows
// without gaps and they have some, a copy is viewed instead.
ConstTensorView Views::rows_view(const mx::array& x, bool dense) {
  const std::int64_t rows = rows_of(x.shape()), features = x.shape(-1);
  auto stride = row_stride(x);
  if (stride && dense && features > 1 && x.strides(-1) != 1) stride.reset();
  if (stride) return view(x, {rows, features}, {*stride, x.strides(-1)});
  return view(copied(x), {rows, features});
}

TensorView Views::blank(const mx::array& x, std::vector<std::int64_t> shape,
                        std::vector<std::int64_t> strides) {
  const auto dtype = dtype_of(x.dtype());
  if (!dtype && viewable_) {
    std::ostringstream reason;
    reason << "no kernel takes dtype " << x.dtype();
    viewable_ = Support::no(reason.str());
  }
  const DType known = dtype.value_or(DType::kFloat32);
  if (strides.empty()) return {nullptr, known, shape, device_};
  return {nullptr, known, shape, strides, device_};
}

ConstTensorView Views::dense_input(const mx::array& x, std::vector<std::int64_t> shape) {
  if (purpose_ == For::kMetal) inputs_.push_back(row_contiguous(x, stream_));
  return blank(x, std::move(shape));
}

ConstTensorView Views::rows(const mx::array& x) {
  if (has_memory()) return rows_view(x, true);
  return dense_input(x, {rows_of(x.shape()), x.shape(-1)});
}

ConstTensorView Views::strided_rows(const mx::array& x) {
  if (has_memory()) return rows_view(x, false);
  return dense_input(x, {rows_of(x.shape()), x.shape(-1)});
}

ConstTensorView Views::line(const mx::array& x) {
  const auto size = static_cast<std::int64_t>(x.size());
  return has_memory() ? view(dense(x), {size}) : dense_input(x, {size});
}

ConstTensorView Views::matrix(const mx::array& x) {
  if (has_memory()) return view(x, {x.shape(0), x.shape(1)}, {x.strides(0), x.strides(1)});
  if (purpose_ == For::kQuestion) return blank(x, {x.shape(0), x.shape(1)});
  inputs_.push_back(x);
  return blank(x, {x.shape(0), x.shape(1)}, {x.strides(0), x.strides(1)});
}

ConstTensorView Views::vector(const mx::array& x) {
  if (has_memory()) return view(x, {x.shape(0)}, {x.strides(0)});
  return dense_input(x, {x.shape(0)});
}

ConstTensorView Views::weight(const mx::array& w) {
  return has_memory() ? matrix(w) : dense_input(w, {w.shape(0), w.shape(1)});
}

// An array's memory may have moved since the weight was made, and the node may be gone before
// kernels have read it.
Weight Views::weight(const Weight& w) {
  const mx::array* const array = array_of(w);
  if (purpose_ != For::kCuda || array == nullptr) return w;
  cuda_.temporaries.push_back(*array);
  return weight(*array);
}

ConstTensorView Views::tensor(const mx::array& x) {
  if (!has_memory()) return dense_input(x, sizes_of(x));
  const mx::array source = x.shape(-1) <= 1 || x.strides(-1) == 1 ? x : copied(x);
  return view(source, sizes_of(x), {source.strides().begin(), source.strides().end()});
}

ConstTensorView Views::dense_tensor(const mx::array& x) {
  return has_memory() ? view(dense(x), sizes_of(x)) : dense_input(x, sizes_of(x));
}

TensorView Views::out_tensor(mx::array x) { return output(x, sizes_of(x)); }

void Views::out_nothing(mx::array x) {
  if (has_memory()) x.set_data(mx::allocator::malloc(0));
}

void Views::hand_on(const mx::array& input, mx::array x) {
  if (has_memory()) x.copy_shared_buffer(input);
}

Dropout Views::dropout(float p, const mx::array& seed, const mx::array& offset) {
  Dropout dropout{p};
  if (purpose_ == For::kMetal) {
    inputs_.push_back(row_contiguous(seed, stream_));
    inputs_.push_back(row_contiguous(offset, stream_));
  } else if (purpose_ == For::kCuda) {
    dropout.state = reinterpret_cast<const std::uint64_t*>(memory_of(seed));
    dropout.offset_state = reinterpret_cast<const std::uint64_t*>(memory_of(offset));
  }
  return dropout;
}

TensorView Views::output(mx::array x, std::vector<std::int64_t> shape) {
  if (purpose_ == For::kCpu) {
    x.set_data(mx::allocator::malloc(x.nbytes()));
    return {x.data<std::byte>(), known_dtype(x.dtype()), shape};
  }
  if (purpose_ == For::kCuda) {
    allocate_on_cuda(x, stream_);
    cuda_.outputs.push_back(x);
    return {cuda_memory(x), known_dtype(x.dtype()), shape, device_};
  }
  if (purpose_ == For::kMetal) outputs_.push_back(x);
  return blank(x, std::move(shape));
}

TensorView Views::out_rows(mx::array x) { return output(x, {rows_of(x.shape()), x.shape(-1)}); }

TensorView Views::out_line(mx::array x) { return output(x, {static_cast<std::int64_t>(x.size())}); }

}  // namespace graft::mlx::detail
