#include "apps/graft/commands/model_flags.h"

#include <fmt/format.h>

#include "apps/graft/commands/number_range.h"

namespace graft::app {

void add_dtype_flag(CLI::App& command, std::string& dtype, const std::string& help) {
  command.add_option("--dtype", dtype, help)
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
}

void add_threads_flag(CLI::App& command, int& threads) {
  command.add_option("--threads", threads, "Threads to use; 0 is every core")
      ->check(at_least(0))
      ->capture_default_str();
}

void begin_group(CLI::App& command, const std::string& heading) {
  command.option_defaults()->group(heading);
}

void add_parse_special_flag(CLI::App& command, bool& parse_special, const std::string& in) {
  command.add_flag(
      "--parse-special", parse_special,
      fmt::format("Take marks such as <|im_end|> in {} as the model's own, not as text", in));
}

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  command.add_option("--model", flags.model, "The model, in GGUF")->type_name(kFile)->required();
  add_dtype_flag(command, flags.dtype, "Base weights; bf16 halves their memory");
  add_threads_flag(command, flags.threads);
}

}  // namespace graft::app
