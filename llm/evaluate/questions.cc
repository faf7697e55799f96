#include "graft/llm/evaluate/questions.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>

#include "graft/llm/evaluate/mean_loss.h"
#include "graft/llm/generate/generator.h"

namespace graft::llm {
namespace {

std::string trimmed(const std::string& text) {
  constexpr const char* kSpace = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// What the user says last in a chat, "<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n".
// The marks are looked for as tokens: the words may have them written out.
std::string users_words(const Tokenizer& tokenizer, std::span<const int> prompt) {
  constexpr std::string_view kUser = "user\n";
  std::string text;
  const auto end_mark = tokenizer.find_special("<|im_end|>");
  for (std::size_t end = prompt.size(), at = prompt.size(); at-- > 0;) {
    if (prompt[at] == end_mark) end = at;
    if (prompt[at] != tokenizer.find_special("<|im_start|>")) continue;
    text = tokenizer.decode(prompt.subspan(at + 1, end - at - 1), /*skip_special=*/false);
    if (text.starts_with(kUser)) return trimmed(text.substr(kUser.size()));
    end = at;
  }
  return trimmed(text);
}

}  // namespace

std::vector<Question> questions_of(const std::vector<Sample>& samples, const Tokenizer& tokenizer) {
  std::vector<Question> questions;
  for (const Sample& sample : samples) {
    // The answer is the last run of targets; a chat may have earlier ones, which are prompt here.
    auto stop = std::find(sample.is_target.rbegin(), sample.is_target.rend(), true);
    auto start = std::find(stop, sample.is_target.rend(), false);
    const auto end_at = sample.is_target.rend() - stop;
    const auto begin_at = sample.is_target.rend() - start;
    const auto tokens = sample.tokens.begin();
    Question question;
    question.prompt.assign(tokens, tokens + begin_at);
    question.text = users_words(tokenizer, question.prompt);
    const std::vector<int> expected(tokens + begin_at, tokens + end_at);
    question.expected = trimmed(tokenizer.decode(expected));
    questions.push_back(std::move(question));
  }
  return questions;
}

std::vector<std::vector<std::size_t>> answered_together(const std::vector<Question>& questions,
                                                        int max_tokens, int batch_size) {
  // Prompts of like length together, so that little is padding.
  std::vector<std::size_t> order(questions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, {}, [&](std::size_t i) { return questions[i].prompt.size(); });
  std::vector<std::vector<std::size_t>> groups;
  for (const std::size_t i : order) {
    // Whether it fits beside the others: it is the longest of them.
    const auto fits = [&](const std::vector<std::size_t>& group) {
      const std::int64_t rows = std::ssize(group) + 1;
      return rows <= batch_size &&
             rows * (std::ssize(questions[i].prompt) + max_tokens) <= kTokensAtATime;
    };
    if (groups.empty() || !fits(groups.back())) groups.emplace_back();
    groups.back().push_back(i);
  }
  return groups;
}

std::vector<std::string> answer_all(const std::vector<Question>& questions, const Llama& model,
                                    const ModelAdapter* adapter, const Tokenizer& tokenizer,
                                    int max_tokens, int batch_size) {
  std::vector<std::string> answers(questions.size());
  for (const auto& group : answered_together(questions, max_tokens, batch_size)) {
    std::vector<std::vector<int>> prompts;
    for (const std::size_t i : group) prompts.push_back(questions[i].prompt);
    const auto outputs = generate_greedy(model, adapter, prompts, max_tokens, [&](int token) {
      return tokenizer.ends_generation(token);
    });
    for (std::size_t row = 0; row < group.size(); ++row) {
      answers[group[row]] = trimmed(tokenizer.decode(outputs[row]));
    }
  }
  return answers;
}

}  // namespace graft::llm
