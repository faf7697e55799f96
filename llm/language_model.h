#pragma once

#include <mutex>
#include <string>

#include "graft/export.h"
#include "graft/llm/model/llama.h"
#include "graft/llm/model/model_names.h"
#include "graft/llm/tokenizer/tokenizer.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {

/// A language model ready to run, from one GGUF file, with the tokenizer that is in it.
///
///     LanguageModel model("SmolLM2-135M-Instruct.Q4_1.gguf", {.training = true});
///
/// Const calls may come from several threads.
struct GRAFT_EXPORT LanguageModel {
  /// Reads the file at `path`: the weights are dequantized and packed for the kernels. Throws
  /// UserError if it is damaged, or of a model that does not run here.
  explicit LanguageModel(const std::string& path, const LlamaOptions& options = {});
  /// The same for a file whose header was looked at before.
  explicit LanguageModel(GgufFile opened, const LlamaOptions& options = {});

  const GgufFile file;        ///< The header: what the file says of itself.
  const Tokenizer tokenizer;  ///< Text to tokens and back.
  Llama llama;                ///< The decoder, and the adapter that it holds, if any.

  /// Has `llama` hold the adapter in a folder, one of this library's or PEFT's, in place of the one
  /// before. Gives a line for people if it seems to be of another model of the same sizes, and else
  /// an empty one. Throws UserError, and the one before then stays.
  std::string attach(const std::string& adapter_folder);

  /// fingerprint_of_file of the model's file, taken when first asked for.
  const std::string& fingerprint() const;
  /// The file's path and fingerprint.
  ModelIdentity identity() const { return {file.name(), fingerprint()}; }

 private:
  mutable std::once_flag fingerprint_taken_;
  mutable std::string fingerprint_;
};

}  // namespace graft::llm
