#include "graft/llm/adapter/adapter_file.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "graft/llm/files/atomic_file.h"
#include "graft/llm/model/model_names.h"
#include "graft/llm/user_error.h"
#include "graft/llm/weights/safetensors.h"
#include "mlx/ops.h"
#include "mlx/random.h"
#include "mlx/transforms.h"
#include "tests/llm/adapter/small_config.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

using nlohmann::json;
using testing::read_text;
using testing::small_config;
using testing::TemporaryFolder;
using testing::write_text;

std::vector<LoraPair> random_pairs(const AdapterLayout& layout) {
  std::vector<LoraPair> pairs = layout.initial_pairs(7);
  mx::random::KeySequence keys(8);
  for (LoraPair& pair : pairs) {
    pair.b = mx::random::normal(pair.b.shape(), mx::float32, 0.0f, 1.0f, keys.next());
    mx::eval(pair.b);
  }
  return pairs;
}

bool same_bits(const mx::array& x, const mx::array& y) {
  return x.shape() == y.shape() && mx::array_equal(x, y).item<bool>();
}

struct RawSafetensors {
  json header;
  std::string data;
};

RawSafetensors parse(const std::string& bytes) {
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  return {json::parse(bytes.substr(8, length)), bytes.substr(8 + length)};
}

std::string unparse(const json& header, const std::string& data) {
  const std::string text = header.dump();
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data;
}

std::string message_of(const std::string& folder, const LlamaConfig& config) {
  try {
    load_adapter(folder, config);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

TEST(AdapterFile, ComesBackAsItWasSaved) {
  const TemporaryFolder folder;
  const LlamaConfig config = small_config();
  AdapterOptions options{.rank = 3, .alpha = 7.5f, .dropout = 0.1f};
  options.layers = {1, 3};
  options.targets = {Projection::kQ, Projection::kV, Projection::kDown};
  const AdapterLayout layout(config, options);
  const std::vector<LoraPair> pairs = random_pairs(layout);
  save_adapter(folder.file("new/adapter"), layout, pairs, {"base.gguf"});

  const SavedAdapter loaded = load_adapter(folder.file("new/adapter"), config);
  EXPECT_EQ(loaded.layout.options().rank, 3);
  EXPECT_EQ(loaded.layout.options().alpha, 7.5f);
  EXPECT_EQ(loaded.layout.options().dropout, 0.1f);
  EXPECT_EQ(loaded.layout.options().layers, options.layers);
  EXPECT_EQ(loaded.layout.options().targets, options.targets);
  ASSERT_EQ(loaded.pairs.size(), 6u);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    EXPECT_TRUE(same_bits(loaded.pairs[i].a, pairs[i].a)) << i;
    EXPECT_TRUE(same_bits(loaded.pairs[i].b, pairs[i].b)) << i;
  }
}

TEST(AdapterFile, IsLaidOutAsPeftReadsIt) {
  const TemporaryFolder folder;
  const LlamaConfig config = small_config();
  AdapterOptions options{.rank = 2};
  options.targets = {Projection::kK, Projection::kGate};
  const AdapterLayout layout(config, options);
  const std::vector<LoraPair> pairs = random_pairs(layout);
  save_adapter(folder.path(), layout, pairs, {"models/base.gguf"});

  const RawSafetensors raw = parse(read_text(folder.file("adapter_model.safetensors")));
  EXPECT_EQ(raw.header["__metadata__"]["format"], "pt");
  EXPECT_EQ(raw.header.size(), 1u + 4 * 2 * 2);
  const json a = raw.header["base_model.model.model.layers.2.self_attn.k_proj.lora_A.weight"];
  const json b = raw.header["base_model.model.model.layers.2.self_attn.k_proj.lora_B.weight"];
  EXPECT_TRUE(raw.header.contains("base_model.model.model.layers.0.mlp.gate_proj.lora_B.weight"));
  EXPECT_EQ(a["dtype"], "F32");
  EXPECT_EQ(a["shape"], json({2, 12}));  // (rank, in)
  EXPECT_EQ(b["shape"], json({4, 2}));   // (out, rank)
  // Element (r, i) of lora_A is A(i, r) of the pair, module 4: layer 2's k_proj.
  const LoraPair& pair = pairs[static_cast<std::size_t>(layout.find(2, Projection::kK))];
  std::vector<float> stored(24);
  std::memcpy(stored.data(), raw.data.data() + a["data_offsets"][0].get<std::size_t>(), 96);
  for (std::size_t r = 0; r < 2; ++r) {
    for (std::size_t i = 0; i < 12; ++i) {
      EXPECT_EQ(stored[r * 12 + i], pair.a.data<float>()[i * 2 + r]);
    }
  }

  const json saved = json::parse(read_text(folder.file("adapter_config.json")));
  EXPECT_EQ(saved["peft_type"], "LORA");
  EXPECT_EQ(saved["task_type"], "CAUSAL_LM");
  EXPECT_EQ(saved["r"], 2);
  EXPECT_EQ(saved["lora_alpha"], 16);
  EXPECT_EQ(saved["bias"], "none");
  EXPECT_EQ(saved["target_modules"], json({"k_proj", "gate_proj"}));
  EXPECT_TRUE(saved["layers_to_transform"].is_null());
  EXPECT_EQ(saved["base_model_name_or_path"], "models/base.gguf");
}

TEST(AdapterFile, LeavesNoTemporaryFilesAndReplacesOldOnes) {
  const TemporaryFolder folder;
  write_file_atomically(folder.file("x"), "first");
  write_file_atomically(folder.file("x"), "second");
  EXPECT_EQ(read_text(folder.file("x")), "second");
  int entries = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    static_cast<void>(entry);
    ++entries;
  }
  EXPECT_EQ(entries, 1);
  EXPECT_THROW(write_file_atomically(folder.file("no/such/folder"), "x"), UserError);
  EXPECT_THROW(make_folder(folder.file("x/below_a_file")), UserError);
}

class DamagedAdapter : public ::testing::Test {
 protected:
  DamagedAdapter() {
    AdapterOptions options{.rank = 2};
    options.targets = {Projection::kQ};
    const AdapterLayout layout(config_, options);
    save_adapter(folder_.path(), layout, random_pairs(layout), {"base"});
    raw_ = parse(read_text(weights()));
    saved_ = json::parse(read_text(settings()));
  }

  std::string weights() const { return folder_.file("adapter_model.safetensors"); }
  std::string settings() const { return folder_.file("adapter_config.json"); }

  // What loading says of this header over the same data.
  std::string with_header(const json& header) {
    write_text(weights(), unparse(header, raw_.data));
    return message_of(folder_.path(), config_);
  }

  std::string with_setting(const char* key, const json& value) {
    json changed = saved_;
    changed[key] = value;
    write_text(settings(), changed.dump());
    return message_of(folder_.path(), config_);
  }

  const LlamaConfig config_ = small_config();
  const TemporaryFolder folder_;
  const std::string name_ = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
  RawSafetensors raw_;
  json saved_;
};

TEST_F(DamagedAdapter, IsFineBeforeTheDamage) {
  EXPECT_EQ(with_header(raw_.header), "");
  EXPECT_EQ(with_setting("r", 2), "");
}

TEST_F(DamagedAdapter, HeaderIsRefused) {
  const auto changed = [&](const char* key, const json& value) {
    json header = raw_.header;
    header[name_][key] = value;
    return with_header(header);
  };
  const std::uint64_t size = raw_.data.size();
  for (const std::string& message :
       {changed("data_offsets", {0, size + 4}), changed("data_offsets", {8, 0}),
        changed("data_offsets", {0, 95}), changed("data_offsets", {-96, 0}),
        changed("data_offsets", 3), changed("shape", {2, 13}), changed("shape", {-2, -12}),
        changed("shape", {std::uint64_t{1} << 62, 16}), changed("shape", "2x12"),
        changed("dtype", "I64"), changed("dtype", 7)}) {
    EXPECT_NE(message.find(name_), std::string::npos) << message;
  }
  json missing = raw_.header;
  missing.erase(name_);
  EXPECT_NE(with_header(missing).find("missing"), std::string::npos);
  json overlap = raw_.header;
  overlap[name_]["data_offsets"] =
      raw_.header["base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"]["data_offsets"];
  EXPECT_NE(with_header(overlap).find("overlaps"), std::string::npos);
  json metadata = raw_.header;
  metadata["__metadata__"]["format"] = 1;
  EXPECT_NE(with_header(metadata).find("__metadata__"), std::string::npos);
  json extra = raw_.header;
  extra["another"] = {
      {"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {raw_.data.size(), raw_.data.size() + 4}}};
  write_text(weights(), unparse(extra, raw_.data + std::string(4, '\0')));
  const std::string message = message_of(folder_.path(), config_);
  EXPECT_NE(message.find("tensor another does not belong"), std::string::npos) << message;
}

TEST_F(DamagedAdapter, EveryCutIsRefused) {
  const std::string whole = read_text(weights());
  for (std::size_t length = 0; length < whole.size(); length += 13) {
    write_text(weights(), whole.substr(0, length));
    EXPECT_NE(message_of(folder_.path(), config_), "") << length;
  }
  std::string long_header = whole;
  long_header[6] = '\x7f';  // a header of 2^54 bytes
  write_text(weights(), long_header);
  EXPECT_NE(message_of(folder_.path(), config_).find("header"), std::string::npos);
}

TEST_F(DamagedAdapter, SettingsThatWouldComputeSomethingElseAreRefused) {
  for (const auto& [key, value] :
       std::vector<std::pair<const char*, json>>{{"peft_type", "LOHA"},
                                                 {"use_dora", true},
                                                 {"use_rslora", true},
                                                 {"bias", "all"},
                                                 {"fan_in_fan_out", true},
                                                 {"rank_pattern", {{"q_proj", 4}}},
                                                 {"modules_to_save", {"lm_head"}},
                                                 {"target_modules", {"q_proj", "c_attn"}},
                                                 {"target_modules", "q_.*"},
                                                 {"layers_to_transform", {1, -1}},
                                                 {"layers_to_transform", 4},
                                                 {"r", 0},
                                                 {"r", "two"},
                                                 {"r", 2.5},
                                                 {"lora_alpha", 0},
                                                 {"lora_dropout", 1},
                                                 {"exclude_modules", {"q_proj"}},
                                                 {"alora_invocation_tokens", {1, 2}},
                                                 {"base_model_name_or_path", 7},
                                                 {"lora_alpha", -1}}) {
    EXPECT_NE(with_setting(key, value), "") << key << " " << value;
  }
  EXPECT_NE(with_setting("r", 3), "");  // not the rank of the tensors
  EXPECT_NE(with_setting("r", 13).find("at most 12, the smaller side of q_proj"),
            std::string::npos);
  write_text(settings(), "{");
  EXPECT_NE(message_of(folder_.path(), config_).find("adapter_config.json"), std::string::npos);
}

TEST_F(DamagedAdapter, ThatChangesTheWeightsIsRefused) {
  for (const char* changes : {"pissa", "pissa_niter_16", "corda", "olora", "loftq", "new"}) {
    const std::string message = with_setting("init_lora_weights", changes);
    EXPECT_NE(message.find("init_lora_weights: "), std::string::npos) << changes << message;
    EXPECT_NE(message.find("path_initial_model_for_weight_conversion"), std::string::npos);
  }
  EXPECT_NE(with_setting("init_lora_weights", 1), "");
  for (const json& harmless : {json(true), json(false), json(nullptr), json("gaussian"),
                               json("eva"), json("orthogonal")}) {
    EXPECT_EQ(with_setting("init_lora_weights", harmless), "") << harmless;
  }
  EXPECT_EQ(with_setting("alora_invocation_tokens", nullptr), "");
}

TEST_F(DamagedAdapter, ThatNamesAnotherModelIsDoubted) {
  const auto doubt_on = [&](const std::vector<std::string>& names) {
    LlamaConfig config = small_config();
    config.names = names;
    const ModelIdentity base = load_adapter(folder_.path(), config).base;
    EXPECT_EQ(base.fingerprint, "");
    return doubt_about_base(base, config, [] {
      ADD_FAILURE() << "reads the model for nothing";
      return std::string();
    });
  };
  EXPECT_EQ(with_setting("base_model_name_or_path", "org/Small-135M-Instruct"), "");
  EXPECT_EQ(doubt_on({"models/Small-135M-Instruct.Q4_1.gguf"}), "");
  EXPECT_EQ(doubt_on({"x.gguf", "small 135m instruct"}), "");
  const std::string doubt = doubt_on({"Small-135M.gguf", "Small"});
  EXPECT_NE(doubt.find("'org/Small-135M-Instruct'"), std::string::npos) << doubt;
  EXPECT_NE(doubt.find("'Small-135M.gguf'"), std::string::npos) << doubt;
  for (const json& unknown : {json(nullptr), json("")}) {
    with_setting("base_model_name_or_path", unknown);
    EXPECT_EQ(doubt_on({"Other.gguf"}), "");
  }
}

TEST(AdapterFile, KnowsItsModelByContents) {
  const TemporaryFolder folder;
  LlamaConfig config = small_config();
  config.names = {"renamed.gguf"};
  const AdapterLayout layout(config, {.rank = 2});
  save_adapter(folder.path(), layout, random_pairs(layout), {"base.gguf", "0123456789abcdef"});
  const ModelIdentity base = load_adapter(folder.path(), config).base;
  EXPECT_EQ(base.name, "base.gguf");
  EXPECT_EQ(base.fingerprint, "0123456789abcdef");
  EXPECT_EQ(doubt_about_base(base, config, [] { return "0123456789abcdef"; }), "");
  config.names = {"base.gguf"};  // of that name, but another one
  const std::string doubt = doubt_about_base(base, config, [] { return "fedcba9876543210"; });
  EXPECT_NE(doubt.find("base.gguf as it was then"), std::string::npos) << doubt;
}

TEST(ModelNames, KnowAModelInManySpellings) {
  for (const char* name : {"HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct-q4_k_m",
                           "/a/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2 135M Instruct/",
                           "SmolLM2-135M-Instruct-f16.gguf", "smollm2_135m_instruct.IQ4_XS.gguf"}) {
    EXPECT_TRUE(same_model(name, "SmolLM2-135M-Instruct")) << name;
  }
  for (const char* name : {"SmolLM2-135M", "SmolLM2-360M-Instruct", "Instruct", "", "q4.gguf"}) {
    EXPECT_FALSE(same_model(name, "SmolLM2-135M-Instruct")) << name;
  }
  EXPECT_TRUE(same_model("q4.gguf", "Q4"));
  EXPECT_FALSE(same_model("q4.gguf", "q8.gguf"));
}

TEST(AdapterLayout, CountsParametersAndFindsModules) {
  const LlamaConfig config = small_config();
  AdapterOptions options{.rank = 2};
  options.layers = last_layers(config, 2);
  EXPECT_EQ(options.layers, (std::vector<int>{2, 3}));
  EXPECT_TRUE(last_layers(config, -1).empty());
  EXPECT_TRUE(last_layers(config, 4).empty());
  EXPECT_THROW(last_layers(config, 0), UserError);
  EXPECT_THROW(last_layers(config, 5), UserError);
  const AdapterLayout layout(config, options);
  EXPECT_EQ(layout.modules().size(), 14u);
  // in + out of q, k, v, o, gate, up, down.
  EXPECT_EQ(layout.num_parameters(), 2 * 2 * (24 + 16 + 16 + 24 + 32 + 32 + 32));
  EXPECT_EQ(layout.find(1, Projection::kQ), -1);
  EXPECT_EQ(layout.find(2, Projection::kQ), 0);
  EXPECT_EQ(layout.find(3, Projection::kDown), 13);
  EXPECT_EQ(layout.modules()[13].path(), "model.layers.3.mlp.down_proj");
  EXPECT_THROW(AdapterLayout(config, {.rank = 257}), UserError);
  EXPECT_NO_THROW(AdapterLayout(config, {.rank = 4}));
  EXPECT_THROW(AdapterLayout(config, {.rank = 5}), UserError);  // k_proj: 12 -> 4
}

}  // namespace
}  // namespace graft::llm
