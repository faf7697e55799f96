#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"

namespace graft::llm {

/// Which model something is for.
struct ModelIdentity {
  std::string name;              ///< A path or a name, for people; empty if not known.
  std::string fingerprint = {};  ///< fingerprint_of_file of its file; empty if not known.
};

/// Whether two names can be of one model. A name is a path, a Hugging Face id, or what a file calls
/// its model: folders, letter case, punctuation, ".gguf" and the kind of quantization are left out,
/// so that "HuggingFaceTB/SmolLM2-135M-Instruct" is "models/SmolLM2-135M-Instruct.Q4_1.gguf".
GRAFT_EXPORT bool same_model(std::string_view one, std::string_view other);

/// Whether `name` is one of `names`, or there is nothing to compare.
GRAFT_EXPORT bool is_named(std::string_view name, const std::vector<std::string>& names);

}  // namespace graft::llm
