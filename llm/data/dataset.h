#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "graft/llm/tokenizer/tokenizer.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {

/// One example as tokens. `is_target[i]` says whether the loss counts the prediction of token i,
/// made from the tokens before it; so that of token 0 means nothing.
struct Sample {
  std::vector<std::int32_t> tokens;
  std::vector<bool> is_target;
};

struct DataOptions {
  /// Longer text is cut off at the end, longer chats after the last answer that fits; one whose
  /// first answer does not fit is an error. At least 2.
  std::int64_t max_seq_length = 2048;
  bool mask_prompt = false;  ///< Train on what assistants say, not on the rest.
  /// What control tokens are that the data has written out, as "<|im_end|>".
  ControlTokens written = ControlTokens::kText;
};

/// The samples of one file, in its order.
struct Dataset {
  std::string path;
  std::vector<Sample> samples;
  std::int64_t truncated = 0;  ///< Samples that were cut off.
  std::int64_t longest = 0;    ///< Tokens of the longest sample before that.
  std::int64_t left_out = 0;   ///< Samples left out, because nothing in them is a target.
  bool has_answers = false;    ///< Chats, with prompts that can be masked: not plain text.

  std::int64_t num_targets() const;
};

/// A folder of data: train.jsonl, and where they exist valid.jsonl and test.jsonl.
struct DataSplits {
  Dataset train;
  std::optional<Dataset> valid;
  std::optional<Dataset> test;
};

/// Reads one file with a JSON object a line, all of the kind of the first:
///
///     {"prompt": "...", "completion": "..."}           a chat of user and assistant
///     {"messages": [{"role": "user", "content": "..."}, ...]}
///     {"text": "..."}                                  with the end-of-sequence token after it
///
/// as mlx_lm.lora takes them. Chats go through the model's chat template. Throws UserError naming
/// file and line.
Dataset read_dataset(const std::string& path, const GgufFile& model, const Tokenizer& tokenizer,
                     const DataOptions& options = {});

/// The same from a stream; `path` stands for the file in messages. The lines are added to `kept`,
/// if that is given, to be read again where the stream cannot.
Dataset read_dataset(std::istream& in, const std::string& path, const GgufFile& model,
                     const Tokenizer& tokenizer, const DataOptions& options = {},
                     std::string* kept = nullptr);

/// Throws UserError also if the folder or its train.jsonl is missing.
DataSplits read_data(const std::string& folder, const GgufFile& model, const Tokenizer& tokenizer,
                     const DataOptions& options = {});

}  // namespace graft::llm
