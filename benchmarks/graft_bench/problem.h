#pragma once

#include <mlx/mlx.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "benchmarks/graft_bench/cases.h"
#include "graft/mlx/linear.h"
#include "graft/tensor_view.h"

namespace graft::bench {

namespace mx = ::mlx::core;

/// Memory on a cache line's boundary, which MLX's own is not.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  explicit Buffer(const mx::array& array);  ///< A copy.

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
};

/// One set of tensors for a case, twice: as MLX arrays for what runs under MLX, and in aligned
/// memory for what is called directly. A linear has no adapter.
struct Tensors {
  Tensors(const Case& item, int seed);

  mx::array x;    ///< (batch, sequence, in_features)
  mx::array dy;   ///< (batch, sequence, out_features)
  mx::array w;    ///< (out_features, in_features); empty for a delta
  mx::array a;    ///< (in_features, rank)
  mx::array b;    ///< (rank, out_features)
  Weight packed;  ///< Absent for a delta.

  Buffer raw_x, raw_dy, raw_w, raw_a, raw_b;
  Buffer y, dx, h, g, da, db;  ///< Outputs; h, g, da and db are float32 always.
};

/// Sets that a measurement goes round in: as many as make up `rotate_bytes` of what one call
/// touches, so that in between it has left caches smaller than that; 1 if `rotate_bytes` is 0.
std::vector<Tensors> make_sets(const Case& item, double rotate_bytes);

/// Twice the cores' own caches: as in a model, a call finds what it needs in the cache that all
/// cores share, or in memory if it is too much for that.
double usual_rotate_bytes();

}  // namespace graft::bench
