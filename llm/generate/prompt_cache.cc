#include "graft/llm/generate/prompt_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "graft/llm/files/atomic_file.h"
#include "graft/llm/user_error.h"
#include "graft/llm/weights/safetensors.h"

namespace graft::llm {
namespace {

using nlohmann::json;
using Metadata = std::unordered_map<std::string, std::string>;

constexpr const char* kKind = "graft prompt cache 1";

std::string name_of(int layer, const char* what) {
  return fmt::format("layers.{}.{}", layer, what);
}

std::string value_in(const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? std::string() : found->second;
}

void check_owner(const std::string& path, const Metadata& metadata, const PromptCacheOwner& owner) {
  const auto refuse = [&](const std::string& theirs, const std::string& ours) {
    // Of the same name, but not what it was.
    const std::string why = theirs == ours
                                ? fmt::format("was made with {}, which has changed since", ours)
                                : fmt::format("belongs to {}, not to {}", theirs, ours);
    throw UserError(
        fmt::format("--prompt-cache: {} {}; name another file, or delete this one", path, why));
  };
  if (value_in(metadata, "model_fingerprint") != owner.model_fingerprint) {
    refuse("model " + value_in(metadata, "model"), "model " + owner.model);
  }
  if (value_in(metadata, "dtype") != owner.dtype) {
    refuse("the model in " + value_in(metadata, "dtype"), owner.dtype);
  }
  const auto named = [](const std::string& adapter) {
    return adapter.empty() ? std::string("the model without an adapter") : "adapter " + adapter;
  };
  if (value_in(metadata, "adapter_fingerprint") != owner.adapter_fingerprint) {
    refuse(named(value_in(metadata, "adapter")), named(owner.adapter));
  }
}

std::vector<int> tokens_in(const Metadata& metadata, const LlamaConfig& config) {
  const json list = json::parse(value_in(metadata, "tokens"), nullptr, false);
  std::vector<int> tokens;
  if (!list.is_array() || list.size() > static_cast<std::size_t>(config.context_length)) return {};
  for (const json& item : list) {
    if (!item.is_number_unsigned() ||
        item.get<std::uint64_t>() >= static_cast<std::uint64_t>(config.vocab_size)) {
      return {};
    }
    tokens.push_back(item.get<int>());
  }
  return tokens;
}

}  // namespace

void save_prompt_cache(const std::string& path, const Sequence& sequence,
                       const PromptCacheOwner& owner) {
  if (sequence.length() == 0) return;
  std::vector<std::pair<std::string, mx::array>> tensors;
  for (int layer = 0; layer < sequence.model().config().num_layers; ++layer) {
    const auto [keys, values] = sequence.cache().layer(layer);
    tensors.emplace_back(name_of(layer, "keys"), keys);
    tensors.emplace_back(name_of(layer, "values"), values);
  }
  const std::map<std::string, std::string> metadata = {
      {"kind", kKind},
      {"model", owner.model},
      {"model_fingerprint", owner.model_fingerprint},
      {"dtype", owner.dtype},
      {"adapter", owner.adapter},
      {"adapter_fingerprint", owner.adapter_fingerprint},
      {"tokens", json(sequence.tokens()).dump()}};
  write_file_atomically(path, to_safetensors(tensors, metadata));
}

Sequence load_prompt_cache(const std::string& path, const Llama& model,
                           const PromptCacheOwner& owner, std::span<const int> prompt) {
  const LlamaConfig& config = model.config();
  const auto [tensors, metadata] = read_safetensors(path);
  const auto damaged = [&](const std::string& what) {
    throw UserError(
        fmt::format("--prompt-cache: {}: {}; name another file, or delete this one", path, what));
  };
  if (value_in(metadata, "kind") != kKind) damaged("this is no prompt cache");
  check_owner(path, metadata, owner);

  std::vector<int> tokens = tokens_in(metadata, config);
  if (tokens.empty()) damaged("its list of tokens is damaged");
  const auto length = static_cast<int>(tokens.size());
  const mx::Shape expected = {1, length, config.num_kv_heads, config.head_dim};
  KvCache cache(config.num_layers);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const auto take = [&](const char* what) {
      const auto found = tensors.find(name_of(layer, what));
      if (found == tensors.end() || found->second.shape() != expected) {
        damaged(fmt::format("tensor {} is missing or has another shape", name_of(layer, what)));
      }
      return found->second;
    };
    cache.append(layer, take("keys"), take("values"));
  }
  cache.advance(length);

  Sequence sequence(model, std::move(tokens), std::move(cache));
  const auto differ = std::ranges::mismatch(sequence.tokens(), prompt.first(prompt.size() - 1));
  sequence.rewind(static_cast<int>(differ.in1 - sequence.tokens().begin()));
  return sequence;
}

}  // namespace graft::llm
