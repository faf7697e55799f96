#include "graft/llm/train/memory_estimate.h"

#include <algorithm>
#include <array>
#include <deque>
#include <vector>

namespace graft::llm {
namespace {

constexpr std::int64_t kFloat = sizeof(float);

// Follows the memory of one evaluated graph, operation by operation.
class Live {
 public:
  explicit Live(int ahead) : ahead_(static_cast<std::size_t>(ahead)) {}

  void take(std::int64_t bytes) {
    now_ += bytes;
    peak_ = std::max(peak_, now_);
  }

  // An operation that allocates `outputs`, and is the last to read `inputs`. Where MLX allots
  // memory ahead of the operation that runs, what that one frees comes too late.
  void run(std::int64_t outputs, std::int64_t inputs) {
    take(outputs);
    leaving_.push_back(inputs);
    if (leaving_.size() <= ahead_) return;
    now_ -= leaving_.front();
    leaving_.pop_front();
  }

  std::int64_t peak() const { return peak_; }

 private:
  const std::size_t ahead_;
  std::int64_t now_ = 0;
  std::int64_t peak_ = 0;
  std::deque<std::int64_t> leaving_;
};

// Bytes of one layer's tensors.
struct Sizes {
  std::int64_t hidden, query, key, inner;  // (M, H), (M, Q), (M, K), (M, I)
  std::int64_t row;                        // one number a row of M
  std::int64_t logsumexp;

  Sizes(const LlamaConfig& config, const BatchShape& batch)
      : hidden(kFloat * batch.rows() * config.hidden_size),
        query(kFloat * batch.rows() * config.num_heads * config.head_dim),
        key(kFloat * batch.rows() * config.num_kv_heads * config.head_dim),
        inner(kFloat * batch.rows() * config.intermediate_size),
        row(kFloat * batch.rows()),
        logsumexp(kFloat * batch.rows() * config.num_heads) {}
};

// How far down gradients go in a layer, and which projections are adapted.
struct Gradients {
  bool out_of_layer = false;  // come in from the layer above
  bool into_layer = false;    // and on into the layer below
  bool through_norm = false;  // the norm between attention and the MLP
  bool through_attention = false;
  bool through_swiglu = false;
  std::array<bool, kNumProjections> adapted{};

  bool of(Projection projection) const { return adapted[index_of(projection)]; }
  bool of_qkv() const { return of(Projection::kQ) || of(Projection::kK) || of(Projection::kV); }
  bool of_gate_or_up() const { return of(Projection::kGate) || of(Projection::kUp); }
};

class Step {
 public:
  Step(const LlamaConfig& config, const AdapterLayout& layout, const BatchShape& batch, int ahead)
      : config_(config),
        layout_(layout),
        first_(layout.modules().front().layer),
        h_(kFloat * batch.rows() * layout.options().rank),
        size_(config, batch),
        live_(ahead) {}

  std::int64_t with_gradients(Activations activations) {
    const bool recompute = activations == Activations::kRecomputed;
    live_.take(kFloat * layout_.num_parameters());
    embed();
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      const bool held = layer >= first_;
      if (!held)
        forward(layer, Gradients{}, false);
      else if (recompute)
        forward(layer, Gradients{}, true);
      else
        forward(layer, gradients(layer), layer > first_);
    }
    live_.run(size_.hidden + 2 * size_.row, size_.hidden);  // losses and d(losses)/dx
    live_.run(size_.hidden, size_.hidden);                  // that, over the count of targets
    live_.take(size_.hidden);                               // no gradient into the last sum: zeros
    for (int layer = config_.num_layers - 1; layer >= first_; --layer) {
      if (recompute) {
        live_.run(size_.hidden + size_.row, size_.row);  // the norm before the layer, again
        forward(layer, gradients(layer), false);
        live_.run(0, size_.hidden);  // the normed output, which nothing reads here
      }
      backward(layer, gradients(layer));
    }
    return live_.peak();
  }

  std::int64_t forward_only() {
    live_.take(kFloat * layout_.num_parameters());
    embed();
    for (int layer = 0; layer < config_.num_layers; ++layer) forward(layer, Gradients{}, false);
    live_.run(size_.row, 2 * size_.hidden);
    return live_.peak();
  }

 private:
  Gradients gradients(int layer) const {
    Gradients g;
    for (const Projection projection : kAllProjections) {
      g.adapted[index_of(projection)] = layout_.find(layer, projection) >= 0;
    }
    g.out_of_layer = true;
    g.into_layer = layer > first_;
    g.through_attention = g.into_layer || g.of_qkv();
    g.through_norm = g.through_attention || g.of(Projection::kO);
    g.through_swiglu = g.through_norm || g.of_gate_or_up();
    return g;
  }

  std::int64_t h(int layer, Projection projection) const {
    return layout_.find(layer, projection) >= 0 ? h_ : 0;
  }

  // Gradients of A and B.
  std::int64_t pair(int layer, Projection projection) const {
    if (layout_.find(layer, projection) < 0) return 0;
    return kFloat * layout_.options().rank *
           (config_.in_features(projection) + config_.out_features(projection));
  }

  void embed() {
    live_.run(size_.hidden, 0);
    live_.run(size_.hidden + size_.row, size_.row);
  }

  // Projections that one operation makes of one input, and their y.
  struct Made {
    Projection projection;
    std::int64_t y;
  };
  using Siblings = std::vector<Made>;

  Siblings qkv() const {
    return {
        {Projection::kQ, size_.query}, {Projection::kK, size_.key}, {Projection::kV, size_.key}};
  }
  Siblings gate_up() const {
    return {{Projection::kGate, size_.inner}, {Projection::kUp, size_.inner}};
  }

  // Forward; each h stays whose pair has gradients.
  void project(int layer, const Siblings& siblings, const Gradients& g, std::int64_t freed) {
    std::int64_t made = 0;
    for (const auto& [projection, y] : siblings) {
      const std::int64_t low = h(layer, projection);
      made += y + low;
      if (!g.of(projection)) freed += low;
    }
    live_.run(made, freed);
  }

  // Backward: the gradients of each y and h are read for the last time.
  void project_back(int layer, const Siblings& siblings, std::int64_t dx, std::int64_t freed) {
    for (const auto& [projection, y] : siblings) {
      dx += pair(layer, projection);
      freed += y + h(layer, projection);
    }
    live_.run(dx, freed);
  }

  // From the normed input and the residual sum, both there, to those of the next layer. What `g`
  // needs stays, and the sum that came in if `keep_sum`.
  void forward(int layer, const Gradients& g, bool keep_sum) {
    const auto unless = [](bool kept, std::int64_t bytes) { return kept ? 0 : bytes; };
    const Sizes& s = size_;
    project(layer, qkv(), g, unless(g.of_qkv(), s.hidden));
    live_.run(s.query + s.logsumexp,
              unless(g.through_attention, s.query + 2 * s.key + s.logsumexp));
    project(layer, {{Projection::kO, s.hidden}}, g,
            unless(g.through_attention || g.of(Projection::kO), s.query));
    live_.run(2 * s.hidden + s.row,
              s.hidden + unless(keep_sum, s.hidden) + unless(g.through_norm, s.row));
    project(layer, gate_up(), g, unless(g.of_gate_or_up(), s.hidden));
    live_.run(s.inner, unless(g.through_swiglu, 2 * s.inner));
    project(layer, {{Projection::kDown, s.hidden}}, g, unless(g.of(Projection::kDown), s.inner));
    live_.run(2 * s.hidden + s.row,
              s.hidden + unless(g.through_norm, s.hidden) + unless(g.out_of_layer, s.row));
  }

  // From the gradients of the normed output and of the sum to those of what came in.
  void backward(int layer, const Gradients& g) {
    const auto when = [](bool kept, std::int64_t bytes) { return kept ? bytes : 0; };
    const Sizes& s = size_;
    live_.run(s.hidden, 3 * s.hidden + s.row);  // both gradients and the sum
    // Its dy stays as the gradient of the residual sum.
    project_back(layer, {{Projection::kDown, 0}}, when(g.through_swiglu, s.inner),
                 when(g.of(Projection::kDown), s.inner));
    if (!g.through_swiglu) return;
    live_.run(2 * s.inner, 3 * s.inner);
    project_back(layer, gate_up(), when(g.through_norm, s.hidden),
                 when(g.of_gate_or_up(), s.hidden));
    if (!g.through_norm) return;
    live_.run(s.hidden, 3 * s.hidden + s.row);
    project_back(layer, {{Projection::kO, 0}}, when(g.through_attention, s.query),
                 when(!g.through_attention, s.query));
    if (!g.through_attention) return;
    live_.run(s.query + 2 * s.key, 3 * s.query + 2 * s.key + s.logsumexp);
    project_back(layer, qkv(), when(g.into_layer, s.hidden), when(g.of_qkv(), s.hidden));
  }

  const LlamaConfig& config_;
  const AdapterLayout& layout_;
  const int first_;       // the lowest layer with pairs
  const std::int64_t h_;  // x·A of one projection, kept for the gradient of its B
  const Sizes size_;
  Live live_;
};

}  // namespace

std::int64_t step_bytes(const LlamaConfig& config, const AdapterLayout& layout,
                        const BatchShape& batch, Activations activations, int ahead) {
  return Step(config, layout, batch, ahead).with_gradients(activations);
}

std::int64_t loss_bytes(const LlamaConfig& config, const AdapterLayout& layout,
                        const BatchShape& batch, int ahead) {
  return Step(config, layout, batch, ahead).forward_only();
}

// The most that any kernel asks for; constants are those of the kernels' tiles, for the widest
// instruction set.
std::int64_t scratch_bytes(const LlamaConfig& config, const AdapterLayout& layout,
                           const BatchShape& batch, bool gradients, int threads) {
  constexpr std::int64_t kChunkRows = 140, kTileRows = 14, kTileColumns = 32, kLanes = 16;
  constexpr std::int64_t kBlockColumns = 16 * kTileColumns, kMostSlices = 16;
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t chunk = std::min(batch.rows(), kChunkRows);
  // Logits of a chunk, or of a block for each thread; sums of dx, one a slice of the vocabulary.
  const std::int64_t loss =
      gradients ? chunk * (config.vocab_size + kMostSlices * hidden + threads * kBlockColumns)
                : chunk * kBlockColumns * threads;
  const std::int64_t packed_rows = 2 * chunk * hidden;

  const std::int64_t keys = batch.rows() * config.num_kv_heads * config.head_dim;
  const std::int64_t queries = batch.rows() * config.num_heads * config.head_dim;
  // Keys by rows and columns, values by rows; dk and dv of each query head; and each thread's
  // scores and their gradients, for a block of queries.
  const std::int64_t scores =
      2 * 5 * kTileRows * (batch.length + kTileColumns) + kLanes * batch.length;
  const std::int64_t attention = (gradients ? 3 * keys + 2 * queries : 2 * keys) + threads * scores;

  // Outer products of each chunk of rows, added up at the end; packed rows of a chunk a thread.
  std::int64_t projection = 0;
  for (const AdaptedModule& module : layout.modules()) {
    const std::int64_t in = module.in_features, out = module.out_features;
    const std::int64_t chunks = (batch.rows() + kChunkRows - 1) / kChunkRows;
    const std::int64_t partials = gradients ? chunks * layout.options().rank * (in + out) : 0;
    projection = std::max(projection, partials + 2 * threads * kChunkRows * std::max(in, out));
  }
  return kFloat * std::max({loss + packed_rows, attention, projection});
}

std::int64_t save_bytes(const AdapterLayout& layout, int optimizer_vectors) {
  // The pairs, copied out of the trainer, and the adapter's file, twice; each vector copied out of
  // the trainer, as an array, and as a file.
  const std::int64_t copies = 3 + 3 * std::int64_t{optimizer_vectors};
  return copies * kFloat * layout.num_parameters();
}

std::int64_t packed_weight_bytes(const LlamaConfig& config, mx::Dtype dtype, bool training) {
  std::int64_t weights = std::int64_t{config.vocab_size} * config.hidden_size;
  for (const Projection projection : kAllProjections) {
    weights += std::int64_t{config.num_layers} * config.in_features(projection) *
               config.out_features(projection);
  }
  return weights * (dtype == mx::bfloat16 ? 2 : 4) * (training ? 2 : 1);
}

}  // namespace graft::llm
