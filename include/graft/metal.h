#pragma once

#include <array>
#include <string>
#include <variant>
#include <vector>

#include "graft/tensor_view.h"

/// Kernels for Apple GPUs, as text. The core cannot run them: a host that has Metal compiles and
/// launches them, MLX through its `metal_kernel`, which writes the kernel's signature itself.
namespace graft::metal {

/// One launch, all that is to know of it. Made by functions of shapes and types alone.
struct Call {
  /// A template argument of the kernel, which its text names.
  struct Argument {
    std::string name;                      ///< As the text says it.
    std::variant<int, bool, DType> value;  ///< An element type becomes the type of that name.
  };

  std::string kernel;                          ///< A name that is this text's alone.
  std::vector<std::string> inputs;             ///< Names of the arrays to read, in order.
  std::vector<std::string> strided;            ///< Inputs in any strides; others are row-major.
  std::vector<std::string> outputs;            ///< And to write; each is overwritten whole.
  std::string header;                          ///< Functions that the body calls.
  std::string body;                            ///< What is in the kernel's braces.
  std::vector<Argument> arguments;             ///< Of its template.
  std::array<int, 3> grid = {1, 1, 1};         ///< Threads in all; the last groups may be smaller.
  std::array<int, 3> threadgroup = {1, 1, 1};  ///< Threads of a group.
  int threadgroup_bytes = 0;  ///< Of threadgroup memory, of which there are 32 KiB.
};

}  // namespace graft::metal
