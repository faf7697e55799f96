#include "graft/llm/adapter/adapter_config.h"

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <set>
#include <utility>

#include "graft/llm/files/json_text.h"
#include "graft/llm/files/printable.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

using nlohmann::json;

class ConfigReader {
 public:
  ConfigReader(std::string_view text, const std::string& path)
      : path_(path), config_(parse_json_object(text, path)) {}

  AdapterConfig read() const {
    refuse_other_methods();
    AdapterConfig config;
    config.options.rank = rank();
    config.options.alpha = static_cast<float>(number("lora_alpha", 8));
    if (!(config.options.alpha > 0)) fail("lora_alpha", "expected a number above 0");
    config.options.dropout = static_cast<float>(number("lora_dropout", 0));
    if (!(config.options.dropout < 1)) fail("lora_dropout", "expected a number below 1");
    config.options.targets = targets();
    config.options.layers = layers();
    config.base_model = base_model();
    return config;
  }

 private:
  bool has(const char* key) const { return config_.contains(key) && !config_[key].is_null(); }

  [[noreturn]] void fail(const char* key, const std::string& what) const {
    throw UserError(fmt::format("{}: {}: {}", path_, key, what));
  }

  // What changes the arithmetic of a LoRA adapter and is not done here must not be passed over.
  void refuse_other_methods() const {
    if (!has("peft_type") || config_["peft_type"] != "LORA") {
      fail("peft_type", "only LORA adapters are supported");
    }
    for (const char* key :
         {"use_rslora", "use_dora", "use_qalora", "fan_in_fan_out", "lora_bias"}) {
      if (has(key) && config_[key] != false) fail(key, "not supported, expected false");
    }
    for (const char* key : {"rank_pattern", "alpha_pattern", "modules_to_save",
                            "trainable_token_indices", "layers_pattern", "target_parameters",
                            "exclude_modules", "layer_replication", "alora_invocation_tokens"}) {
      if (has(key) && !config_[key].empty()) fail(key, "not supported, expected to be empty");
    }
    if (has("bias") && config_["bias"] != "none") fail("bias", "not supported, expected none");
    refuse_changed_base();
  }

  // The other ways to begin (pissa, corda, olora, loftq) take something out of the base model's
  // weights, in PEFT also when the adapter is loaded.
  void refuse_changed_base() const {
    constexpr const char* kKey = "init_lora_weights";
    if (!has(kKey) || config_[kKey].is_boolean()) return;
    for (const char* harmless : {"gaussian", "eva", "orthogonal"}) {
      if (config_[kKey] == harmless) return;
    }
    fail(kKey,
         "not supported, expected true, false, gaussian, eva or orthogonal, as others change the "
         "base model's weights too; save the adapter as plain LoRA, with "
         "path_initial_model_for_weight_conversion of PEFT's save_pretrained");
  }

  double number(const char* key, double fallback) const {
    if (!has(key)) return fallback;
    const double value = config_[key].is_number() ? config_[key].get<double>() : -1.0;
    if (!(value >= 0 && value < 1e9)) fail(key, "expected a number of at least 0");
    return value;
  }

  int rank() const {
    constexpr const char* kKey = "r";
    if (!has(kKey)) return 8;
    const json& value = config_[kKey];
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() < 1 ||
        value.get<std::uint64_t>() > 1'000'000) {
      fail(kKey, "expected a whole number of at least 1, the adapter's rank");
    }
    return value.get<int>();
  }

  std::vector<Projection> targets() const {
    constexpr const char* kKey = "target_modules";
    if (!has(kKey)) fail(kKey, "missing");
    if (config_[kKey] == "all-linear") return AdapterOptions().targets;
    if (!config_[kKey].is_array() || config_[kKey].empty()) {
      fail(kKey, "expected a list of module names");
    }
    std::set<Projection> found;
    for (const json& item : config_[kKey]) {
      if (!item.is_string()) fail(kKey, "expected a list of module names");
      const auto& name = item.get_ref<const std::string&>();
      const std::optional<Projection> projection = projection_named(name);
      if (!projection) {
        fail(kKey, fmt::format("\"{}\" is not a module of a Llama layer; is this adapter of "
                               "another model?",
                               printable(name)));
      }
      found.insert(*projection);
    }
    return {found.begin(), found.end()};
  }

  std::vector<int> layers() const {
    constexpr const char* kKey = "layers_to_transform";
    if (!has(kKey)) return {};
    const json& value = config_[kKey];
    std::set<int> found;
    const auto add = [&](const json& item) {
      if (!item.is_number_unsigned() || item.get<std::uint64_t>() > 1'000'000) {
        fail(kKey, "expected layer numbers");
      }
      found.insert(item.get<int>());
    };
    if (value.is_array()) {
      for (const json& item : value) add(item);
    } else {
      add(value);
    }
    return {found.begin(), found.end()};
  }

  std::string base_model() const {
    constexpr const char* kKey = "base_model_name_or_path";
    if (!has(kKey)) return {};
    if (!config_[kKey].is_string()) fail(kKey, "expected the name of a model");
    return config_[kKey].get<std::string>();
  }

  const std::string& path_;
  const json config_;
};

}  // namespace

AdapterConfig read_adapter_config(std::string_view text, const std::string& path) {
  return ConfigReader(text, path).read();
}

}  // namespace graft::llm
