#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/llm/model/projection.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {

/// The sizes of a Llama model, as its GGUF metadata gives them.
struct GRAFT_EXPORT LlamaConfig {
  std::string name;  ///< general.name, or empty.
  /// What the model goes by, for adapters that name theirs; empty if not known.
  std::vector<std::string> names = {};
  int num_layers = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int context_length = 0;
  float rope_theta = 10000.0f;
  float rope_scaling_factor = 1.0f;  ///< Positions are divided by it.
  float rms_norm_eps = 1e-5f;

  int in_features(Projection projection) const;
  int out_features(Projection projection) const;
};

/// Reads and checks the sizes. Throws UserError if the architecture is another one, a size is
/// missing or impossible, or a key of the architecture asks for something this model code does not
/// do or know.
GRAFT_EXPORT LlamaConfig read_llama_config(const GgufFile& file);

}  // namespace graft::llm
