#pragma once

#include <string>
#include <vector>

#include "graft/llm/files/atomic_file.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/llm/model/llama_config.h"

namespace graft::llm {

/// The two files of an adapter's folder, as PEFT names them.
inline constexpr const char* kAdapterWeightsFile = "adapter_model.safetensors";
inline constexpr const char* kAdapterConfigFile = "adapter_config.json";

/// An adapter with its weights, in the layout's order.
struct SavedAdapter {
  AdapterLayout layout;
  std::vector<LoraPair> pairs;
};

/// The two files as PEFT reads them: lora_A.weight (rank, in) and lora_B.weight (out, rank),
/// float32.
std::vector<FileContents> adapter_files(const AdapterLayout& layout,
                                        const std::vector<LoraPair>& pairs,
                                        const std::string& base_model);

/// Writes these files into `folder` (made if need be), neither before both are on disk. Throws
/// UserError.
void save_adapter(const std::string& folder, const AdapterLayout& layout,
                  const std::vector<LoraPair>& pairs, const std::string& base_model);

/// Makes the folder, and checks that save_adapter will be able to write into it. Throws UserError.
void prepare_adapter_folder(const std::string& folder);

/// Reads such a folder, also one that PEFT wrote, and checks it against the model. Throws UserError
/// for anything in it that this program would not compute as PEFT does.
SavedAdapter load_adapter(const std::string& folder, const LlamaConfig& model);

/// Reads a file of weights alone. What they are is said by the adapter_config.json beside it, or by
/// `options` if there is none. Throws UserError.
SavedAdapter load_adapter_file(const std::string& file, const AdapterOptions& options,
                               const LlamaConfig& model);

}  // namespace graft::llm
