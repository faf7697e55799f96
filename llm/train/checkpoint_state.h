#pragma once

#include <nlohmann/json.hpp>

#include "graft/llm/train/checkpoint.h"
#include "graft/llm/user_error.h"

namespace graft::llm {

/// A checkpoint is whole, but of a format from which this version could not go on to the same
/// losses.
class OtherFormat : public UserError {
 public:
  using UserError::UserError;
};

/// A checkpoint's state.json, without "files". Numbers come back as they were, bit for bit.
nlohmann::ordered_json state_of(const Checkpoint& checkpoint);

/// The other way, without the adapter, the moments and the metrics, which are files of their own.
/// Throws OtherFormat, UserError or json::exception.
Checkpoint checkpoint_from_state(const nlohmann::json& state);

}  // namespace graft::llm
