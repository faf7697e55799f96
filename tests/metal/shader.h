#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "metal/machine.h"

namespace graft::standin {

/// What a kernel is given for one of its [[buffer(n)]] parameters.
struct Buffer {
  void* data = nullptr;
  std::size_t bytes = 0;
  bool initialized = true;  ///< False for an output that holds nothing yet.
  std::size_t offset = 0;   ///< Where in it the kernel's pointer is.
};

/// One kernel of a Metal source text, compiled as C++ with notes of its memory accesses.
class Shader {
 public:
  /// Takes the first kernel of `text`, as MLX writes it: a template with an explicit instantiation,
  /// or no template. Objects are kept in `cache`, a folder, by the text and the stand-in's headers.
  /// Throws std::runtime_error with the compiler's messages, whose lines are those of `text`.
  Shader(const std::string& text, const std::string& cache);
  ~Shader();
  Shader(const Shader&) = delete;
  Shader& operator=(const Shader&) = delete;

  /// Runs the kernel on copies of the buffers, in order of their numbers, and copies back what is
  /// not const. Returns what went wrong, with the text's line; "" if nothing.
  std::string launch(Machine& machine, const std::vector<Buffer>& buffers, const Extent& grid,
                     const Extent& group) const;

 private:
  using Enter = void (*)(void* const* buffers, const Thread& thread);

  std::string with_line(std::string fault) const;

  std::string object_;
  void* library_ = nullptr;
  Enter enter_ = nullptr;
  std::vector<std::string> names_;  // of the buffers
  std::vector<bool> constant_;
};

}  // namespace graft::standin
