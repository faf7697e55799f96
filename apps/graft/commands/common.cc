#include "apps/graft/commands/common.h"

#include <dlfcn.h>

#include "apps/graft/model/llama_weights.h"
#include "graft/context.h"

namespace graft::app {

void ModelFlags::add_to(CLI::App& command) {
  command.add_option("--model", model, "The model, a GGUF file")->required();
  command
      .add_option("--dtype", dtype,
                  "How base weights are kept and multiplied: f32, or bf16 for half the memory and, "
                  "on CPUs with bf16 instructions, twice the speed")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command.add_option("--threads", threads, "Threads to use; 0 is every core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

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
