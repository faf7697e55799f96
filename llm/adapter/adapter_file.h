#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/model/model_names.h"

namespace graft::llm {

struct FileContents;

/// The two files of an adapter's folder, as PEFT names them.
inline constexpr const char* kAdapterWeightsFile = "adapter_model.safetensors";
inline constexpr const char* kAdapterConfigFile = "adapter_config.json";

/// An adapter with its weights, in the layout's order, and the model that it was trained on as far
/// as its files say: PEFT's give no fingerprint.
struct SavedAdapter {
  AdapterLayout layout;
  std::vector<LoraPair> pairs;
  ModelIdentity base = {};
};

/// The two files as PEFT reads them: lora_A.weight (rank, in) and lora_B.weight (out, rank),
/// float32. The base's fingerprint is in the metadata of the weights, where PEFT looks past it.
GRAFT_EXPORT std::vector<FileContents> adapter_files(const AdapterLayout& layout,
                                                     const std::vector<LoraPair>& pairs,
                                                     const ModelIdentity& base);

/// Writes these files into `folder` (made if need be), neither before both are on disk. Throws
/// UserError.
GRAFT_EXPORT void save_adapter(const std::string& folder, const AdapterLayout& layout,
                               const std::vector<LoraPair>& pairs, const ModelIdentity& base);

/// Makes the folder, and checks that save_adapter will be able to write into it. Throws UserError.
GRAFT_EXPORT void prepare_adapter_folder(const std::string& folder);

/// Reads such a folder, also one that PEFT wrote, and checks it against the model's sizes. Throws
/// UserError for anything in it that this program would not compute as PEFT does.
GRAFT_EXPORT SavedAdapter load_adapter(const std::string& folder, const LlamaConfig& model);

/// Reads a file of weights alone. What they are is said by the adapter_config.json beside it, or by
/// `options` if there is none. Throws UserError.
GRAFT_EXPORT SavedAdapter load_adapter_file(const std::string& file, const AdapterOptions& options,
                                            const LlamaConfig& model);

/// Why an adapter of `base` may be of another model than the one with these names and, if it is
/// asked for, this fingerprint: a line for people, or empty. Contents decide where the adapter says
/// what they were; names, which change as files are moved, only where it does not.
GRAFT_EXPORT std::string doubt_about_base(const ModelIdentity& base, const LlamaConfig& model,
                                          const std::function<std::string()>& fingerprint);

}  // namespace graft::llm
