#include "apps/graft/commands/common.h"

#include <dlfcn.h>

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

AttachedAdapter::AttachedAdapter(const std::string& folder, const LlamaConfig& model) {
  if (folder.empty()) return;
  saved_ = load_adapter(folder, model);
  adapter_ = Adapter{&saved_->layout, saved_->pairs, std::nullopt, {}};
}

}  // namespace graft::app
