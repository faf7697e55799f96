#pragma once

#include <string>
#include <unordered_map>

#include "graft/llm/weights/gguf_file.h"
#include "mlx/array.h"

namespace graft::llm {

namespace mx = ::mlx::core;

/// Reads the data of every tensor of a file, which needs no more than permission to read. Under its
/// name each is
///
///     F32, F16, BF16      as it is
///     Q4_0, Q4_1, Q8_0    words of uint32 with an element after another from the low bits on;
///     beside
///                         "x.weight" stand "x.scales" and "x.biases", float16, one for 32
///                         elements: element = scale · word's + bias, as mx::dequantize takes them
///     Q4_K, Q6_K          float16
///
/// Throws UserError if the file is no longer as long as its header says, or for another type.
std::unordered_map<std::string, mx::array> read_gguf_tensors(const GgufFile& file);

}  // namespace graft::llm
