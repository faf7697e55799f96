#pragma once

#include <mlx/mlx.h>

#include <vector>

#include "graft/metal.h"
#include "graft/supports.h"

namespace graft::mlx::detail {

namespace mx = ::mlx::core;

// Whether calls on `stream` go to Metal kernels: it is on a GPU, and that is Metal's.
bool on_metal(mx::Stream stream);

// While it lives, calls of this thread build the graphs that they would build on Metal, whatever
// the stream. Such a graph can be looked at, not evaluated: MLX makes its Metal nodes elsewhere
// only within mx::export_function.
class MetalTracing {
 public:
  MetalTracing();
  ~MetalTracing();
  MetalTracing(const MetalTracing&) = delete;
  MetalTracing& operator=(const MetalTracing&) = delete;

 private:
  bool outer_;
};

// A node that launches `call` on arrays in the order of its inputs. `shapes` and `dtypes` are of
// its outputs.
std::vector<mx::array> launch(const metal::Call& call, const std::vector<mx::array>& inputs,
                              const std::vector<mx::Shape>& shapes,
                              const std::vector<mx::Dtype>& dtypes, mx::Stream stream);

}  // namespace graft::mlx::detail
