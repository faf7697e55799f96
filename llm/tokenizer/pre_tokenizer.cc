#include "graft/llm/tokenizer/pre_tokenizer.h"

#include <cstddef>

#include "graft/llm/files/utf8.h"
#include "graft/llm/tokenizer/char_class.h"

namespace graft::llm {
namespace {

// Walks over characters and their classes.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) { load(); }

  bool at_end() const { return at_ == text_.size(); }
  std::size_t position() const { return at_; }
  CharClass char_class() const { return class_; }
  bool is_blank() const { return !at_end() && text_[at_] == ' '; }

  void advance() {
    at_ += length_;
    load();
  }

  void skip(CharClass run) {
    while (!at_end() && class_ == run) advance();
  }

 private:
  void load() {
    if (at_end()) return;
    const Utf8Char next = first_char(text_.substr(at_));
    length_ = next.length;
    class_ = class_of(next.code_point);
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::size_t length_ = 0;
  CharClass class_ = CharClass::kOther;
};

std::size_t contraction_length(std::string_view text) {
  for (const std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.starts_with(ending)) return ending.size();
  }
  return 0;
}

// Past a word that is not whitespace: a run of letters or a run of other characters, either after
// at most one blank. `start` itself if there is none.
Cursor skip_word(Cursor start) {
  Cursor end = start;
  if (end.is_blank()) end.advance();
  if (end.at_end()) return start;
  const CharClass run = end.char_class();
  if (run != CharClass::kLetter && run != CharClass::kOther) return start;
  end.skip(run);
  return end;
}

// Past a run of whitespace: all of it if nothing but a digit or the end follows (a digit ends the
// piece that the expression sees); else all but the last character, which goes with what follows,
// or stands alone.
Cursor skip_space(Cursor start) {
  Cursor last = start;
  Cursor end = start;
  while (!end.at_end() && end.char_class() == CharClass::kSpace) {
    last = end;
    end.advance();
  }
  const bool piece_ends = end.at_end() || end.char_class() == CharClass::kDigit;
  return piece_ends || last.position() == start.position() ? end : last;
}

Cursor skip_any(Cursor start, std::string_view rest) {
  Cursor end = start;
  if (const std::size_t length = contraction_length(rest)) {
    while (end.position() < start.position() + length) end.advance();
    return end;
  }
  if (start.char_class() == CharClass::kDigit) {
    end.advance();
    return end;
  }
  end = skip_word(start);
  return end.position() > start.position() ? end : skip_space(start);
}

}  // namespace

void split_smollm(std::string_view text, const std::function<void(std::string_view)>& word) {
  Cursor cursor(text);
  while (!cursor.at_end()) {
    const std::size_t start = cursor.position();
    cursor = skip_any(cursor, text.substr(start));
    word(text.substr(start, cursor.position() - start));
  }
}

}  // namespace graft::llm
