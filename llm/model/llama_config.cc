#include "graft/llm/model/llama_config.h"

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "graft/llm/files/printable.h"
#include "graft/llm/model/llama_keys.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

// Far beyond any real model, and small enough for products of two to stay within 64 bits.
constexpr std::uint64_t kMaxSize = 1 << 24;

std::optional<int> find_size(const GgufFile& file, const std::string& key) {
  const std::optional<std::uint64_t> value = file.find_unsigned(key);
  if (!value) return std::nullopt;
  if (*value < 1 || *value > kMaxSize) {
    throw UserError(
        fmt::format("{}: {} is {}, expected 1 to {}", file.name(), key, *value, kMaxSize));
  }
  return static_cast<int>(*value);
}

int get_size(const GgufFile& file, const std::string& key) {
  const std::optional<int> value = find_size(file, key);
  if (!value) throw UserError(fmt::format("{}: {} is missing", file.name(), key));
  return *value;
}

float positive(const GgufFile& file, const std::string& key, double fallback) {
  const double value = file.find_number(key).value_or(fallback);
  if (!(value > 0 && value < 1e12)) {
    throw UserError(
        fmt::format("{}: {} is {}, expected a positive number", file.name(), key, value));
  }
  return static_cast<float>(value);
}

}  // namespace

int LlamaConfig::in_features(Projection projection) const {
  switch (projection) {
    case Projection::kO:
      return num_heads * head_dim;
    case Projection::kDown:
      return intermediate_size;
    default:
      return hidden_size;
  }
}

int LlamaConfig::out_features(Projection projection) const {
  switch (projection) {
    case Projection::kQ:
      return num_heads * head_dim;
    case Projection::kK:
    case Projection::kV:
      return num_kv_heads * head_dim;
    case Projection::kGate:
    case Projection::kUp:
      return intermediate_size;
    default:
      return hidden_size;
  }
}

LlamaConfig read_llama_config(const GgufFile& file) {
  const std::string& architecture = file.get_string("general.architecture");
  if (architecture != "llama") {
    throw UserError(fmt::format("{}: architecture '{}' is not supported; Graft runs 'llama' models",
                                file.name(), printable(architecture)));
  }
  check_llama_keys(file);
  if (file.find_unsigned("llama.expert_count").value_or(0) != 0) {
    throw UserError(fmt::format("{}: mixtures of experts are not supported", file.name()));
  }
  if (!file.find_bool("llama.attention.causal").value_or(true)) {
    throw UserError(
        fmt::format("{}: llama.attention.causal is false; Graft runs models that look "
                    "back only",
                    file.name()));
  }

  LlamaConfig config;
  if (const std::string* name = file.find_string("general.name")) config.name = printable(*name);
  config.names = {file.name()};
  if (!config.name.empty()) config.names.push_back(config.name);
  config.num_layers = get_size(file, "llama.block_count");
  config.hidden_size = get_size(file, "llama.embedding_length");
  config.intermediate_size = get_size(file, "llama.feed_forward_length");
  config.num_heads = get_size(file, "llama.attention.head_count");
  config.num_kv_heads = find_size(file, "llama.attention.head_count_kv").value_or(config.num_heads);
  config.context_length = get_size(file, "llama.context_length");
  if (config.num_heads % config.num_kv_heads != 0) {
    throw UserError(fmt::format("{}: {} attention heads do not divide by {} key-value heads",
                                file.name(), config.num_heads, config.num_kv_heads));
  }
  if (config.hidden_size % config.num_heads != 0) {
    throw UserError(fmt::format("{}: embedding length {} does not divide by {} heads", file.name(),
                                config.hidden_size, config.num_heads));
  }
  config.head_dim = config.hidden_size / config.num_heads;
  for (const char* key : {"llama.rope.dimension_count", "llama.attention.key_length",
                          "llama.attention.value_length"}) {
    const int size = find_size(file, key).value_or(config.head_dim);
    if (size != config.head_dim) {
      throw UserError(fmt::format("{}: {} is {}; only the head's own size, {}, is supported",
                                  file.name(), key, size, config.head_dim));
    }
  }
  if (config.head_dim % 2 != 0) {
    throw UserError(fmt::format("{}: head size {} is odd, so rotary embedding is not defined",
                                file.name(), config.head_dim));
  }
  config.rope_theta = positive(file, "llama.rope.freq_base", 10000.0);
  config.rope_scaling_factor = rope_scaling_factor(file);
  config.rms_norm_eps = positive(file, "llama.attention.layer_norm_rms_epsilon", 1e-5);

  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (!embedding || embedding->shape.size() != 2) {
    throw UserError(
        fmt::format("{}: tensor token_embd.weight is missing or not a matrix", file.name()));
  }
  config.vocab_size = static_cast<int>(embedding->shape[0]);
  const std::vector<std::string>* tokens = file.find_strings("tokenizer.ggml.tokens");
  if (tokens && std::cmp_not_equal(tokens->size(), config.vocab_size)) {
    throw UserError(fmt::format("{}: tensor token_embd.weight has {} rows for a vocabulary of {}",
                                file.name(), config.vocab_size, tokens->size()));
  }
  return config;
}

}  // namespace graft::llm
