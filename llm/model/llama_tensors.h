#pragma once

#include "graft/llm/model/llama_config.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {

/// Checks that the file lists the tensors of a Llama model, in the shapes of `config`, and no
/// others: one that Graft would pass over, as a bias, changes what the model computes. Looks at the
/// header alone, so that nothing of a false file is loaded. Throws UserError.
void check_llama_tensors(const GgufFile& file, const LlamaConfig& config);

}  // namespace graft::llm
