#pragma once

#include <string>

#include "apps/graft/commands/common.h"
#include "apps/graft/user_error.h"
#include "graft/llm/adapter/registry.h"

namespace graft::app {

/// Flags of every command that runs a model with an adapter, or without.
struct AdapterFlags {
  std::string path;      ///< A folder, or empty.
  std::string name;      ///< In the registry, or empty.
  bool none = false;     ///< Not even the default.
  std::string registry;  ///< A folder; empty is the usual one.
};

/// The adapter on a model: both empty if there is none.
struct ChosenAdapter {
  std::string name;
  std::string folder;
};

/// The model's file as registry entries name it.
ModelIdentity identity_of(const LoadedModel& model);

/// Puts the adapter on the model that the flags ask for. Without any, that is the registry's
/// default, if `use_default` and it was added for this model. Throws UserError.
ChosenAdapter choose_adapter(LoadedModel& model, const AdapterFlags& flags, bool use_default);

}  // namespace graft::app
