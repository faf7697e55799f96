#pragma once

#include <cstdint>

namespace graft::llm {

/// What the pre-tokenizer tells apart. A digit is any number character (Nd, Nl, No).
enum class CharClass : std::uint8_t { kOther, kLetter, kDigit, kSpace };

/// The class of a Unicode code point, as Hugging Face `tokenizers` sees it.
CharClass class_of(char32_t code_point);

}  // namespace graft::llm
