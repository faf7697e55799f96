#pragma once

#include <map>
#include <stdexcept>
#include <string>

namespace graft::standin {

/// A file of MLX's kernels is not where the MLX that this is built with has its headers.
class MissingText : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The text of a file of MLX's kernels, named from mlx/backend/metal/kernels, with those it
/// includes put in their places, as MLX itself compiles it. Two things are written otherwise:
///
/// - Function constants, which Metal sets when it makes a pipeline, become plain constants with the
///   values given, and the buffers that exist only with some of them always exist.
/// - What is said for each address space anew is said once: here there is only one.
///
/// kernels/utils.h is left out: it rests on the insides of Apple's library. What a kernel uses of
/// it is the caller's to put before the text.
std::string mlx_kernel_text(const std::string& file, const std::map<std::string, bool>& constants);

/// What MLX writes after a template to have a kernel of it, such as gemm<float, 64>.
std::string instantiate(const std::string& kernel);

}  // namespace graft::standin
