#pragma once

#include <string>
#include <vector>

#include "apps/graft/model/adapter_layout.h"
#include "apps/graft/model/llama_config.h"

namespace graft::app {

/// An adapter with its weights, in the layout's order.
struct SavedAdapter {
  AdapterLayout layout;
  std::vector<LoraPair> pairs;
};

/// Writes adapter_model.safetensors and adapter_config.json into `folder` (made if need be) as PEFT
/// reads them: lora_A.weight (rank, in) and lora_B.weight (out, rank), float32, each file replaced
/// in one step. Throws UserError.
void save_adapter(const std::string& folder, const AdapterLayout& layout,
                  const std::vector<LoraPair>& pairs, const std::string& base_model);

/// Makes the folder, and checks that save_adapter will be able to write into it. Throws UserError.
void prepare_adapter_folder(const std::string& folder);

/// Reads such a folder, also one that PEFT wrote, and checks it against the model. Throws UserError
/// for anything in it that this program would not compute as PEFT does.
SavedAdapter load_adapter(const std::string& folder, const LlamaConfig& model);

}  // namespace graft::app
