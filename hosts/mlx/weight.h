#pragma once

#include <mlx/mlx.h>

#include <cstddef>
#include <memory>
#include <optional>

#include "graft/packed_weight.h"

namespace graft::mlx {

namespace mx = ::mlx::core;

/// A frozen base weight W (out_features, in_features), made ready once for the kernels of a device.
///
/// CPU kernels read W in panels, and the array it came from is not kept. Metal kernels read it as
/// it lies: there it is that array, row-major and in its own element type. One that was made for
/// the CPU is not used by Metal's kernels; one that was made for Metal is a plain weight elsewhere.
class FrozenWeight {
 public:
  explicit FrozenWeight(PackedWeight panels);  ///< For the CPU.
  explicit FrozenWeight(mx::array rows);  ///< For Metal: (out_features, in_features), evaluated.

  int out_features() const;      ///< Rows of W.
  int in_features() const;       ///< Columns of W.
  mx::Dtype dtype() const;       ///< How products multiply.
  bool serves_backward() const;  ///< dx = dy·W has a kernel; an array serves both ways.
  std::size_t nbytes() const;    ///< Memory held.

  const std::shared_ptr<const PackedWeight>& panels() const { return panels_; }  ///< Null on Metal.
  const std::optional<mx::array>& rows() const { return rows_; }  ///< Absent on the CPU.

 private:
  std::shared_ptr<const PackedWeight> panels_;
  std::optional<mx::array> rows_;
};

/// Shared by every graph that uses it, and safe to use from any number of threads.
using Weight = std::shared_ptr<const FrozenWeight>;

/// Makes `w` (out_features, in_features) ready for the device of `s`, evaluating it if need be; the
/// array may be dropped afterwards. `dtype` decides how products multiply: float32, bfloat16, or on
/// Metal float16 (see PackedWeight). `backward` false halves the CPU's memory for weights that no
/// gradient passes through. Throws std::invalid_argument.
Weight pack(const mx::array& w, mx::Dtype dtype = mx::float32, bool backward = true,
            mx::StreamOrDevice s = {});

/// The array that `w` was made from, rounded to its dtype; for the CPU evaluated lazily, each time.
mx::array unpack(const Weight& w, mx::StreamOrDevice s = {});

}  // namespace graft::mlx
