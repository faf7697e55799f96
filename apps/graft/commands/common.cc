#include "apps/graft/commands/common.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>

#include "apps/graft/terminal/available_memory.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/terminal/tell.h"
#include "apps/graft/user_error.h"
#include "graft/context.h"
#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/data/fingerprint.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/model/llama_tensors.h"
#include "graft/llm/model/llama_weights.h"

namespace graft::app {

void use_threads(int threads) {
  set_num_threads(threads);
  // The BLAS is found at run time, as MLX finds it: builds differ in which one they link.
  using SetThreads = void (*)(int);
  if (void* symbol = ::dlsym(RTLD_DEFAULT, "openblas_set_num_threads")) {
    reinterpret_cast<SetThreads>(symbol)(num_threads());
  }
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

mx::Dtype dtype_named(const std::string& name) {
  if (name == "f32") return mx::float32;
  if (name == "bf16") return mx::bfloat16;
  throw UserError(fmt::format("--dtype: expected f32 or bf16, got '{}'", name));
}

namespace {

// The packed weights alone: a model that passes may still need more than there is.
const GgufFile& checked_to_fit(const GgufFile& file, const ModelFlags& flags, bool training) {
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

}  // namespace

LoadedModel::LoadedModel(const ModelFlags& flags, bool training)
    : file((use_threads(flags.threads), GgufFile::open(flags.model))),
      tokenizer(file),
      llama(LlamaWeights(checked_to_fit(file, flags, training)),
            {.dtype = dtype_named(flags.dtype), .training = training}) {}

void LoadedModel::attach(const std::string& adapter_folder) {
  SavedAdapter saved = load_adapter(adapter_folder, llama.config());
  warn_of_base(adapter_folder,
               doubt_about_base(saved.base, llama.config(), [&] { return fingerprint(); }));
  llama.set_adapter(std::move(saved.layout), std::move(saved.pairs));
}

const std::string& LoadedModel::fingerprint() const {
  if (fingerprint_.empty()) fingerprint_ = fingerprint_of_file(file.name());
  return fingerprint_;
}

void warn_of_base(const std::string& folder, const std::string& doubt) {
  if (!doubt.empty()) warn(fmt::format("warning: the adapter in {} {}", folder, doubt));
}

}  // namespace graft::app
