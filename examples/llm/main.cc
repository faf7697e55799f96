// Fine-tunes a language model on prompts and completions, and has it answer one before and after:
//
//   llm_example MODEL.gguf DATA.jsonl ADAPTER_FOLDER PROMPT
#include <cstdio>
#include <string>

#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/generate/conversation.h"
#include "graft/llm/language_model.h"
#include "graft/llm/train/trainer.h"

namespace llm = graft::llm;

void answer(const llm::LanguageModel& model, const std::string& prompt) {
  llm::Conversation conversation(model);
  llm::Sampler sampler;  // takes the likeliest token
  std::printf("> %s\n", prompt.c_str());
  conversation.say(prompt, /*max_tokens=*/32, sampler,
                   [](const std::string& piece) { std::printf("%s", piece.c_str()); });
  std::printf("\n");
}

void run(const std::string& model_file, const std::string& data_file, const std::string& folder,
         const std::string& prompt) {
  llm::LanguageModel model(model_file, {.training = true});
  answer(model, prompt);

  const llm::Dataset data =
      llm::read_dataset(data_file, model.file, model.tokenizer, {.mask_prompt = true});
  llm::Batches batches(data.samples, {.batch_size = 4, .pad_token = model.tokenizer.pad()});
  const llm::AdapterLayout layout(model.llama.config(), {.rank = 8});
  llm::Trainer trainer(model.llama, layout, layout.initial_pairs(/*seed=*/0),
                       {.schedule = {.peak = 5e-3}});
  for (int i = 0; i < 30; ++i) {
    const llm::StepResult step = trainer.step(batches.at(i));
    if (i % 10 == 0 || i == 29) std::printf("iteration %d: loss %.3f\n", i + 1, step.loss);
  }

  llm::save_adapter(folder, layout, trainer.pairs(), model.identity());  // PEFT reads it too
  model.attach(folder);
  answer(model, prompt);
}

int main(int argc, char** argv) {
  if (argc != 5) return std::fprintf(stderr, "expected: MODEL DATA ADAPTER_FOLDER PROMPT\n"), 2;
  try {
    run(argv[1], argv[2], argv[3], argv[4]);
  } catch (const llm::UserError& error) {  // names the file, the line and what helps
    return std::fprintf(stderr, "llm_example: %s\n", error.what()), 1;
  }
}
