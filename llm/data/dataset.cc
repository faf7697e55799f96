#include "graft/llm/data/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string_view>
#include <system_error>
#include <utility>

#include "graft/llm/chat/chat_template.h"
#include "graft/llm/files/input_file.h"
#include "graft/llm/files/json_text.h"
#include "graft/llm/files/utf8.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

using Json = nlohmann::json;

enum class Format { kCompletion, kChat, kText };

// Longer than the longest sample that --max-seq-length can ask for; it bounds the memory that one
// line takes.
constexpr std::size_t kMaxLineBytes = std::size_t{8} << 20;

class DatasetReader {
 public:
  DatasetReader(std::string path, const GgufFile& model, const Tokenizer& tokenizer,
                const DataOptions& options)
      : model_(model), tokenizer_(tokenizer), options_(options) {
    dataset_.path = std::move(path);
    if (options.max_seq_length < 2) {
      throw UserError(
          fmt::format("--max-seq-length is {}, expected at least 2", options.max_seq_length));
    }
  }

  Dataset read(InputKind kind) {
    std::ifstream in = open_input(dataset_.path, kind);
    return read(in);
  }

  Dataset read(std::istream& in, std::string* kept = nullptr) {
    for (std::string line;;) {
      ++line_;
      if (!read_line(in, line, kMaxLineBytes, place())) break;
      if (kept != nullptr) kept->append(line).append(1, '\n');
      std::string_view text = line;
      if (line_ == 1 && text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
      if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      add(sample(parse_json_line(text, place())));
    }
    if (dataset_.samples.empty()) {
      throw UserError(dataset_.left_out.empty()
                          ? dataset_.path + ": no samples; expected a JSON object a line"
                          : fmt::format("{}: no sample has a token to train on: {}", dataset_.path,
                                        left_out_text(dataset_)));
    }
    return std::move(dataset_);
  }

 private:
  std::string place() const { return fmt::format("{}:{}", dataset_.path, line_); }

  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(fmt::format("{}: {}", place(), what));
  }

  const std::string& text_of(const Json& object, const char* key) const {
    const auto found = object.find(key);
    if (found == object.end()) fail(fmt::format("\"{}\" is missing", key));
    if (!found->is_string()) fail(fmt::format("\"{}\" is not a string", key));
    return found->get_ref<const std::string&>();
  }

  // The first line decides for the file.
  Format format_of(const Json& object) {
    if (format_) return *format_;
    if (object.contains("prompt") && object.contains("completion")) {
      format_ = Format::kCompletion;
    } else if (object.contains("messages")) {
      format_ = Format::kChat;
    } else if (object.contains("text")) {
      format_ = Format::kText;
      if (options_.mask_prompt) fail("\"text\" has no prompt to mask: leave out --mask-prompt");
    } else {
      fail("expected \"prompt\" and \"completion\", or \"messages\", or \"text\"");
    }
    return *format_;
  }

  // What a chat would be trained without, as plain ChatML has no place for it.
  void refuse_keys(const Json& object, std::initializer_list<const char*> keys,
                   const char* whose) const {
    for (const char* key : keys) {
      const auto found = object.find(key);
      if (found == object.end() || found->empty()) continue;  // null is empty too
      fail(
          fmt::format("\"{}\" of {}: the model's chat template has no place for it; leave it out, "
                      "or write it into \"content\"",
                      key, whose));
    }
  }

  std::vector<Message> messages_of(const Json& object) const {
    refuse_keys(object, {"tools", "functions"}, "the chat");
    const auto found = object.find("messages");
    if (found == object.end()) fail("\"messages\" is missing");
    if (!found->is_array() || found->empty()) fail("\"messages\" is not a list of messages");
    std::vector<Message> messages;
    for (const Json& message : *found) {
      if (!message.is_object()) fail("a message is not a JSON object");
      refuse_keys(message, {"tool_calls", "function_call"}, "a message");
      messages.push_back({text_of(message, "role"), text_of(message, "content")});
    }
    return messages;
  }

  // Nothing, and counted, if there is nothing to train on.
  std::optional<Sample> sample(const Json& object) {
    switch (format_of(object)) {
      case Format::kCompletion:
        return chat(
            {{"user", text_of(object, "prompt")}, {"assistant", text_of(object, "completion")}});
      case Format::kChat:
        return chat(messages_of(object));
      case Format::kText:
        break;
    }
    const std::string& text = text_of(object, "text");
    if (text.empty()) return leave_out(LeftOutReason::kEmptyText);
    Sample sample;
    sample.tokens = tokenizer_.encode(text, options_.written);
    if (sample.tokens.empty() || sample.tokens.back() != tokenizer_.eos()) {
      sample.tokens.push_back(tokenizer_.eos());
    }
    if (sample.tokens.size() < 2) return leave_out(LeftOutReason::kOneToken);
    sample.is_target.assign(sample.tokens.size(), true);
    return sample;
  }

  std::optional<Sample> chat(const std::vector<Message>& messages) {
    for (const Message& message : messages) check_role(message.role);
    const auto is_answer = [](const Message& message) { return message.role == "assistant"; };
    const auto answers = std::ranges::count_if(messages, is_answer);
    const auto empty = std::ranges::count_if(messages, [&](const Message& message) {
      return is_answer(message) && message.content.empty();
    });
    dataset_.has_answers = true;
    if (answers > 0 && empty == answers) return leave_out(LeftOutReason::kEmptyAnswer);
    if (answers == 0 && options_.mask_prompt) return leave_out(LeftOutReason::kNoAnswer);
    if (!template_) template_.emplace(model_, tokenizer_, options_.written);
    ChatTokens chat = template_->encode(tokenizer_, messages);
    Sample sample{std::move(chat.tokens), std::move(chat.is_target)};
    if (is_too_long(sample)) cut_chat(sample);
    if (!options_.mask_prompt) sample.is_target.assign(sample.tokens.size(), true);
    return sample;
  }

  // Before a chat is left out because nobody of the names that count answers in it.
  void check_role(const std::string& role) const {
    try {
      ChatTemplate::check_role(role);
    } catch (const UserError& error) {
      fail(error.what());
    }
  }

  bool is_too_long(const Sample& sample) const {
    return std::cmp_greater(sample.tokens.size(), options_.max_seq_length);
  }

  void cut(Sample& sample, std::size_t length) {
    if (dataset_.truncated++ == 0) dataset_.first_truncated_line = line_;
    dataset_.longest = std::max(dataset_.longest, static_cast<std::int64_t>(sample.tokens.size()));
    sample.tokens.resize(length);
    sample.is_target.resize(length);
  }

  // Keeps the messages up to the last answer that fits whole: one cut off inside would teach the
  // model to stop without the template's end mark, or not to answer at all.
  void cut_chat(Sample& sample) {
    auto length = static_cast<std::size_t>(options_.max_seq_length);
    const auto ends_answer = [&](std::size_t last) {
      return sample.is_target[last] && !sample.is_target[last + 1];
    };
    while (length > 0 && !ends_answer(length - 1)) --length;
    if (length == 0) {
      fail(
          fmt::format("a chat of {} tokens, whose first answer does not end within {} "
                      "(--max-seq-length); cut off there it would break the chat template",
                      sample.tokens.size(), options_.max_seq_length));
    }
    cut(sample, length);
  }

  std::nullopt_t leave_out(LeftOutReason reason) {
    auto found = std::ranges::find(dataset_.left_out, reason, &LeftOut::reason);
    if (found == dataset_.left_out.end()) {
      found = dataset_.left_out.insert(found, LeftOut{reason, 0, line_});
    }
    ++found->samples;
    return std::nullopt;
  }

  void add(std::optional<Sample> sample) {
    if (!sample) return;
    const auto length = static_cast<std::int64_t>(sample->tokens.size());
    dataset_.longest = std::max(dataset_.longest, length);
    if (is_too_long(*sample)) cut(*sample, static_cast<std::size_t>(options_.max_seq_length));
    dataset_.samples.push_back(*std::move(sample));
  }

  const GgufFile& model_;
  const Tokenizer& tokenizer_;
  const DataOptions options_;
  Dataset dataset_;
  std::int64_t line_ = 0;
  std::optional<Format> format_;
  std::optional<ChatTemplate> template_;  // Made for the first chat: "text" needs none.
};

const char* words_of(LeftOutReason reason) {
  switch (reason) {
    case LeftOutReason::kEmptyText:
      return "with an empty text";
    case LeftOutReason::kEmptyAnswer:
      return "with an empty answer";
    case LeftOutReason::kNoAnswer:
      return "without an answer to train on";
    case LeftOutReason::kOneToken:
      break;
  }
  return "of one token, that nothing predicts";
}

}  // namespace

const char* name_of(LeftOutReason reason) {
  switch (reason) {
    case LeftOutReason::kEmptyText:
      return "empty text";
    case LeftOutReason::kEmptyAnswer:
      return "empty answer";
    case LeftOutReason::kNoAnswer:
      return "no answer";
    case LeftOutReason::kOneToken:
      break;
  }
  return "one token";
}

std::string left_out_text(const Dataset& data) {
  if (data.left_out.empty()) return "";
  const std::int64_t left_out = data.num_left_out();
  std::string text =
      fmt::format("{} of {} samples left out: ", left_out, std::ssize(data.samples) + left_out);
  for (const LeftOut& some : data.left_out) {
    if (!text.ends_with(": ")) text += ", ";
    text += fmt::format("{} {} ({} line {})", some.samples, words_of(some.reason),
                        some.samples == 1 ? "in" : "the first in", some.first_line);
  }
  return text;
}

std::int64_t Dataset::num_left_out() const {
  std::int64_t count = 0;
  for (const LeftOut& some : left_out) count += some.samples;
  return count;
}

std::int64_t Dataset::num_targets() const {
  std::int64_t count = 0;
  for (const Sample& sample : samples) {
    count += std::count(sample.is_target.begin() + 1, sample.is_target.end(), true);
  }
  return count;
}

Dataset read_dataset(const std::string& path, const GgufFile& model, const Tokenizer& tokenizer,
                     const DataOptions& options) {
  return DatasetReader(path, model, tokenizer, options).read(InputKind::kFileOrPipe);
}

Dataset read_dataset(std::istream& in, const std::string& path, const GgufFile& model,
                     const Tokenizer& tokenizer, const DataOptions& options, std::string* kept) {
  return DatasetReader(path, model, tokenizer, options).read(in, kept);
}

DataSplits read_data(const std::string& folder, const GgufFile& model, const Tokenizer& tokenizer,
                     const DataOptions& options, const SplitsToRead& splits) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw UserError(folder + (fs::exists(folder, error)
                                  ? ": not a folder; give the one with train.jsonl"
                                  : ": no such folder"));
  }
  const auto path = [&](const char* name) { return (fs::path(folder) / name).string(); };
  const auto read_split = [&](const char* name, bool wanted) -> std::optional<Dataset> {
    if (!wanted) return std::nullopt;
    // Where that cannot be told, as without permission, opening it says why.
    std::error_code unknown;
    if (fs::status(path(name), unknown).type() == fs::file_type::not_found) return std::nullopt;
    return DatasetReader(path(name), model, tokenizer, options).read(InputKind::kFile);
  };
  std::optional<Dataset> train = read_split("train.jsonl", true);
  if (!train) throw UserError(folder + ": no train.jsonl in this folder");
  return {std::move(*train), read_split("valid.jsonl", splits.valid),
          read_split("test.jsonl", splits.test)};
}

}  // namespace graft::llm
