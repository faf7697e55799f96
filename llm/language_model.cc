#include "graft/llm/language_model.h"

#include <utility>

#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/data/fingerprint.h"

namespace graft::llm {

LanguageModel::LanguageModel(const std::string& path, const LlamaOptions& options)
    : LanguageModel(GgufFile::open(path), options) {}

LanguageModel::LanguageModel(GgufFile opened, const LlamaOptions& options)
    : file(std::move(opened)), tokenizer(file), llama(LlamaWeights(file), options) {}

std::string LanguageModel::attach(const std::string& adapter_folder) {
  SavedAdapter saved = load_adapter(adapter_folder, llama.config());
  std::string doubt = doubt_about_base(saved.base, llama.config(), [&] { return fingerprint(); });
  llama.set_adapter(std::move(saved.layout), std::move(saved.pairs));
  return doubt;
}

const std::string& LanguageModel::fingerprint() const {
  std::call_once(fingerprint_taken_, [&] { fingerprint_ = fingerprint_of_file(file.name()); });
  return fingerprint_;
}

}  // namespace graft::llm
