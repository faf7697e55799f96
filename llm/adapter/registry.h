#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/model/llama_config.h"

namespace graft::llm {

/// A folder of adapters under names of their own: a folder each, with the two files of a PEFT
/// adapter and graft.json, which says what model it was added for. One may be the default.
class GRAFT_EXPORT AdapterRegistry {
 public:
  /// An adapter as its files describe it.
  struct Entry {
    std::string name;
    std::string folder;
    bool is_default = false;
    std::string problem;  ///< Why it can't be used; the rest is then empty.
    ModelIdentity model;
    int rank = 0;
    double alpha = 0.0;
    std::vector<std::string> targets;
    std::int64_t bytes = 0;
  };

  /// The folder need not exist; empty is `default_folder()`.
  explicit AdapterRegistry(const std::string& folder);

  /// $GRAFT_HOME/adapters, or else $XDG_DATA_HOME/graft/adapters, or else
  /// ~/.local/share/graft/adapters. Throws UserError if none of the variables is set.
  static std::string default_folder();

  const std::string& folder() const { return folder_; }

  std::vector<Entry> list() const;  ///< By name.

  /// The folder of an adapter that was added for this very model. Throws UserError if there is
  /// none of that name, or it was added for another model.
  std::string find(const std::string& name, const ModelIdentity& model) const;

  /// Copies an adapter in under a name, after checking every tensor against `config`. It is there
  /// whole or not at all. Gives what the adapter says of its model. Throws UserError; also if the
  /// name is taken, unless `replace`.
  ModelIdentity add(const std::string& name, const std::string& source, const ModelIdentity& model,
                    const LlamaConfig& config, bool replace);

  void remove(const std::string& name);
  void check_exists(const std::string& name) const;  ///< Throws UserError, saying what there is.

  std::optional<std::string> default_name() const;
  void set_default(const std::optional<std::string>& name);

  /// Whether the default, if there is one, was added for this model.
  bool default_fits(const ModelIdentity& model) const;

 private:
  std::string path_of(const std::string& name) const;
  Entry read_entry(const std::string& name) const;

  std::string folder_;
};

/// The model that an adapter's configuration names, as it stands there; empty if it names none.
/// Throws UserError if the folder has no readable configuration.
GRAFT_EXPORT std::string base_model_of(const std::string& adapter_folder);

}  // namespace graft::llm
