#include "graft/llm/model/llama_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "graft/llm/files/printable.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

constexpr std::string_view kLlamaPrefix = "llama.";

constexpr std::array<std::string_view, 21> kLlamaKeys = {
    // What read_llama_config uses or checks.
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.type",
    // What changes nothing here: the embedding's rows say how large the vocabulary is; without
    // experts none is chosen; only YaRN and LongRoPE, both refused, ask for the context that a
    // model was made with; and how it was made is history.
    "vocab_size",
    "expert_used_count",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
};

}  // namespace

void check_llama_keys(const GgufFile& file) {
  std::string unknown;  // The first by name, so that the message is always the same.
  for (const auto& [key, value] : file.metadata()) {
    if (!key.starts_with(kLlamaPrefix)) continue;
    const std::string_view name = std::string_view(key).substr(kLlamaPrefix.size());
    if (std::find(kLlamaKeys.begin(), kLlamaKeys.end(), name) != kLlamaKeys.end()) continue;
    if (unknown.empty() || key < unknown) unknown = key;
  }
  if (unknown.empty()) return;
  throw UserError(fmt::format(
      "{}: metadata '{}' is not known to Graft and could change what the model computes",
      file.name(), unknown));
}

float rope_scaling_factor(const GgufFile& file) {
  if (file.find_tensor("rope_freqs.weight")) {
    throw UserError(
        fmt::format("{}: tensor rope_freqs.weight: scaled rotary embeddings of Llama 3's kind are "
                    "not supported",
                    file.name()));
  }
  const std::string* type = file.find_string("llama.rope.scaling.type");
  if (type && *type != "none" && *type != "linear") {
    throw UserError(
        fmt::format("{}: scaled rotary embeddings of type '{}' are not supported, only 'linear'",
                    file.name(), printable(*type)));
  }
  const double attention = file.find_number("llama.rope.scaling.attn_factor").value_or(1.0);
  if (attention != 1.0) {
    throw UserError(fmt::format("{}: llama.rope.scaling.attn_factor is {}, only 1 is supported",
                                file.name(), attention));
  }
  if (type && *type == "none") return 1.0f;
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    const std::optional<double> factor = file.find_number(key);
    if (!factor) continue;
    if (*factor == 0.0) return 1.0f;  // How the format's writers say that there is none.
    if (!(*factor >= 1e-6 && *factor <= 1e6)) {
      throw UserError(
          fmt::format("{}: {} is {}, expected a positive number", file.name(), key, *factor));
    }
    return static_cast<float>(*factor);
  }
  return 1.0f;
}

}  // namespace graft::llm
