#include "apps/graft/commands/adapter_choice.h"

#include <fmt/format.h>

#include <cstdio>
#include <optional>

#include "apps/graft/user_error.h"

namespace graft::app {
namespace {

// A user without a home has no default adapter; that is no mistake.
std::optional<AdapterRegistry> find_registry(const std::string& folder) {
  try {
    return AdapterRegistry(folder);
  } catch (const UserError&) {
    return std::nullopt;
  }
}

}  // namespace

ModelIdentity identity_of(const LoadedModel& model) {
  return {model.file.name(), model.fingerprint()};
}

ChosenAdapter choose_adapter(LoadedModel& model, const AdapterFlags& flags, bool use_default) {
  ChosenAdapter chosen;
  if (!flags.path.empty()) {
    chosen = {flags.path, flags.path};
  } else if (!flags.name.empty()) {
    chosen = {flags.name, AdapterRegistry(flags.registry).find(flags.name, identity_of(model))};
  } else if (use_default && !flags.none) {
    const auto registry = find_registry(flags.registry);
    if (registry && registry->default_name() && registry->default_fits(identity_of(model))) {
      chosen = {*registry->default_name(),
                registry->find(*registry->default_name(), identity_of(model))};
      fmt::print(stderr, "adapter: {}, the default; --no-adapter leaves it out\n", chosen.name);
    }
  }
  if (!chosen.folder.empty()) model.attach(chosen.folder);
  return chosen;
}

}  // namespace graft::app
