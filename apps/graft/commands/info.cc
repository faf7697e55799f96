#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/graft/commands/commands.h"
#include "apps/graft/commands/flags.h"
#include "apps/graft/commands/number_range.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/user_error.h"
#include "graft/capabilities.h"
#include "graft/context.h"
#include "graft/linear_cross_entropy.h"
#include "graft/llm/chat/chat_template.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/model/llama_tensors.h"
#include "graft/llm/tokenizer/tokenizer.h"
#include "graft/lora.h"
#include "graft/mlx/fusion.h"
#include "graft/supports.h"
#include "graft/swiglu.h"
#include "graft/version.h"
#include "mlx/version.h"

namespace graft::app {
namespace {

/// The flags of `graft info`, with their defaults.
struct InfoFlags {
  std::string model;
  std::string dtype = "f32";
  int rank = 8;
};

// Tokens of a batch, for asking whether a shape is supported; any number would do.
constexpr std::int64_t kRows = 512;

void print_fact(const std::string& name, const std::string& value) {
  fmt::print("{:<14}{}\n", name, value);
}

void print_support(const std::string& name, const std::string& shape, const Support& forward,
                   const Support& backward) {
  const auto verdict = [](const Support& support) {
    return support ? std::string("fused") : "composed: " + support.reason;
  };
  fmt::print("  {:<24}{:<18}forward {}, backward {}\n", name, shape, verdict(forward),
             verdict(backward));
}

// Views without memory: `supports` looks at shapes and types alone.
ConstTensorView shape_of(std::int64_t rows, std::int64_t columns, DType dtype = DType::kFloat32) {
  return {nullptr, dtype, {rows, columns}};
}

TensorView output_of(std::int64_t rows, std::int64_t columns) {
  return {nullptr, DType::kFloat32, {rows, columns}};
}

// One operation in one direction: the element types that have kernels, and why others have none.
struct Fused {
  std::string op, types, reasons;
  std::string directions;
};

std::vector<Fused> fused_on(DeviceType type) {
  std::vector<Fused> lines;
  for (const Capability& answer : capabilities({type, 0})) {
    const std::string direction = answer.direction == Direction::kForward ? "forward" : "backward";
    if (lines.empty() || lines.back().op != answer.op || lines.back().directions != direction) {
      lines.push_back({answer.op, "", "", direction});
    }
    Fused& line = lines.back();
    std::string& list = answer.support ? line.types : line.reasons;
    if (!list.empty()) list += answer.support ? ", " : "; ";
    list += answer.support ? name_of(answer.dtype)
                           : fmt::format("{} no: {}", name_of(answer.dtype), answer.support.reason);
  }
  return lines;
}

void print_operations(DeviceType type) {
  fmt::print("\nFused operations on {}:\n", name_of(type));
  std::vector<Fused> lines;
  for (Fused& line : fused_on(type)) {
    const bool both =
        !lines.empty() && lines.back().op == line.op && lines.back().types == line.types;
    if (both) {
      lines.back().directions += ", " + line.directions;
    } else {
      lines.push_back(std::move(line));
    }
  }
  for (const Fused& line : lines) {
    fmt::print("  {:<22}{:<19}{}\n", line.op, line.directions,
               line.types.empty() ? line.reasons
                                  : line.types + (line.reasons.empty() ? "" : "; " + line.reasons));
  }
}

void print_projection(const LlamaConfig& config, Projection projection, const InfoFlags& flags) {
  const std::int64_t in = config.in_features(projection);
  const std::int64_t out = config.out_features(projection);
  const DType dtype = flags.dtype == "bf16" ? DType::kBFloat16 : DType::kFloat32;

  LoraLinearForward forward;
  forward.x = shape_of(kRows, in);
  forward.weight = shape_of(out, in, dtype);
  forward.adapter = {shape_of(in, flags.rank), shape_of(flags.rank, out), 1.0f};
  forward.y = output_of(kRows, out);
  LoraLinearBackward backward;
  backward.dy = shape_of(kRows, out);
  backward.x = forward.x;
  backward.h = shape_of(kRows, flags.rank);
  backward.weight = forward.weight;
  backward.adapter = forward.adapter;
  backward.dx = output_of(kRows, in);
  backward.da = output_of(in, flags.rank);
  backward.db = output_of(flags.rank, out);
  print_support(fmt::format("lora_linear {}", name_of(projection)),
                fmt::format("({}, {})", out, in), supports(forward), supports(backward));
}

/// What a model needs besides its weights: whether it runs here, and if not, why not.
struct TextSupport {
  std::string tokenizer;  // Reasons; empty if it runs.
  std::string chat_template;
};

TextSupport text_support(const GgufFile& file) {
  std::optional<Tokenizer> tokenizer;
  try {
    tokenizer.emplace(file);
  } catch (const UserError& error) {
    return {error.what(), "nothing runs without the tokenizer"};
  }
  try {
    const ChatTemplate chat_template(file, *tokenizer);
  } catch (const UserError& error) {
    return {{}, error.what()};
  }
  return {};
}

void print_model(const InfoFlags& flags) {
  const GgufFile file = GgufFile::open(flags.model);
  const LlamaConfig config = read_llama_config(file);
  check_llama_tensors(file, config);
  const TextSupport text = text_support(file);
  std::int64_t parameters = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    std::int64_t size = 1;
    for (const std::int64_t dim : tensor.shape) size *= dim;
    parameters += size;
  }
  fmt::print("\n");
  print_fact("model", config.name.empty() ? file.name() : config.name);
  print_fact("parameters", format_count(parameters));
  print_fact("layers", fmt::format("{} of hidden size {}, {} in the MLP", config.num_layers,
                                   config.hidden_size, config.intermediate_size));
  print_fact("heads", fmt::format("{} of {}, sharing {} for keys and values", config.num_heads,
                                  config.head_dim, config.num_kv_heads));
  print_fact("vocabulary", format_count(config.vocab_size));
  print_fact("context", format_count(config.context_length) + " tokens");
  const auto print_text = [](const char* name, const std::string& reason) {
    print_fact(name, reason.empty() ? "runs" : "does not run: " + reason);
  };
  print_text("tokenizer", text.tokenizer);
  print_text("chat template", text.chat_template);
  if (!text.tokenizer.empty()) throw UserError(text.tokenizer);  // no training either

  fmt::print("\nHow it trains, weights in {}, rank {}:\n", flags.dtype, flags.rank);
  for (const Projection projection : kAllProjections) print_projection(config, projection, flags);

  const std::int64_t width = config.intermediate_size;
  SwigluForward swiglu{shape_of(kRows, width), shape_of(kRows, width), output_of(kRows, width)};
  SwigluBackward swiglu_back{shape_of(kRows, width), swiglu.gate, swiglu.up,
                             output_of(kRows, width), output_of(kRows, width)};
  print_support("swiglu", fmt::format("({})", width), supports(swiglu), supports(swiglu_back));

  LinearCrossEntropy loss;
  loss.x = shape_of(kRows, config.hidden_size);
  loss.weight = shape_of(config.vocab_size, config.hidden_size,
                         flags.dtype == "bf16" ? DType::kBFloat16 : DType::kFloat32);
  loss.targets = {nullptr, DType::kInt32, {kRows}};
  loss.losses = {nullptr, DType::kFloat32, {kRows}};
  LinearCrossEntropy loss_back = loss;
  loss_back.dx = output_of(kRows, config.hidden_size);
  print_support("linear_cross_entropy",
                fmt::format("({}, {})", config.vocab_size, config.hidden_size), supports(loss),
                supports(loss_back));
  if (!text.chat_template.empty()) throw UserError(text.chat_template);  // `generate` ends with it
}

void run_info(const InfoFlags& flags) {
  print_fact("graft", kVersion);
  print_fact("mlx", ::mlx::core::version());
  print_fact("threads", std::to_string(num_threads()));
  print_fact("cpu",
             fmt::format("{} (this machine runs: {})", cpu_isa(), fmt::join(cpu_isas(), ", ")));
  std::vector<DeviceType> here;
  for (const DeviceType type : {DeviceType::kCpu, DeviceType::kCuda, DeviceType::kMetal}) {
    const Support support =
        type == DeviceType::kMetal ? mlx::metal_available() : backend_available(type);
    print_fact(fmt::format("back-end {} ", name_of(type)),
               support ? "yes" : "no: " + support.reason);
    if (support) here.push_back(type);
  }
  for (const DeviceType type : here) print_operations(type);
  if (!flags.model.empty()) print_model(flags);
}

}  // namespace

void add_info(CLI::App& program) {
  const auto flags = std::make_shared<InfoFlags>();
  CLI::App* command =
      program.add_subcommand("info", "Say what this build, this machine and a model can do");
  command
      ->add_option("--model", flags->model, "A model, in GGUF: what of it runs fused, and why not")
      ->type_name(kFile);
  add_dtype_flag(*command, flags->dtype, "How base weights would be kept");
  command->add_option("--rank", flags->rank, "Rank of the adapter")
      ->check(at_least<std::int64_t>(1))
      ->capture_default_str();
  command->callback([flags] { run_info(*flags); });
}

}  // namespace graft::app
