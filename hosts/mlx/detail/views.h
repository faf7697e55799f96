#pragma once

#include <mlx/mlx.h>

#include <optional>
#include <string>
#include <vector>

#include "graft/lora.h"
#include "graft/mlx/detail/cuda_runner.h"
#include "graft/supports.h"
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
// At least one dimension, and floating-point.
void expect_rows(const char* op, const char* tensor, const mx::array& array);
void expect_matrix(const char* op, const char* tensor, const mx::array& array);
void expect_present(const char* op, const char* name, const Weight& weight);
void expect_dropout(const char* op, float p);
// A finite number of at least 0, and one above 0.
void expect_epsilon(const char* op, float eps);
void expect_scale(const char* op, float scale);

// The array that a weight was made from, if it owns one: a plain weight, for any stream.
const mx::array* array_of(const Weight& weight);

// (out_features, in_features).
mx::Shape shape_of(const Weight& weight);

// A view of an evaluated matrix in memory of the CPU.
ConstTensorView matrix_view(const mx::array& matrix);

// x itself if it is row-contiguous, else a copy that is scheduled on `stream`.
mx::array dense_array(const mx::array& x, mx::Stream stream);

// Allocates an output and views it in its own shape.
TensorView allocate(mx::array& out);

// Makes an op's params of a node's arrays: on the CPU and on CUDA of their memory, copying what
// kernels cannot take as it lies and allocating outputs; for Metal of their shapes alone, and
// keeping the arrays in the order in which a plan counts them; and for `graft::supports` of arrays
// that are not evaluated.
//
// So an op's params are written once. Views are to be asked for in the order in which the params
// declare them, each once.
class Views {
 public:
  enum class For : std::uint8_t { kCpu, kCuda, kMetal, kQuestion };

  Views(For purpose, mx::Stream stream);

  // (rows, last dimension) without gaps.
  ConstTensorView rows(const mx::array& x);
  // The same in any strides, where that spares a copy.
  ConstTensorView strided_rows(const mx::array& x);
  // All elements in one line.
  ConstTensorView line(const mx::array& x);
  // A matrix, or a vector, in any strides; Metal takes no vectors with gaps.
  ConstTensorView matrix(const mx::array& x);
  ConstTensorView vector(const mx::array& x);
  // In its own shape, the last axis without gaps; and with none at all.
  ConstTensorView tensor(const mx::array& x);
  ConstTensorView dense_tensor(const mx::array& x);
  // W: a matrix in any strides, row-major for Metal.
  ConstTensorView weight(const mx::array& w);
  // One that a node keeps, as it is.
  Weight weight(const Weight& w);
  // Dropout of chance p by counters that are no views: Metal's plans read them from memory, CUDA's
  // kernels find them through `state`, and the CPU's are given them later.
  Dropout dropout(float p, const mx::array& seed, const mx::array& offset);

  TensorView out_rows(mx::array x);
  TensorView out_line(mx::array x);
  TensorView out_tensor(mx::array x);
  // An output that stays without memory, and one that is an input, as it lies.
  void out_nothing(mx::array x);
  void hand_on(const mx::array& input, mx::array x);

  // What a plan counts.
  const std::vector<mx::array>& inputs() const { return inputs_; }
  std::vector<mx::array>& outputs() { return outputs_; }

  // What CUDA's kernels read and write.
  const CudaArrays& cuda_arrays() const { return cuda_; }

  // "No" if an array had a dtype that the library cannot even view.
  const Support& viewable() const { return viewable_; }

 private:
  // Views are of memory, and not of shapes alone.
  bool has_memory() const { return purpose_ == For::kCpu || purpose_ == For::kCuda; }
  const std::byte* memory_of(const mx::array& x);
  // A copy in row-major order, made on the stream before what is viewed is read.
  mx::array copied(const mx::array& x);
  mx::array dense(const mx::array& x);
  ConstTensorView rows_view(const mx::array& x, bool dense);
  ConstTensorView view(const mx::array& x, std::vector<std::int64_t> shape,
                       std::vector<std::int64_t> strides = {});
  // A view of nothing.
  TensorView blank(const mx::array& x, std::vector<std::int64_t> shape,
                   std::vector<std::int64_t> strides = {});
  ConstTensorView dense_input(const mx::array& x, std::vector<std::int64_t> shape);
  TensorView output(mx::array x, std::vector<std::int64_t> shape);

  For purpose_;
  mx::Stream stream_;
  Device device_;
  Support viewable_;
  std::vector<mx::array> inputs_, outputs_;
  CudaArrays cuda_;
};

}  // namespace graft::mlx::detail
