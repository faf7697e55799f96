#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/llm/tokenizer/tokenizer.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {

/// One example as tokens. `is_target[i]` says whether the loss counts the prediction of token i,
/// made from the tokens before it; so that of token 0 means nothing.
struct Sample {
  std::vector<std::int32_t> tokens;
  std::vector<bool> is_target;
};

/// How data is read.
struct DataOptions {
  /// Longer text is cut off at the end, longer chats after the last answer that fits; one whose
  /// first answer does not fit is an error. At least 2.
  std::int64_t max_seq_length = 2048;
  bool mask_prompt = false;  ///< Train on what assistants say, not on the rest.
  /// What control tokens are that the data has written out, as "<|im_end|>".
  ControlTokens written = ControlTokens::kText;
};

/// Why a sample is left out: nothing in it can be trained on.
enum class LeftOutReason { kEmptyText, kEmptyAnswer, kNoAnswer, kOneToken };

/// Samples that were left out for one reason.
struct LeftOut {
  LeftOutReason reason;
  std::int64_t samples = 0;
  std::int64_t first_line = 0;  ///< Lines count from 1.
};

/// The samples of one file, in its order.
struct GRAFT_EXPORT Dataset {
  std::string path;
  std::vector<Sample> samples;
  std::vector<LeftOut> left_out;  ///< In the order in which the reasons were met.
  std::int64_t truncated = 0;     ///< Samples that were cut off.
  std::int64_t first_truncated_line = 0;
  std::int64_t longest = 0;  ///< Tokens of the longest sample before that.
  bool has_answers = false;  ///< Chats, with prompts that can be masked: not plain text.

  std::int64_t num_targets() const;   ///< Tokens that the loss counts, of all samples.
  std::int64_t num_left_out() const;  ///< Samples, for whatever reason.
};

/// "empty text", "no answer".
GRAFT_EXPORT const char* name_of(LeftOutReason reason);

/// What was left out and why, on one line: "3 of 9 samples left out: 2 with an empty text (the
/// first in line 4), ...". Empty if nothing was.
GRAFT_EXPORT std::string left_out_text(const Dataset& data);

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
/// as mlx_lm.lora takes them. Chats go through the model's chat template. An empty text or answer
/// is left out, and counted. Throws UserError naming file and line.
GRAFT_EXPORT Dataset read_dataset(const std::string& path, const GgufFile& model,
                                  const Tokenizer& tokenizer, const DataOptions& options = {});

/// The same from a stream; `path` stands for the file in messages. The lines are added to `kept`,
/// if that is given, to be read again where the stream cannot.
GRAFT_EXPORT Dataset read_dataset(std::istream& in, const std::string& path, const GgufFile& model,
                                  const Tokenizer& tokenizer, const DataOptions& options = {},
                                  std::string* kept = nullptr);

/// Which files of a folder to read besides train.jsonl. The others may hold anything.
struct SplitsToRead {
  bool valid = true;
  bool test = true;
};

/// Throws UserError also if the folder or its train.jsonl is missing.
GRAFT_EXPORT DataSplits read_data(const std::string& folder, const GgufFile& model,
                                  const Tokenizer& tokenizer, const DataOptions& options = {},
                                  const SplitsToRead& splits = {});

}  // namespace graft::llm
