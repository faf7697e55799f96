#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "apps/graft/commands/commands.h"
#include "apps/graft/commands/common.h"
#include "apps/graft/commands/flags.h"
#include "apps/graft/commands/number_range.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/user_error.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/evaluate/mean_loss.h"
#include "graft/llm/evaluate/questions.h"
#include "graft/llm/files/input_file.h"
#include "graft/llm/files/json_text.h"

namespace graft::app {
namespace {

using nlohmann::ordered_json;

/// The flags of `graft evaluate`, with their defaults.
struct EvaluateFlags {
  ModelFlags model;
  AdapterFlags adapter;
  bool compare_base = false;
  std::string data;
  std::string split = "test";
  bool split_given = false;
  std::int64_t max_seq_length = 2048;
  bool mask_prompt = false;
  bool parse_special = false;
  int max_tokens = 64;
  int batch_size = 64;
  int show = 5;
  bool json = false;
};

/// What there is to find out: the samples as training sees them, and questions if they have any.
struct Exam {
  std::string path;
  std::int64_t max_seq_length = 0;
  Dataset samples;
  std::vector<Question> questions;
};

/// How one model did.
struct Result {
  std::string name;
  MeanLoss loss;
  std::vector<std::string> answers;
  std::int64_t right = 0;

  double percent() const {
    return 100.0 * static_cast<double>(right) / static_cast<double>(answers.size());
  }
};

std::string data_file(const EvaluateFlags& flags) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(flags.data)) {
    if (flags.split_given && fs::exists(flags.data)) {
      throw UsageError(fmt::format(
          "--split: it chooses a file of a folder, and --data {} is a file; leave it out",
          flags.data));
    }
    return flags.data;
  }
  const fs::path file = fs::path(flags.data) / (flags.split + ".jsonl");
  if (!fs::exists(file)) {
    throw UserError(
        fmt::format("{}: no such file; --split chooses test, valid or train, and "
                    "--data may also name a file",
                    file.string()));
  }
  return file.string();
}

Exam read_exam(const EvaluateFlags& flags, const LanguageModel& model) {
  const std::int64_t context = model.llama.config().context_length;
  Exam exam;
  exam.path = data_file(flags);
  exam.max_seq_length = std::min(flags.max_seq_length, context);
  std::ifstream in = open_input(exam.path, InputKind::kFileOrPipe);
  std::string lines;  // The file may be a pipe.
  exam.samples = read_dataset(in, exam.path, model.file, model.tokenizer,
                              {.max_seq_length = exam.max_seq_length,
                               .mask_prompt = flags.mask_prompt,
                               .written = control_tokens(flags.parse_special)},
                              &lines);
  if (!exam.samples.has_answers || flags.max_tokens == 0) return exam;
  std::istringstream again(std::move(lines));
  const Dataset whole = read_dataset(again, exam.path, model.file, model.tokenizer,
                                     {.max_seq_length = context,
                                      .mask_prompt = true,
                                      .written = control_tokens(flags.parse_special)});
  if (whole.truncated > 0) {
    throw UserError(
        fmt::format("{}: {} samples are longer than the model's context of {} tokens; "
                    "leave them out, or --max-tokens 0 leaves out the answers",
                    exam.path, whole.truncated, context));
  }
  exam.questions = questions_of(whole.samples, model.tokenizer);
  return exam;
}

Result examine(std::string name, const Exam& exam, const LanguageModel& model,
               const ModelAdapter* adapter, const EvaluateFlags& flags) {
  Result result;
  result.name = std::move(name);
  result.loss = mean_loss(model.llama, adapter, exam.samples.samples, flags.batch_size,
                          model.tokenizer.pad());
  result.answers = answer_all(exam.questions, model.llama, adapter, model.tokenizer,
                              flags.max_tokens, flags.batch_size);
  for (std::size_t i = 0; i < result.answers.size(); ++i) {
    result.right += result.answers[i] == exam.questions[i].expected;
  }
  return result;
}

// One line however many the text has.
std::string one_line(const std::string& text) {
  constexpr std::size_t kLongest = 160;
  std::string line;
  for (const char c : text) line += c == '\n' ? ' ' : c;
  if (line.size() <= kLongest) return line;
  // Cut between characters, not inside one: UTF-8 continuation bytes are 10xxxxxx.
  std::size_t cut = kLongest;
  while (cut > 0 && (static_cast<unsigned char>(line[cut]) & 0xC0) == 0x80) --cut;
  return line.substr(0, cut) + "...";
}

void print_answers(const Exam& exam, const std::vector<Result>& results, int show) {
  const auto shown = std::min(exam.questions.size(), static_cast<std::size_t>(show));
  for (std::size_t i = 0; i < shown; ++i) {
    const Question& question = exam.questions[i];
    fmt::print("{} {}\n    expected {}\n",
               results.back().answers[i] == question.expected ? "[ok]" : "[--]",
               one_line(question.text), one_line(question.expected));
    for (const Result& result : results) {
      fmt::print("    {:<8} {}\n", results.size() == 1 ? "got" : result.name,
                 one_line(result.answers[i]));
    }
  }
}

void print_one(const Result& result) {
  fmt::print("loss {:.4f} over {} tokens, perplexity {:.3f}\n", result.loss.loss,
             format_count(result.loss.targets), result.loss.perplexity());
  if (result.answers.empty()) return;
  fmt::print("exact match: {:.1f} % ({} of {})\n", result.percent(), result.right,
             result.answers.size());
}

void print_side_by_side(const std::vector<Result>& results) {
  const auto row = [&](const std::string& name,
                       const std::function<std::string(const Result&)>& cell) {
    fmt::print("{:<14}", name);
    for (const Result& result : results) fmt::print("{:>24}", cell(result));
    fmt::print("\n");
  };
  row("", [](const Result& result) { return result.name; });
  row("loss", [](const Result& result) { return fmt::format("{:.4f}", result.loss.loss); });
  row("perplexity",
      [](const Result& result) { return fmt::format("{:.3f}", result.loss.perplexity()); });
  row("tokens", [](const Result& result) { return format_count(result.loss.targets); });
  if (results.front().answers.empty()) return;
  row("exact match", [](const Result& result) {
    return fmt::format("{:.1f} % ({} of {})", result.percent(), result.right,
                       result.answers.size());
  });
}

ordered_json to_json(const Exam& exam, const std::vector<Result>& results, int show) {
  ordered_json record;
  record["data"] = exam.path;
  record["samples"] = exam.samples.samples.size();
  record.update(what_is_missing(exam.samples));
  for (const Result& result : results) {
    ordered_json& one = record["results"][result.name];
    one["loss"] = result.loss.loss;
    one["perplexity"] = result.loss.perplexity();
    one["tokens"] = result.loss.targets;
    if (result.answers.empty()) continue;
    one["exact_match"] = {{"right", result.right}, {"of", result.answers.size()}};
    const auto shown = std::min(exam.questions.size(), static_cast<std::size_t>(show));
    one["answers"] = ordered_json::array();
    for (std::size_t i = 0; i < shown; ++i) {
      one["answers"].push_back({{"prompt", exam.questions[i].text},
                                {"expected", exam.questions[i].expected},
                                {"got", result.answers[i]}});
    }
  }
  return record;
}

void run_evaluate(const EvaluateFlags& flags) {
  if (flags.compare_base && flags.adapter.name.empty() && flags.adapter.path.empty()) {
    throw UsageError("--compare-base: name an adapter too, with --adapter or --adapter-path");
  }
  LanguageModel model = load_model(flags.model, /*training=*/false);
  const ChosenAdapter adapter = choose_adapter(model, flags.adapter, /*use_default=*/false);
  const Exam exam = read_exam(flags, model);

  std::vector<Result> results;
  if (flags.compare_base || adapter.folder.empty()) {
    results.push_back(examine("base", exam, model, nullptr, flags));
  }
  if (!adapter.folder.empty()) {
    results.push_back(examine("adapter", exam, model, model.llama.adapter(), flags));
  }
  if (flags.json) {
    fmt::print("{}\n", lossy_json_text(to_json(exam, results, flags.show), 2));
    return;
  }
  print_answers(exam, results, flags.show);
  if (!exam.samples.left_out.empty()) fmt::print("{}\n", left_out_text(exam.samples));
  if (exam.samples.truncated > 0) {
    fmt::print(
        "{} samples cut off at {} tokens for the loss, the first in line {} "
        "(--max-seq-length)\n",
        format_count(exam.samples.truncated), exam.max_seq_length,
        exam.samples.first_truncated_line);
  }
  if (results.size() == 1) {
    print_one(results.front());
  } else {
    print_side_by_side(results);
  }
}

}  // namespace

void add_evaluate(CLI::App& program) {
  const auto flags = std::make_shared<EvaluateFlags>();
  CLI::App* command = program.add_subcommand(
      "evaluate", "Measure a model on data: loss, perplexity, and answers that are exactly right");
  add_run_flags(*command, flags->model, flags->adapter, /*takes_default=*/false);
  command->add_flag("--compare-base", flags->compare_base,
                    "Measure the model without the adapter too, and print both side by side");

  begin_group(*command, "Data");
  command
      ->add_option("--data", flags->data,
                   "File of JSON lines with text, or prompt and completion, or messages; or a "
                   "folder with such files")
      ->type_name("FILE|DIR")
      ->required();
  command->add_option("--split", flags->split, "Which file of a folder")
      ->check(CLI::IsMember({"test", "valid", "train"}))
      ->capture_default_str();
  command
      ->add_option("--max-seq-length", flags->max_seq_length,
                   "Cut longer samples off for the loss, in tokens; the model's context is the "
                   "limit")
      ->check(between<std::int64_t>(2, 1 << 20))
      ->capture_default_str();
  command->add_flag(
      "--mask-prompt", flags->mask_prompt,
      "Loss of answers alone, not of what they answer, as in training with this flag");
  add_parse_special_flag(*command, flags->parse_special, "the data");
  command->add_option("--batch-size", flags->batch_size, "Samples at a time, at most")
      ->check(at_least(1))
      ->capture_default_str();

  begin_group(*command, "Output");
  command
      ->add_option("--max-tokens,-m", flags->max_tokens,
                   "Longest answer, in tokens; 0 measures the loss alone")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_option("--show", flags->show, "Print the first so many answers")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->callback([flags, command] {
    flags->split_given = command->count("--split") > 0;
    run_evaluate(*flags);
  });
}

}  // namespace graft::app
