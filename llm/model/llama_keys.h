#pragma once

#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {

/// Checks that every key of the architecture ("llama.…") is one that read_llama_config uses, or
/// that is known to change nothing that Graft computes: a key passed over unknown could change
/// every number. Throws UserError with the key's name.
void check_llama_keys(const GgufFile& file);

/// By what the file divides positions: 1, or the factor of linear scaling, which readers of this
/// format apply where a factor stands without a type. Throws UserError for another kind of scaling.
float rope_scaling_factor(const GgufFile& file);

}  // namespace graft::llm
