#include "apps/graft/commands/common.h"

#include <dlfcn.h>

#include <utility>

#include "apps/graft/adapter/adapter_file.h"
#include "apps/graft/data/fingerprint.h"
#include "apps/graft/model/llama_weights.h"
#include "graft/context.h"

namespace graft::app {

void use_threads(int threads) {
  set_num_threads(threads);
  // The BLAS is found at run time, as MLX finds it: builds differ in which one they link.
  using SetThreads = void (*)(int);
  if (void* symbol = ::dlsym(RTLD_DEFAULT, "openblas_set_num_threads")) {
    reinterpret_cast<SetThreads>(symbol)(num_threads());
  }
}

LoadedModel::LoadedModel(const ModelFlags& flags, bool training)
    : file((use_threads(flags.threads), GgufFile::open(flags.model))),
      tokenizer(file),
      llama(LlamaWeights(file),
            {.dtype = flags.dtype == "bf16" ? mx::bfloat16 : mx::float32, .training = training}) {}

void LoadedModel::attach(const std::string& adapter_folder) {
  SavedAdapter saved = load_adapter(adapter_folder, llama.config());
  llama.set_adapter(std::move(saved.layout), std::move(saved.pairs));
}

const std::string& LoadedModel::fingerprint() const {
  if (fingerprint_.empty()) fingerprint_ = fingerprint_of_file(file.name());
  return fingerprint_;
}

}  // namespace graft::app
