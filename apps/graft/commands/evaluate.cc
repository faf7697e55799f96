#include "apps/graft/commands/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "apps/graft/data/dataset.h"
#include "apps/graft/generate/generator.h"
#include "apps/graft/user_error.h"

namespace graft::app {
namespace {

/// A prompt, the answer the file gives, and the model's.
struct Question {
  std::vector<int> prompt;
  std::string text;  ///< The prompt to show: the user's words.
  std::string expected;
  std::string answer;

  bool is_right() const { return answer == expected; }
};

std::string trimmed(const std::string& text) {
  constexpr const char* kSpace = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// What the user says last in a chat: "<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n".
std::string users_words(const Tokenizer& tokenizer, const std::vector<int>& prompt) {
  std::string text = tokenizer.decode(prompt, /*skip_special=*/false);
  constexpr std::string_view kOpening = "<|im_start|>user\n";
  if (const std::size_t start = text.rfind(kOpening); start != std::string::npos) {
    text = text.substr(start + kOpening.size());
  }
  return trimmed(text.substr(0, text.find("<|im_end|>")));
}

std::vector<Question> read_questions(const std::string& path, const LoadedModel& model) {
  const Dataset data = read_dataset(path, model.file, model.tokenizer, {.mask_prompt = true});
  if (data.truncated > 0) {
    throw UserError(fmt::format("{}: {} samples are longer than {} tokens", path, data.truncated,
                                DataOptions().max_seq_length));
  }
  std::vector<Question> questions;
  for (const Sample& sample : data.samples) {
    // The answer is the last run of targets; a chat may have earlier ones, which are prompt here.
    auto stop = std::find(sample.is_target.rbegin(), sample.is_target.rend(), true);
    auto start = std::find(stop, sample.is_target.rend(), false);
    const auto end_at = sample.is_target.rend() - stop;
    const auto begin_at = sample.is_target.rend() - start;
    const auto tokens = sample.tokens.begin();
    Question question;
    question.prompt.assign(tokens, tokens + begin_at);
    question.text = users_words(model.tokenizer, question.prompt);
    const std::vector<int> expected(tokens + begin_at, tokens + end_at);
    question.expected = trimmed(model.tokenizer.decode(expected));
    questions.push_back(std::move(question));
  }
  return questions;
}

void answer_all(std::vector<Question>& questions, const LoadedModel& model, const Adapter* adapter,
                const EvaluateFlags& flags) {
  // Prompts of like length together, so that little is padding.
  std::vector<std::size_t> order(questions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, {}, [&](std::size_t i) { return questions[i].prompt.size(); });
  const auto batch_size = static_cast<std::size_t>(flags.batch_size);
  for (std::size_t start = 0; start < order.size(); start += batch_size) {
    const std::size_t stop = std::min(order.size(), start + batch_size);
    std::vector<std::vector<int>> prompts;
    for (std::size_t i = start; i < stop; ++i) prompts.push_back(questions[order[i]].prompt);
    const auto answers =
        generate_greedy(model.llama, adapter, prompts, flags.max_tokens,
                        [&](int token) { return model.tokenizer.ends_generation(token); });
    for (std::size_t i = start; i < stop; ++i) {
      questions[order[i]].answer = trimmed(model.tokenizer.decode(answers[i - start]));
    }
  }
}

// One line however many the text has.
std::string one_line(const std::string& text, std::size_t longest) {
  std::string line;
  for (const char c : text) line += c == '\n' ? ' ' : c;
  if (line.size() <= longest) return line;
  // Cut between characters, not inside one: UTF-8 continuation bytes are 10xxxxxx.
  std::size_t cut = longest;
  while (cut > 0 && (static_cast<unsigned char>(line[cut]) & 0xC0) == 0x80) --cut;
  return line.substr(0, cut) + "...";
}

}  // namespace

void run_evaluate(const EvaluateFlags& flags) {
  const LoadedModel model(flags.model, /*training=*/false);
  const AttachedAdapter adapter(flags.adapter_path, model.llama.config());
  std::vector<Question> questions = read_questions(flags.data, model);
  answer_all(questions, model, adapter.get(), flags);

  constexpr std::size_t kLongest = 160;
  const auto shown = std::min(questions.size(), static_cast<std::size_t>(flags.show));
  for (std::size_t i = 0; i < shown; ++i) {
    const Question& question = questions[i];
    fmt::print("{} {}\n    expected {}\n    got      {}\n", question.is_right() ? "[ok]" : "[--]",
               one_line(question.text, kLongest), one_line(question.expected, kLongest),
               one_line(question.answer, kLongest));
  }
  const auto right = std::ranges::count_if(questions, &Question::is_right);
  fmt::print("exact match: {:.1f} % ({} of {})\n",
             100.0 * static_cast<double>(right) / static_cast<double>(questions.size()), right,
             questions.size());
}

}  // namespace graft::app
