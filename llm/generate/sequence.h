#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "graft/export.h"
#include "graft/llm/model/kv_cache.h"
#include "graft/llm/model/llama.h"

namespace graft::llm {

/// One text as the model has read it so far: its tokens, and their keys and values. The model's own
/// adapter counts; once another takes its place, rewind to 0, as keys and values are the adapter's.
class GRAFT_EXPORT Sequence {
 public:
  /// `model` must outlive the sequence.
  explicit Sequence(const Llama& model);
  /// Takes over keys and values of `tokens`, one row of them.
  Sequence(const Llama& model, std::vector<int> tokens, KvCache cache);

  int length() const { return cache_.length(); }
  const std::vector<int>& tokens() const { return tokens_; }
  const KvCache& cache() const { return cache_; }
  const Llama& model() const { return model_; }

  /// Reads tokens without asking what comes next, in chunks. Asks `interrupted` between chunks, if
  /// there is such a function, and stops there on yes; the result says whether all were read.
  /// Throws UserError, as `feed` does, on a token that the model does not have and where its
  /// context is full.
  bool prefill(std::span<const int> tokens, const std::function<bool()>& interrupted = {});

  /// Reads one token and gives the logits of the next. They are valid until the next call.
  std::span<const float> feed(int token);

  /// Forgets everything after the first `length` tokens.
  void rewind(int length);

 private:
  const Llama& model_;
  std::vector<int> tokens_;
  KvCache cache_;
  std::optional<mx::array> logits_;
};

/// Throws UserError if `prompt` is empty, or leaves no room in the model's context for a token.
GRAFT_EXPORT void check_fits(const Llama& model, std::span<const int> prompt);

}  // namespace graft::llm
