#pragma once

#include <string>

namespace graft::app {

/// The flags of `graft adapter ...`; each command has its own of them.
struct AdapterCommandFlags {
  std::string registry;  ///< A folder; empty is the usual one.
  std::string name;
  std::string source;
  std::string model;
  bool replace = false;
  bool yes = false;
  bool none = false;
  bool json = false;
};

/// What `graft adapter list`, `add`, `remove` and `use` run. They throw UserError.
void run_adapter_list(const AdapterCommandFlags& flags);
void run_adapter_add(const AdapterCommandFlags& flags);
void run_adapter_remove(const AdapterCommandFlags& flags);
void run_adapter_use(const AdapterCommandFlags& flags);

}  // namespace graft::app
