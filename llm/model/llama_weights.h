#pragma once

#include <optional>
#include <string>
#include <unordered_map>

#include "graft/export.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/model/projection.h"
#include "graft/llm/weights/gguf_file.h"
#include "mlx/array.h"

namespace graft::llm {

namespace mx = ::mlx::core;

/// A token embedding as the file stores it: only the rows in use are widened to float32.
class GRAFT_EXPORT Embedding {
 public:
  /// Plain rows (vocab, hidden) of any float type.
  explicit Embedding(mx::array rows);
  /// Affine groups of 32 along a row, packed into uint32 words.
  Embedding(mx::array words, mx::array scales, mx::array biases);

  int vocab_size() const { return rows_.shape(0); }
  mx::array operator()(const mx::array& tokens) const;  ///< (..., hidden) float32.
  mx::array table() const;                              ///< (vocab, hidden) float32.

 private:
  mx::array rows_;
  std::optional<mx::array> scales_;
  std::optional<mx::array> biases_;
};

/// Swaps the rows of a q or k weight from GGUF's rotary order (the two halves of each pair next to
/// each other) back to Hugging Face's (all first halves of a head, then all second halves).
GRAFT_EXPORT mx::array rotary_rows_to_hugging_face(const mx::array& rows, int num_heads);

/// The tensors of a Llama model in a GGUF file, checked against its configuration and given out
/// one by one in float32, in Hugging Face's row order.
class GRAFT_EXPORT LlamaWeights {
 public:
  /// Throws UserError.
  explicit LlamaWeights(const GgufFile& file);

  const LlamaConfig& config() const { return config_; }

  Embedding embedding() const;
  mx::array head() const;  ///< (vocab, hidden); the embedding's table if the head is tied.
  bool head_is_tied() const;
  mx::array final_norm() const;                                  ///< (hidden)
  mx::array attention_norm(int layer) const;                     ///< (hidden)
  mx::array mlp_norm(int layer) const;                           ///< (hidden)
  mx::array projection(int layer, Projection projection) const;  ///< (out, in)

 private:
  mx::array tensor(const std::string& name) const;
  mx::array matrix(const std::string& name, int rows, int columns, int rotary_heads = 0) const;
  mx::array vector(const std::string& name, int size) const;

  std::string file_;
  std::unordered_map<std::string, mx::array> tensors_;
  LlamaConfig config_;
};

}  // namespace graft::llm
