#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "apps/graft/user_error.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/model/llama.h"
#include "graft/llm/tokenizer/tokenizer.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::app {

/// Flags of every command that runs a model.
struct ModelFlags {
  std::string model;
  std::string dtype = "f32";
  int threads = 0;
};

/// What marks such as <|im_end|> in a user's words are.
inline ControlTokens control_tokens(bool parse_special) {
  return parse_special ? ControlTokens::kParsed : ControlTokens::kText;
}

/// What --dtype names. Throws UserError.
mx::Dtype dtype_named(const std::string& name);

/// A model ready to run, from one GGUF file.
struct LoadedModel {
  /// Sets the number of threads too. `training` also packs the weights for gradients. Throws
  /// UserError, before it reads them, if the weights would not fit into the memory that is left.
  LoadedModel(const ModelFlags& flags, bool training);

  const GgufFile file;
  const Tokenizer tokenizer;
  Llama llama;

  /// Puts an adapter from a folder on the model, in place of another, and says on standard error if
  /// it seems to be of another model. Throws UserError, and the one before then stays.
  void attach(const std::string& adapter_folder);

  /// fingerprint_of_file of the model's file, taken when first asked for.
  const std::string& fingerprint() const;

 private:
  mutable std::string fingerprint_;
};

/// Says on standard error what doubt_about_base found, if anything, of the adapter in `folder`.
void warn_of_base(const std::string& folder, const std::string& doubt);

/// For programs: the samples of a file that were cut off or left out, and where the first of each
/// kind stands.
nlohmann::ordered_json what_is_missing(const Dataset& data);

/// Uses `threads` threads, 0 for all cores, in Graft's kernels and in the BLAS behind MLX.
void use_threads(int threads);

}  // namespace graft::app
