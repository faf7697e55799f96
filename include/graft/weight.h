#pragma once

#include <any>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "graft/export.h"
#include "graft/tensor_view.h"

namespace graft {

/// Which way a weight is multiplied.
enum class Direction : std::uint8_t {
  kForward,   ///< y = x·Wᵀ.
  kBackward,  ///< dx = dy·W.
};

/// Which products a packed weight can serve.
enum class Packing : std::uint8_t {
  kForward,             ///< y = x·Wᵀ only.
  kForwardAndBackward,  ///< dx = dy·W as well, at twice the memory.
};

/// How the elements of a weight are stored.
enum class WeightFormat : std::uint8_t {
  kDense,  ///< One number of `dtype()` an element.
};

/// A base weight W (out_features, in_features) as every operation takes it: packed once for the
/// kernels of a device, or a plain view that each call packs into its scratch.
///
/// A handle, cheap to copy. What is packed is shared, never changes, and may be used by any number
/// of threads; a layer holds it instead of the tensor it was made from, and makes it again after
/// that tensor has changed (merge, unmerge).
///
/// The element type decides how products multiply: float32 in true float32; a half type rounds the
/// other operand to itself too and accumulates in float32.
class GRAFT_EXPORT Weight {
 public:
  Weight() = default;  ///< No weight.
  /// A plain weight: refers to the memory of `view`, which must outlive every call that is given
  /// this.
  Weight(const ConstTensorView& view) : view_(view) {}  // NOLINT: implicit by design

  /// A plain weight that keeps its memory alive: `owner` lives as long as any copy of the handle.
  static Weight owning(const ConstTensorView& view, std::any owner);

  /// Packs `w` for `device` as `multiply`, reordered into what the register tiles of its kernels
  /// read; keeps nothing of `w`. For the CPU: (out_features, in_features), float32 or bfloat16, any
  /// strides, packed as kFloat32 or kBFloat16 for the instruction set in use (`cpu_isa()`). Throws
  /// Error.
  static Weight packed(const ConstTensorView& w, DType multiply = DType::kFloat32,
                       Packing directions = Packing::kForwardAndBackward, Device device = {});

  /// What nbytes() of such a packed weight would be. Throws Error.
  static std::size_t packed_nbytes(std::int64_t out_features, std::int64_t in_features,
                                   DType multiply = DType::kFloat32,
                                   Packing directions = Packing::kForwardAndBackward,
                                   Device device = {});

  /// A weight was given, packed or plain. The questions below are for a present one.
  bool present() const { return is_packed() || view_.present(); }
  bool is_packed() const { return storage_ != nullptr; }  ///< Not plain.
  const ConstTensorView& view() const { return view_; }   ///< A plain one's; absent if packed.
  const std::any* owner() const { return owner_.get(); }  ///< As given to `owning`, or null.
  std::int64_t out_features() const;                      ///< Rows of W.
  std::int64_t in_features() const;                       ///< Columns of W.
  DType dtype() const;                                    ///< How products multiply.
  WeightFormat format() const;                            ///< How elements are stored.
  Device device() const;                                  ///< Whose kernels can use it.
  bool serves(Direction direction) const;                 ///< A plain one serves both.
  std::size_t nbytes() const;  ///< Bytes kept alive: 0 for a view of somebody else's memory.

  /// Writes W back, (out_features, in_features) in any strides and any floating dtype: a packed one
  /// rounded to `dtype()`. For a weight in memory that the CPU can read. Throws Error.
  void unpack(const TensorView& w) const;

  /// The same packed weight, or views of the same memory.
  bool operator==(const Weight& other) const {
    return storage_ == other.storage_ && view_ == other.view_;
  }

  class Storage;
  /// What is packed, for the library's own kernels. Null if plain.
  const Storage* storage() const { return storage_.get(); }

 private:
  ConstTensorView view_;
  std::shared_ptr<const std::any> owner_;  // of the view's memory; null if the caller keeps it
  std::shared_ptr<const Storage> storage_;
};

}  // namespace graft
