#include "graft/llm/adapter/adapter_file.h"

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "graft/llm/adapter/adapter_config.h"
#include "graft/llm/files/atomic_file.h"
#include "graft/llm/files/input_file.h"
#include "graft/llm/files/printable.h"
#include "graft/llm/model/model_names.h"
#include "graft/llm/user_error.h"
#include "graft/llm/weights/safetensors.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::llm {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

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

// Far above any real one.
constexpr std::uint64_t kMaxConfigBytes = std::uint64_t{1} << 20;

constexpr const char* kFingerprintKey = "graft.base_fingerprint";

// An adapter without its pairs yet.
SavedAdapter read_config(const std::string& path, const LlamaConfig& model) {
  const AdapterConfig config = read_adapter_config(read_input(path, kMaxConfigBytes), path);
  try {
    return {AdapterLayout(model, config.options), {}, {config.base_model}};
  } catch (const UserError& error) {
    throw UserError(fmt::format("{}: {}", path, error.what()));
  }
}

// Fills in what a safetensors file has of an adapter. `description` is where its layout comes from,
// as an error names it.
void load_weights(const std::string& file, const char* description, SavedAdapter& adapter) {
  const AdapterLayout& layout = adapter.layout;
  auto [tensors, metadata] = read_safetensors(file);
  const auto take = [&](const std::string& name, int rows, int columns) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) {
      throw UserError(fmt::format("{}: tensor {} is missing", file, name));
    }
    const mx::array tensor = found->second;
    if (tensor.shape() != mx::Shape{rows, columns}) {
      throw UserError(
          fmt::format("{}: tensor {}: expected ({}, {}), got ({}); is this adapter of "
                      "another model?",
                      file, name, rows, columns,
                      fmt::join(tensor.shape().begin(), tensor.shape().end(), ", ")));
    }
    tensors.erase(found);
    const mx::array transposed = mx::contiguous(mx::transpose(tensor));
    if (!mx::all(mx::isfinite(transposed)).item<bool>()) {
      throw UserError(fmt::format("{}: tensor {}: not all of its values are finite", file, name));
    }
    return transposed;
  };
  const int rank = layout.options().rank;
  for (const AdaptedModule& module : layout.modules()) {
    const mx::array a = take(tensor_name(module, 'A'), rank, module.in_features);
    const mx::array b = take(tensor_name(module, 'B'), module.out_features, rank);
    adapter.pairs.push_back({a, b});
  }
  if (!tensors.empty()) {
    throw UserError(fmt::format("{}: tensor {} does not belong to the adapter that {} describes",
                                file, printable(tensors.begin()->first, 160), description));
  }
  adapter.base.fingerprint = metadata[kFingerprintKey];
}

}  // namespace

std::vector<FileContents> adapter_files(const AdapterLayout& layout,
                                        const std::vector<LoraPair>& pairs,
                                        const ModelIdentity& base) {
  layout.check(pairs);
  std::vector<std::pair<std::string, mx::array>> tensors;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const AdaptedModule& module = layout.modules()[i];
    tensors.emplace_back(tensor_name(module, 'A'), mx::transpose(pairs[i].a));
    tensors.emplace_back(tensor_name(module, 'B'), mx::transpose(pairs[i].b));
  }
  std::map<std::string, std::string> metadata;
  if (!base.fingerprint.empty()) metadata[kFingerprintKey] = base.fingerprint;
  return {{kAdapterWeightsFile, to_safetensors(tensors, metadata)},
          {kAdapterConfigFile, config_text(layout, base.name)}};
}

void save_adapter(const std::string& folder, const AdapterLayout& layout,
                  const std::vector<LoraPair>& pairs, const ModelIdentity& base) {
  make_folder(folder);
  write_files_atomically(folder, adapter_files(layout, pairs, base));
}

void prepare_adapter_folder(const std::string& folder) {
  make_folder(folder);
  for (const char* file : {kAdapterWeightsFile, kAdapterConfigFile}) {
    check_writable(in_folder(folder, file));
  }
}

SavedAdapter load_adapter(const std::string& folder, const LlamaConfig& model) {
  SavedAdapter adapter = read_config(in_folder(folder, kAdapterConfigFile), model);
  load_weights(in_folder(folder, kAdapterWeightsFile), kAdapterConfigFile, adapter);
  return adapter;
}

SavedAdapter load_adapter_file(const std::string& file, const AdapterOptions& options,
                               const LlamaConfig& model) {
  const std::filesystem::path config =
      std::filesystem::path(file).parent_path() / kAdapterConfigFile;
  const bool described = std::filesystem::exists(config);
  SavedAdapter adapter = described ? read_config(config.string(), model)
                                   : SavedAdapter{AdapterLayout(model, options), {}};
  load_weights(file, described ? kAdapterConfigFile : "--rank, --num-layers and --target-modules",
               adapter);
  return adapter;
}

std::string doubt_about_base(const ModelIdentity& base, const LlamaConfig& model,
                             const std::function<std::string()>& fingerprint) {
  const std::string trained_on = base.name.empty() ? "another file" : printable(base.name);
  const std::string given = model.names.empty() ? "this one" : printable(model.names.front());
  if (!base.fingerprint.empty()) {
    if (base.fingerprint == fingerprint()) return {};
    return fmt::format(
        "was trained on {} as it was then, which is not {} as it is now: its answers may be wrong",
        trained_on, given);
  }
  if (is_named(base.name, model.names)) return {};
  return fmt::format(
      "says that it was trained on '{}', and the model is '{}': if they are not the same, its "
      "answers "
      "are wrong",
      trained_on, given);
}

}  // namespace graft::llm
