#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "graft/context.h"
#include "graft/error.h"
#include "graft/lora.h"
#include "graft/rope.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft {

/// What an operation asks of its tensors, once, at the edge, before it touches any of them. Every
/// failure throws Error (kInvalidArgument): `[op] tensor: expected ..., got ...`.
class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  [[noreturn]] void fail(const std::string& message) const {
    fail(ErrorCode::kInvalidArgument, message);
  }
  [[noreturn]] void fail(ErrorCode code, const std::string& message) const;

  /// Throws `message` as kInvalidArgument unless `condition` holds. A message that has to be put
  /// together is for `if` and fail(): a call may take less time than its text.
  void that(bool condition, const char* message) const {
    if (!condition) fail(message);
  }

  /// Given, of this rank, and with memory behind it unless it has no elements.
  void rank(const char* tensor, const ConstTensorView& view, int rank) const;

  /// Given and of this shape, and with memory behind it unless it has no elements.
  void shape(const char* tensor, const ConstTensorView& view,
             std::initializer_list<std::int64_t> shape) const;

  void dtype(const char* tensor, const ConstTensorView& view,
             std::initializer_list<DType> allowed) const;

  /// float32, float16 or bfloat16.
  void floating(const char* tensor, const ConstTensorView& view) const;

  void device(const char* tensor, const ConstTensorView& view, Device device) const;

  /// The last axis has stride 1, where that can matter.
  void last_axis_dense(const char* tensor, const ConstTensorView& view) const;

  /// Row-major without gaps.
  void dense(const char* tensor, const ConstTensorView& view) const;

  /// No two elements share an address, so an output can be written in any order.
  void writable(const char* tensor, const ConstTensorView& view) const;

  /// One more matrix beside `like`: of its shape, dtype and device, rows dense.
  void matrix(const char* tensor, const ConstTensorView& view, const ConstTensorView& like) const;

  /// The same, and writable.
  void output(const char* tensor, const ConstTensorView& view, const ConstTensorView& like) const;

  /// An output whose rows are written whole: rows dense, writable, on `device`.
  void rows_output(const char* tensor, const TensorView& view, Device device) const;

  /// (size) of float32, dense, on the device of `like`.
  void floats(const char* tensor, const ConstTensorView& view, std::int64_t size,
              const ConstTensorView& like) const;

  /// A finite number of at least 0.
  void epsilon(float eps) const;

  /// A finite number above 0.
  void scale(float scale) const;

  /// theta, position and scaling factor make sense.
  void rotary(const Rotary& rotary) const;

  /// The context is for the device of the tensors.
  void place(const Context& context, Device device) const;

 private:
  const char* op_;
};

/// Throws Error (kUnsupported) with the reason, unless `support` says yes.
void require(const char* op, const Support& support);

/// Yes if `view` is absent, float32 or bfloat16: what CPU kernels take. "No" names the tensor.
Support float_on_cpu(const char* tensor, const ConstTensorView& view);

/// Yes unless the dropout's seed and offset are read from a device's memory.
Support dropout_by_value(const Dropout& dropout);

/// The first "no" among `parts`, or yes.
Support all_of(std::initializer_list<Support> parts);

}  // namespace graft
