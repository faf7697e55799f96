#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "graft/tensor_view.h"

namespace graft {

/// Which products a packed weight can serve.
enum class Packing {
  kForward,             ///< y = x·Wᵀ only.
  kForwardAndBackward,  ///< dx = dy·W as well, at twice the memory.
};

/// A base weight W (out_features, in_features), reordered once into the panels that the CPU's
/// register tiles read. It owns its memory and keeps nothing of the tensor it was made from, so a
/// layer can hold it instead of the weight. After the weight changes (merge, unmerge), make it
/// again.
///
/// The element type decides how products multiply: float32 in true float32; bfloat16 rounds the
/// other operand to bfloat16 too and accumulates in float32.
class PackedWeight {
 public:
  /// Packs `w`, (out_features, in_features), float32 or bfloat16, any strides, as `dtype`,
  /// kFloat32 or kBFloat16. Throws Error.
  explicit PackedWeight(const ConstTensorView& w, DType dtype = DType::kFloat32,
                        Packing packing = Packing::kForwardAndBackward);
  PackedWeight(PackedWeight&&) noexcept;             ///< Leaves the other one empty.
  PackedWeight& operator=(PackedWeight&&) noexcept;  ///< Leaves the other one empty.
  ~PackedWeight();

  std::int64_t out_features() const;  ///< Rows of W.
  std::int64_t in_features() const;   ///< Columns of W.
  DType dtype() const;                ///< What it was packed as: kFloat32 or kBFloat16.
  bool serves_backward() const;       ///< Packed for kForwardAndBackward.
  std::size_t nbytes() const;         ///< Bytes held.

  /// Writes W back, (out_features, in_features) in any strides, float32 or bfloat16: what was
  /// packed, rounded to `dtype()`. Throws Error.
  void unpack(const TensorView& w) const;

  struct Impl;
  const Impl& impl() const { return *impl_; }  ///< For the library's own kernels.

 private:
  std::unique_ptr<Impl> impl_;
};

/// A base weight as an operation takes it: packed, or a plain (out_features, in_features) view that
/// each call packs into its scratch.
class BaseWeight {
 public:
  BaseWeight() = default;  ///< No weight.
  /// Refers to `packed`, which must outlive every call that is given this.
  BaseWeight(const PackedWeight& packed) : packed_(&packed) {}  // NOLINT: implicit by design
  /// Refers to the memory of `plain`, likewise.
  BaseWeight(const ConstTensorView& plain) : plain_(plain) {}  // NOLINT: implicit by design

  const PackedWeight* packed() const { return packed_; }   ///< Null if the weight is plain.
  const ConstTensorView& plain() const { return plain_; }  ///< Absent if packed.

  /// A weight was given, packed or plain.
  bool present() const { return packed_ != nullptr || plain_.present(); }

  /// Rows of W; of a present weight only, as the two below.
  std::int64_t out_features() const { return packed_ ? packed_->out_features() : plain_.dim(0); }
  /// Columns of W.
  std::int64_t in_features() const { return packed_ ? packed_->in_features() : plain_.dim(1); }
  /// Element type, which decides how products multiply.
  DType dtype() const { return packed_ ? packed_->dtype() : plain_.dtype(); }

 private:
  const PackedWeight* packed_ = nullptr;
  ConstTensorView plain_;
};

}  // namespace graft
