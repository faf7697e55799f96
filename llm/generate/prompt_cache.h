#pragma once

#include <span>
#include <string>

#include "graft/export.h"
#include "graft/llm/generate/sequence.h"

namespace graft::llm {

/// What keys and values are good for: they are those of one model, kept in one type, with one
/// adapter or none.
struct PromptCacheOwner {
  std::string model;  ///< Its file, for messages.
  std::string model_fingerprint;
  std::string dtype;
  std::string adapter;  ///< Its name or folder, for messages; empty without an adapter.
  std::string adapter_fingerprint;
};

/// Writes what a sequence has read into a safetensors file, in one step: keys and values under
/// "layers.N.keys" and "layers.N.values", tokens and owner in its metadata. Throws UserError.
GRAFT_EXPORT void save_prompt_cache(const std::string& path, const Sequence& sequence,
                                    const PromptCacheOwner& owner);

/// Gives a sequence back, rewound to what it has in common with `prompt`, less the prompt's last
/// token. Throws UserError if the file is damaged or belongs to another owner.
GRAFT_EXPORT Sequence load_prompt_cache(const std::string& path, const Llama& model,
                                        const PromptCacheOwner& owner, std::span<const int> prompt);

}  // namespace graft::llm
