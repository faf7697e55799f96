#include "apps/graft/commands/common.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "apps/graft/terminal/available_memory.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/terminal/tell.h"
#include "graft/context.h"
#include "graft/llm/adapter/registry.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/model/llama_tensors.h"

namespace graft::app {
namespace {

// The packed weights alone: a model that passes may still need more than there is.
GgufFile checked_to_fit(GgufFile file, const ModelFlags& flags, bool training) {
  const LlamaConfig config = read_llama_config(file);
  check_llama_tensors(file, config);
  const AvailableMemory available = available_memory();
  const auto bytes = [&](mx::Dtype dtype) {
    return Llama::packed_bytes(config, {.dtype = dtype, .training = training});
  };
  const std::int64_t need = bytes(dtype_named(flags.dtype));
  if (need <= available.bytes) return file;
  const std::int64_t half = bytes(mx::bfloat16);
  throw UserError(fmt::format("{}: its weights take {} of memory in {} and {} leaves {}{}",
                              file.name(), format_bytes(need), flags.dtype, available.limit,
                              format_bytes(available.bytes),
                              half <= available.bytes ? "; --dtype bf16 takes " + format_bytes(half)
                                                      : "; take a smaller model"));
}

// A user without a home has no default adapter; that is no mistake.
std::optional<AdapterRegistry> find_registry(const std::string& folder) {
  try {
    return AdapterRegistry(folder);
  } catch (const UserError&) {
    return std::nullopt;
  }
}

}  // namespace

mx::Dtype dtype_named(const std::string& name) {
  if (name == "f32") return mx::float32;
  if (name == "bf16") return mx::bfloat16;
  throw UserError(fmt::format("--dtype: expected f32 or bf16, got '{}'", name));
}

void use_threads(int threads) {
  set_num_threads(threads);
  // The BLAS is found at run time, as MLX finds it: builds differ in which one they link.
  using SetThreads = void (*)(int);
  if (void* symbol = ::dlsym(RTLD_DEFAULT, "openblas_set_num_threads")) {
    reinterpret_cast<SetThreads>(symbol)(num_threads());
  }
}

LanguageModel load_model(const ModelFlags& flags, bool training) {
  use_threads(flags.threads);
  return LanguageModel(checked_to_fit(GgufFile::open(flags.model), flags, training),
                       {.dtype = dtype_named(flags.dtype), .training = training});
}

void attach_adapter(LanguageModel& model, const std::string& folder) {
  warn_of_base(folder, model.attach(folder));
}

ChosenAdapter choose_adapter(LanguageModel& model, const AdapterFlags& flags, bool use_default) {
  ChosenAdapter chosen;
  if (!flags.path.empty()) {
    chosen = {flags.path, flags.path};
  } else if (!flags.name.empty()) {
    chosen = {flags.name, AdapterRegistry(flags.registry).find(flags.name, model.identity())};
  } else if (use_default && !flags.none) {
    const auto registry = find_registry(flags.registry);
    if (registry && registry->default_name() && registry->default_fits(model.identity())) {
      chosen = {*registry->default_name(),
                registry->find(*registry->default_name(), model.identity())};
      fmt::print(stderr, "adapter: {}, the default; --no-adapter leaves it out\n", chosen.name);
    }
  }
  if (!chosen.folder.empty()) attach_adapter(model, chosen.folder);
  return chosen;
}

void warn_of_base(const std::string& folder, const std::string& doubt) {
  if (!doubt.empty()) warn(fmt::format("warning: the adapter in {} {}", folder, doubt));
}

nlohmann::ordered_json what_is_missing(const Dataset& data) {
  nlohmann::ordered_json facts = {{"truncated", data.truncated}};
  if (data.truncated > 0) facts["first_truncated_line"] = data.first_truncated_line;
  facts["left_out"] = nlohmann::ordered_json::array();
  for (const LeftOut& some : data.left_out) {
    facts["left_out"].push_back({{"reason", name_of(some.reason)},
                                 {"samples", some.samples},
                                 {"first_line", some.first_line}});
  }
  return facts;
}

}  // namespace graft::app
