#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/model/llama.h"
#include "graft/llm/tokenizer/tokenizer.h"

namespace graft::llm {

/// A prompt, and the answer that a file of data gives to it.
struct Question {
  std::vector<int> prompt;
  std::string text;      ///< The prompt to show: the user's words.
  std::string expected;  ///< Without blanks around it.
};

/// The last answer of each sample as the one asked for; earlier ones are prompt. The samples must
/// have been read with their prompts masked, and none of them cut off.
GRAFT_EXPORT std::vector<Question> questions_of(const std::vector<Sample>& samples,
                                                const Tokenizer& tokenizer);

/// Indices of the questions that are answered in one batch, shortest prompts first: at most
/// `batch_size`, fewer if they are long.
GRAFT_EXPORT std::vector<std::vector<std::size_t>> answered_together(
    const std::vector<Question>& questions, int max_tokens, int batch_size);

/// The model's likeliest answer to each, without blanks around it.
GRAFT_EXPORT std::vector<std::string> answer_all(const std::vector<Question>& questions,
                                                 const Llama& model, const ModelAdapter* adapter,
                                                 const Tokenizer& tokenizer, int max_tokens,
                                                 int batch_size);

}  // namespace graft::llm
