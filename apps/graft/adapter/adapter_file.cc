#include "apps/graft/adapter/adapter_file.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

#include "apps/graft/adapter/atomic_file.h"
#include "apps/graft/adapter/safetensors.h"
#include "apps/graft/user_error.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::app {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kWeightsFile = "adapter_model.safetensors";
constexpr const char* kConfigFile = "adapter_config.json";

std::string in_folder(const std::string& folder, const char* file) {
  return (std::filesystem::path(folder) / file).string();
}

// "base_model.model." + path + ".lora_A.weight": PEFT's names for a causal language model.
std::string tensor_name(const AdaptedModule& module, char matrix) {
  return fmt::format("base_model.model.{}.lora_{}.weight", module.path(), matrix);
}

std::string config_text(const AdapterLayout& layout, const std::string& base_model) {
  const AdapterOptions& options = layout.options();
  ordered_json config;
  config["peft_type"] = "LORA";
  config["task_type"] = "CAUSAL_LM";
  config["base_model_name_or_path"] = base_model;
  config["r"] = options.rank;
  // A whole number where it is one: PEFT's own files have it so.
  if (options.alpha == static_cast<float>(static_cast<int>(options.alpha))) {
    config["lora_alpha"] = static_cast<int>(options.alpha);
  } else {
    config["lora_alpha"] = options.alpha;
  }
  config["lora_dropout"] = json::parse(fmt::format("{}", options.dropout));
  config["target_modules"] = ordered_json::array();
  for (const Projection projection : options.targets) {
    config["target_modules"].push_back(std::string(name_of(projection)));
  }
  config["layers_to_transform"] =
      layout.all_layers() ? ordered_json() : ordered_json(options.layers);
  config["bias"] = "none";
  config["fan_in_fan_out"] = false;
  config["inference_mode"] = true;
  config["init_lora_weights"] = true;
  config["modules_to_save"] = nullptr;
  config["use_rslora"] = false;
  config["use_dora"] = false;
  return config.dump(2) + "\n";
}

json read_config(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  if (!in) throw UserError(fmt::format("{}: cannot be read; is this an adapter's folder?", path));
  json config = json::parse(text.str(), nullptr, false);
  if (!config.is_object()) throw UserError(fmt::format("{}: not a JSON object", path));
  return config;
}

class ConfigReader {
 public:
  explicit ConfigReader(std::string path) : path_(std::move(path)), config_(read_config(path_)) {}

  AdapterOptions options() const {
    refuse_other_methods();
    AdapterOptions options;
    options.rank = static_cast<int>(number("r", 8));
    options.alpha = static_cast<float>(number("lora_alpha", 8));
    options.dropout = static_cast<float>(number("lora_dropout", 0));
    options.targets = targets();
    options.layers = layers();
    return options;
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
    for (const char* key : {"use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"}) {
      if (has(key) && config_[key] != false) fail(key, "not supported, expected false");
    }
    for (const char* key : {"rank_pattern", "alpha_pattern", "modules_to_save",
                            "trainable_token_indices", "layers_pattern", "target_parameters"}) {
      if (has(key) && !config_[key].empty()) fail(key, "not supported, expected to be empty");
    }
    if (has("bias") && config_["bias"] != "none") fail("bias", "not supported, expected none");
  }

  double number(const char* key, double fallback) const {
    if (!has(key)) return fallback;
    const double value = config_[key].is_number() ? config_[key].get<double>() : -1.0;
    if (!(value >= 0 && value < 1e9)) fail(key, "expected a number of at least 0");
    return value;
  }

  std::vector<Projection> targets() const {
    constexpr const char* kKey = "target_modules";
    if (!has(kKey)) fail(kKey, "missing");
    if (config_[kKey] == "all-linear") return AdapterOptions().targets;
    if (!config_[kKey].is_array()) fail(kKey, "expected a list of module names");
    std::set<Projection> found;
    for (const json& item : config_[kKey]) {
      const auto projection =
          item.is_string() ? projection_named(item.get<std::string>()) : std::nullopt;
      if (!projection) fail(kKey, fmt::format("{} is not a module of this model", item.dump()));
      found.insert(*projection);
    }
    return {found.begin(), found.end()};
  }

  std::vector<int> layers() const {
    constexpr const char* kKey = "layers_to_transform";
    if (!has(kKey)) return {};
    const json& value = config_[kKey];
    std::set<int> found;
    for (const json& item : value.is_array() ? value : json::array({value})) {
      if (!item.is_number_unsigned() || item.get<std::uint64_t>() > 1'000'000) {
        fail(kKey, "expected layer numbers");
      }
      found.insert(item.get<int>());
    }
    return {found.begin(), found.end()};
  }

  std::string path_;
  json config_;
};

// Takes the pairs of `layout` out of a safetensors file. `description` is where the layout comes
// from, as an error names it.
std::vector<LoraPair> load_pairs(const std::string& file, const AdapterLayout& layout,
                                 const char* description) {
  auto tensors = read_safetensors(file);
  const auto take = [&](const std::string& name, int rows, int columns) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) {
      throw UserError(fmt::format("{}: tensor {} is missing", file, name));
    }
    const mx::array tensor = found->second;
    if (tensor.shape() != mx::Shape{rows, columns}) {
      throw UserError(fmt::format("{}: tensor {}: expected ({}, {}), got ({})", file, name, rows,
                                  columns,
                                  fmt::join(tensor.shape().begin(), tensor.shape().end(), ", ")));
    }
    tensors.erase(found);
    const mx::array transposed = mx::contiguous(mx::transpose(tensor));
    mx::eval(transposed);
    return transposed;
  };
  std::vector<LoraPair> pairs;
  const int rank = layout.options().rank;
  for (const AdaptedModule& module : layout.modules()) {
    const mx::array a = take(tensor_name(module, 'A'), rank, module.in_features);
    const mx::array b = take(tensor_name(module, 'B'), module.out_features, rank);
    pairs.push_back({a, b});
  }
  if (!tensors.empty()) {
    throw UserError(fmt::format("{}: tensor {} does not belong to the adapter described by {}",
                                file, tensors.begin()->first, description));
  }
  return pairs;
}

}  // namespace

std::vector<FileContents> adapter_files(const AdapterLayout& layout,
                                        const std::vector<LoraPair>& pairs,
                                        const std::string& base_model) {
  std::vector<std::pair<std::string, mx::array>> tensors;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const AdaptedModule& module = layout.modules()[i];
    tensors.emplace_back(tensor_name(module, 'A'), mx::transpose(pairs[i].a));
    tensors.emplace_back(tensor_name(module, 'B'), mx::transpose(pairs[i].b));
  }
  return {{kWeightsFile, to_safetensors(tensors)}, {kConfigFile, config_text(layout, base_model)}};
}

void save_adapter(const std::string& folder, const AdapterLayout& layout,
                  const std::vector<LoraPair>& pairs, const std::string& base_model) {
  make_folder(folder);
  write_files_atomically(folder, adapter_files(layout, pairs, base_model));
}

SavedAdapter load_adapter(const std::string& folder, const LlamaConfig& model) {
  AdapterLayout layout(model, ConfigReader(in_folder(folder, kConfigFile)).options());
  std::vector<LoraPair> pairs = load_pairs(in_folder(folder, kWeightsFile), layout, kConfigFile);
  return {std::move(layout), std::move(pairs)};
}

SavedAdapter load_adapter_file(const std::string& file, const AdapterOptions& options,
                               const LlamaConfig& model) {
  const std::filesystem::path config = std::filesystem::path(file).parent_path() / kConfigFile;
  const bool described = std::filesystem::exists(config);
  AdapterLayout layout(model, described ? ConfigReader(config.string()).options() : options);
  std::vector<LoraPair> pairs = load_pairs(
      file, layout, described ? kConfigFile : "--rank, --num-layers and --target-modules");
  return {std::move(layout), std::move(pairs)};
}

}  // namespace graft::app
