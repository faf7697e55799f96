#pragma once

#include <optional>
#include <string>

#include "apps/graft/adapter/adapter_file.h"
#include "apps/graft/model/gguf_file.h"
#include "apps/graft/model/llama.h"
#include "apps/graft/tokenizer/tokenizer.h"

namespace graft::app {

/// Flags of every command that runs a model.
struct ModelFlags {
  std::string model;
  std::string dtype = "f32";
  int threads = 0;
};

/// A model ready to run, from one GGUF file.
struct LoadedModel {
  /// Sets the number of threads too. `training` also packs the weights for gradients.
  LoadedModel(const ModelFlags& flags, bool training);

  const GgufFile file;
  const Tokenizer tokenizer;
  const Llama llama;
};

/// Uses `threads` threads, 0 for all cores, in Graft's kernels and in the BLAS behind MLX.
void use_threads(int threads);

/// An adapter from a folder, held together with the view of it that the model takes.
class AttachedAdapter {
 public:
  /// No adapter if `folder` is empty.
  AttachedAdapter(const std::string& folder, const LlamaConfig& model);

  const Adapter* get() const { return adapter_ ? &*adapter_ : nullptr; }

 private:
  std::optional<SavedAdapter> saved_;
  std::optional<Adapter> adapter_;
};

}  // namespace graft::app
