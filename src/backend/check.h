#pragma once

#include <initializer_list>
#include <string>

#include "graft/error.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

// Checks at the edge of every operation. Each throws Error with a message that opens with the
// operation and the tensor: `[lora_linear] b: expected (8, 512), got (16, 512)`.

namespace graft::check {

/// An operation's name, and what its tensors are checked for.
class Op {
 public:
  explicit Op(const char* name) : name_(name) {}

  [[noreturn]] void fail(const char* tensor, const std::string& message,
                         ErrorCode code = ErrorCode::kInvalidArgument) const;

  void require(bool holds, const char* tensor, const std::string& message) const {
    if (!holds) fail(tensor, message);
  }
  void present(const ConstTensorView& view, const char* tensor) const;
  void shape(const ConstTensorView& view, const char* tensor,
             std::initializer_list<std::int64_t> expected) const;
  void rank(const ConstTensorView& view, const char* tensor, int expected) const;
  void dtype(const ConstTensorView& view, const char* tensor, DType expected) const;
  /// Elements of a row follow each other, and no two rows overlap.
  void dense_rows(const ConstTensorView& view, const char* tensor) const;
  /// No two elements share memory: a tensor that is written through any strides.
  void writable(const ConstTensorView& view, const char* tensor) const;
  void same_device(std::initializer_list<ConstTensorView> views) const;
  /// Throws kUnsupported with the reason unless `support` says yes.
  void supported(const Support& support) const;

 private:
  std::string name_;
};

/// Float32 or bfloat16, which CPU kernels take; "no" names the tensor.
Support float_on_cpu(const ConstTensorView& view, const char* tensor);

/// The first "no" among `parts`, or yes.
Support all_of(std::initializer_list<Support> parts);

}  // namespace graft::check
