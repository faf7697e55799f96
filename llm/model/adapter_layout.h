#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/llm/model/adapter_options.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/model/projection.h"
#include "mlx/array.h"

namespace graft::llm {

namespace mx = ::mlx::core;

/// One adapted matrix of the model.
struct GRAFT_EXPORT AdaptedModule {
  int layer = 0;
  Projection projection = Projection::kQ;
  int in_features = 0;
  int out_features = 0;

  /// "model.layers.3.self_attn.q_proj".
  std::string path() const;
};

/// The last `count` layers, as AdapterOptions wants them; -1 is all. Throws UserError.
GRAFT_EXPORT std::vector<int> last_layers(const LlamaConfig& config, int count);

/// A low-rank pair: A (in_features, rank) and B (rank, out_features), float32.
struct LoraPair {
  mx::array a;  ///< (in_features, rank)
  mx::array b;  ///< (rank, out_features)
};

/// The adapted matrices of a model in the order in which a forward pass meets them. That order is
/// the order of every list of pairs, gradients and optimizer moments in the program.
class GRAFT_EXPORT AdapterLayout {
 public:
  /// Throws UserError if an option is out of range for this model.
  AdapterLayout(const LlamaConfig& config, AdapterOptions options);

  const AdapterOptions& options() const { return options_; }
  const std::vector<AdaptedModule>& modules() const { return modules_; }
  bool all_layers() const { return options_.layers.empty(); }

  /// Where in `modules()` a matrix is, or -1 if it has no adapter.
  int find(int layer, Projection projection) const;

  std::int64_t num_parameters() const;

  /// Throws UserError unless there is one of `pairs` for each module, of its shapes.
  void check(const std::vector<LoraPair>& pairs) const;

  /// Fresh pairs: A uniform in ±1/√in_features (as PEFT: Kaiming uniform with a = √5), B zero.
  std::vector<LoraPair> initial_pairs(std::uint64_t seed) const;

 private:
  AdapterOptions options_;
  std::vector<AdaptedModule> modules_;
  std::vector<int> slots_;  // layer · kNumProjections + projection → module, or -1
};

}  // namespace graft::llm
