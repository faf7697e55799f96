#pragma once

#include "graft/llm/model/llama_config.h"

namespace graft::llm::testing {

/// The sizes of a model that adapters are made for, of which there are no weights.
inline LlamaConfig small_config() {
  return {.name = {},
          .num_layers = 4,
          .hidden_size = 12,
          .intermediate_size = 20,
          .num_heads = 3,
          .num_kv_heads = 1,
          .head_dim = 4,
          .vocab_size = 50,
          .context_length = 64};
}

}  // namespace graft::llm::testing
