#pragma once

#include <mlx/mlx.h>

#include <optional>
#include <string>

#include "graft/tensor_view.h"
#include "graft/weight.h"

namespace graft::mlx::detail {

namespace mx = ::mlx::core;

// The library's element type for MLX's; none if it has none.
std::optional<DType> dtype_of(mx::Dtype dtype);
mx::Dtype dtype_of(DType dtype);

// Product of all dimensions but the last: the rows that x flattens to.
std::int64_t rows_of(const mx::Shape& shape);

// "(2, 64, 512)".
std::string shape_string(const mx::Shape& shape);

// `shape` with its last dimension replaced.
mx::Shape with_last(mx::Shape shape, mx::ShapeElem last);

// Throws std::invalid_argument "[op] tensor: expected ..., got ...".
[[noreturn]] void reject(const char* op, const char* tensor, const std::string& expected,
                         const std::string& got);
void expect_shape(const char* op, const char* tensor, const mx::array& array,
                  const mx::Shape& expected);
void expect_floating(const char* op, const char* tensor, const mx::array& array);
void expect_matrix(const char* op, const char* tensor, const mx::array& array);
void expect_present(const char* op, const char* name, const Weight& weight);

// The array that a weight was made from, if it owns one: a plain weight, for any stream.
const mx::array* array_of(const Weight& weight);

// (out_features, in_features).
mx::Shape shape_of(const Weight& weight);

// A view of the right shape and element type over nothing, for asking `graft::supports` about
// arrays that are not evaluated yet. The dtype must be one the library knows.
TensorView shape_only(mx::Dtype dtype, std::initializer_list<std::int64_t> shape);
TensorView shape_only(const mx::Shape& shape, mx::Dtype dtype);
// x flattened to rows, likewise.
TensorView rows_only(const mx::Shape& shape, mx::Dtype dtype);

// Views of evaluated arrays.
ConstTensorView matrix_view(const mx::array& matrix);
ConstTensorView vector_view(const mx::array& vector);

// x flattened to (rows, last dimension). Where strides cannot say that, or `dense` asks for rows
// without gaps and they have some, a copy is scheduled on `stream` first and viewed instead.
ConstTensorView rows_view(const mx::array& x, mx::Stream stream, bool dense = false);

// All elements of x in one row-major line; copied first if strides cannot say that.
ConstTensorView flat_view(const mx::array& x, mx::Stream stream);

// x itself if it is row-contiguous, else a copy that is scheduled on `stream`.
mx::array dense_array(const mx::array& x, mx::Stream stream);

// x in its own shape, copied first if the last axis has gaps; and dense, copied first if it is not.
ConstTensorView strided_view(const mx::array& x, mx::Stream stream);
ConstTensorView dense_view(const mx::array& x, mx::Stream stream);

// Allocates an output and views it: as rows, as one line, and in its own shape.
TensorView allocate_rows(mx::array& out);
TensorView allocate_flat(mx::array& out);
TensorView allocate(mx::array& out);

}  // namespace graft::mlx::detail
