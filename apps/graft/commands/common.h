#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "apps/graft/commands/flags.h"
#include "apps/graft/user_error.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/language_model.h"

namespace graft::app {

/// What --dtype names. Throws UserError.
mx::Dtype dtype_named(const std::string& name);

/// Uses `threads` threads, 0 for all cores, in Graft's kernels and in the BLAS behind MLX.
void use_threads(int threads);

/// The model that the flags ask for, whose number of threads is then used. `training` also packs
/// the weights for gradients. Throws UserError, before it reads them, if the weights would not fit
/// into the memory that is left.
LanguageModel load_model(const ModelFlags& flags, bool training);

/// Puts an adapter from a folder on the model, in place of another, and says on standard error if
/// it seems to be of another model. Throws UserError, and the one before then stays.
void attach_adapter(LanguageModel& model, const std::string& folder);

/// The adapter on a model: both empty if there is none.
struct ChosenAdapter {
  std::string name;
  std::string folder;
};

/// Puts the adapter on the model that the flags ask for. Without any, that is the registry's
/// default, if `use_default` and it was added for this model. Throws UserError.
ChosenAdapter choose_adapter(LanguageModel& model, const AdapterFlags& flags, bool use_default);

/// Says on standard error what doubt_about_base found, if anything, of the adapter in `folder`.
void warn_of_base(const std::string& folder, const std::string& doubt);

/// For programs: the samples of a file that were cut off or left out, and where the first of each
/// kind stands.
nlohmann::ordered_json what_is_missing(const Dataset& data);

}  // namespace graft::app
