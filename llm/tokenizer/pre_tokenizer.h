#pragma once

#include <functional>
#include <string_view>

namespace graft::llm {

/// Cuts text into the words that byte pairs are merged within, as SmolLM's pre-tokenizer does: each
/// digit stands alone, and what lies between digits is cut by GPT-2's expression
///
///     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
///
/// `text` must be valid UTF-8. Words come in order, and put together they are the text.
void split_smollm(std::string_view text, const std::function<void(std::string_view)>& word);

}  // namespace graft::llm
