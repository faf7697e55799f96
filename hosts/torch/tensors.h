#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "graft/tensor_view.h"
#include "graft/weight.h"

// Torch's tensors as the kernels take them. Only torch's stable interface is used here, so that one
// library serves every torch from 2.10 on.

namespace graft::pytorch {

using torch::stable::Tensor;

/// Element type, or Error (kUnsupported) naming `name` for one that no kernel takes.
DType dtype_of(const Tensor& tensor, const char* name);

/// The tensor as it lies, of one dimension or more; `name` is what errors call it. Throws Error.
ConstTensorView view_of(const Tensor& tensor, const char* name);
ConstTensorView view_of(const std::optional<Tensor>& tensor, const char* name);

/// The tensor itself, or a copy in that type if it has another one.
Tensor cast(const Tensor& tensor, DType dtype);

/// W (out_features, in_features) as it lies, to multiply in `multiply`: of a copy in that type,
/// which the handle keeps alive, if it has another one.
Weight plain_weight(const Tensor& weight, DType multiply);

/// Throws Error unless `output`, which is dense, and `input` are apart from each other in memory.
void require_apart(const ConstTensorView& output, const ConstTensorView& input, const char* name);

/// A dense matrix that was made here, to be written by the kernels as its transpose.
TensorView transposed(const Tensor& tensor);

/// A tensor (..., features) as a matrix (rows, features): a view of it wherever strides allow, else
/// of a copy, which this keeps alive. A tensor of one dimension is one row.
class Rows {
 public:
  /// `dense`: the elements of a row lie side by side, as the kernels of softmax and norms want
  /// them.
  Rows(const Tensor& tensor, const char* name, bool dense = false);
  const ConstTensorView& view() const { return view_; }   ///< (rows, features).
  std::int64_t count() const { return view_.dim(0); }     ///< Rows.
  std::int64_t features() const { return view_.dim(1); }  ///< Elements of a row.

 private:
  Tensor owner_;
  ConstTensorView view_;
};

/// A tensor without gaps: itself, or a copy, which this keeps alive; absent if there is none.
class Dense {
 public:
  Dense(const std::optional<Tensor>& tensor, const char* name);  ///< `name` is for errors.
  const ConstTensorView& view() const { return view_; }          ///< Of it, or absent.

 private:
  std::optional<Tensor> owner_;
  ConstTensorView view_;
};

/// A new dense tensor of `like`'s dimensions, but `features` in the last one, of its element type
/// and on its device.
Tensor new_rows(const Tensor& like, std::int64_t features);

/// A new dense tensor of float32 on `like`'s device.
Tensor new_floats(const Tensor& like, std::initializer_list<std::int64_t> shape);

/// What stands for an output that was not asked for: in Python, None. Making a tensor of no
/// elements takes as long as making any other.
inline Tensor no_tensor() { return Tensor(); }

/// A dense tensor of one dimension that was made here, to write.
TensorView vector(const Tensor& tensor);

/// A dense tensor (..., features) that was made here, as a matrix to write.
TensorView matrix(const Tensor& tensor, std::int64_t rows, std::int64_t features);

/// Where the two numbers of a dropout with chance `p` lie; null without dropout. Throws Error.
const std::uint64_t* random_numbers(double p, const std::optional<Tensor>& rng, const Tensor& x);

/// Throws on what was caught, an Error as an exception whose text opens with "graft <code>: ".
[[noreturn]] void rethrow();

/// Runs the body of an op: from what it throws Python makes a GraftError.
template <class F>
auto guarded(const F& body) -> decltype(body()) {
  try {
    return body();
  } catch (...) {
    rethrow();
  }
}

}  // namespace graft::pytorch
