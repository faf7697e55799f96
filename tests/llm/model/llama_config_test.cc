#include "graft/llm/model/llama_config.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "graft/llm/user_error.h"
#include "tests/llm/weights/gguf_builder.h"

namespace graft::llm {
namespace {

using testing::GgufBuilder;

constexpr std::uint32_t kFloat32 = 6;

LlamaConfig config_of(const std::function<void(GgufBuilder&)>& add) {
  GgufBuilder builder;
  builder.text("general.architecture", "llama")
      .uint32("llama.block_count", 1)
      .uint32("llama.embedding_length", 8)
      .uint32("llama.feed_forward_length", 8)
      .uint32("llama.attention.head_count", 2)
      .uint32("llama.context_length", 16)
      .tensor("token_embd.weight", {8, 4}, 0, 0)
      .data(128);
  add(builder);
  return read_llama_config(builder.parse());
}

std::string error_of(const std::function<void(GgufBuilder&)>& add) {
  try {
    config_of(add);
    return "no error";
  } catch (const UserError& error) {
    return error.what();
  }
}

struct Scaling {
  const char* type;  // Null if absent.
  const char* key;
  float factor;
  float expected;
};

TEST(LlamaConfig, ScalesPositionsAsReadersOfTheFormatDo) {
  // llama.cpp's load_hparams: linear unless a type says else; scale_linear is the key's old name.
  for (const Scaling& scaling :
       {Scaling{nullptr, "scaling.factor", 4, 4}, Scaling{"linear", "scaling.factor", 2.5, 2.5},
        Scaling{"none", "scaling.factor", 4, 1}, Scaling{nullptr, "scale_linear", 4, 4},
        Scaling{nullptr, "scaling.factor", 0, 1}}) {
    const LlamaConfig config = config_of([&](GgufBuilder& file) {
      if (scaling.type) file.text("llama.rope.scaling.type", scaling.type);
      file.number(std::string("llama.rope.") + scaling.key, kFloat32, scaling.factor);
    });
    EXPECT_EQ(config.rope_scaling_factor, scaling.expected) << scaling.key;
  }
  EXPECT_EQ(config_of([](GgufBuilder&) {}).rope_scaling_factor, 1);
  EXPECT_EQ(config_of([](GgufBuilder& file) {
              file.number("llama.rope.scaling.factor", kFloat32, 4.0f)
                  .number("llama.rope.scale_linear", kFloat32, 8.0f);
            }).rope_scaling_factor,
            4);
}

TEST(LlamaConfig, RefusesScalingThatItDoesNotDo) {
  for (const char* type : {"yarn", "longrope", "su", "Linear", ""}) {
    EXPECT_EQ(error_of([&](GgufBuilder& file) { file.text("llama.rope.scaling.type", type); }),
              std::string("model.gguf: scaled rotary embeddings of type '") + type +
                  "' are not supported, only 'linear'");
  }
  EXPECT_NE(error_of([](GgufBuilder& file) {
              file.tensor("rope_freqs.weight", {2}, 0, 128).data(136);
            }).find("rope_freqs.weight: scaled rotary embeddings"),
            std::string::npos);
}

TEST(LlamaConfig, RefusesKeysThatItDoesNotKnow) {
  for (const char* name :
       {"attention.sliding_window", "attention.clamp_kqv", "attention.scale", "rope.freq_base_swa",
        "rope.scaling.yarn_log_multiplier", "logit_scale", "embedding_scale", "residual_scale",
        "final_logit_softcapping", "attn_logit_softcapping", "use_parallel_residual",
        "expert_shared_count", "ssm.conv_kernel", "never_heard_of"}) {
    const std::string key = std::string("llama.") + name;
    EXPECT_EQ(error_of([&](GgufBuilder& file) { file.uint32(key, 1); }),
              "model.gguf: metadata '" + key +
                  "' is not known to Graft and could change what the model computes");
  }
}

TEST(LlamaConfig, TakesKeysThatChangeNothing) {
  const LlamaConfig config = config_of([](GgufBuilder& file) {
    file.uint32("llama.vocab_size", 4)
        .uint32("llama.expert_used_count", 0)
        .uint32("llama.rope.scaling.original_context_length", 8)
        .boolean("llama.rope.scaling.finetuned", true)
        .boolean("llama.attention.causal", true)
        .uint32("general.never_heard_of", 1)
        .uint32("gemma.logit_scale", 2);
  });
  EXPECT_EQ(config.rope_scaling_factor, 1);
  EXPECT_EQ(config.head_dim, 4);
}

}  // namespace
}  // namespace graft::llm
