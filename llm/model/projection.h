#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

namespace graft::llm {

/// The seven matrices of a Llama layer, in the order in which a layer uses them.
enum class Projection { kQ, kK, kV, kO, kGate, kUp, kDown };

inline constexpr std::size_t kNumProjections = 7;

inline constexpr std::array<Projection, kNumProjections> kAllProjections = {
    Projection::kQ,    Projection::kK,  Projection::kV,   Projection::kO,
    Projection::kGate, Projection::kUp, Projection::kDown};

constexpr std::size_t index_of(Projection projection) {
  return static_cast<std::size_t>(projection);
}

/// "q_proj": the name Hugging Face, PEFT and --target-modules use.
constexpr std::string_view name_of(Projection projection) {
  constexpr std::array<std::string_view, kNumProjections> kNames = {
      "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  return kNames[index_of(projection)];
}

/// The submodule a projection lives in there: "self_attn" or "mlp".
constexpr std::string_view block_of(Projection projection) {
  return index_of(projection) < index_of(Projection::kGate) ? "self_attn" : "mlp";
}

/// "attn_q": what stands between "blk.N." and ".weight" in a GGUF file.
constexpr std::string_view gguf_name_of(Projection projection) {
  constexpr std::array<std::string_view, kNumProjections> kNames = {
      "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
  return kNames[index_of(projection)];
}

constexpr std::optional<Projection> projection_named(std::string_view name) {
  for (const Projection projection : kAllProjections) {
    if (name_of(projection) == name) return projection;
  }
  return std::nullopt;
}

}  // namespace graft::llm
