#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "graft/metal.h"

// What the rooms' plans are made with.
namespace graft::metal {

inline Operand input(int index) { return {Operand::Of::kInputs, index}; }
inline Operand output(int index) { return {Operand::Of::kOutputs, index}; }

// No operand: a view that is absent.
inline constexpr Operand kAbsent{Operand::Of::kInputs, -1};
inline bool is_absent(const Operand& operand) { return operand.index < 0; }

// Counts the views of a call, as graft/metal.h says: to be asked in the order of their declaration.
class Numbering {
 public:
  explicit Numbering(Operand::Of of) : of_(of) {}
  // The view's operand, kAbsent if the view is absent.
  Operand next(const ConstTensorView& view);
  // Of what is no view.
  Operand next() { return {of_, count_++}; }

 private:
  Operand::Of of_;
  int count_ = 0;
};

// One more of the plan's own.
Operand temporary(Plan& plan, DType dtype, std::vector<std::int64_t> shape);

// `operand`, or a temporary in its place if it is absent: for outputs that kernels write anyway.
Operand given_or(Plan& plan, const Operand& operand, DType dtype, std::vector<std::int64_t> shape);

// The bytes of a step's scalars. A struct of the kernel's text and its twin in C++ lie alike if
// their members are of 4 or 8 bytes.
template <class Scalars>
std::vector<std::byte> bytes_of(const Scalars& scalars) {
  static_assert(std::is_trivially_copyable_v<Scalars>);
  std::vector<std::byte> bytes(sizeof(Scalars));
  std::memcpy(bytes.data(), &scalars, sizeof(Scalars));
  return bytes;
}

}  // namespace graft::metal
