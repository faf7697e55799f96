#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/graft/commands/commands.h"
#include "apps/graft/commands/common.h"
#include "apps/graft/commands/flags.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/terminal/interrupt.h"
#include "apps/graft/terminal/line_reader.h"
#include "apps/graft/user_error.h"
#include "graft/llm/adapter/registry.h"
#include "graft/llm/data/fingerprint.h"
#include "graft/llm/files/json_text.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/model/llama_tensors.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::app {
namespace {

using nlohmann::ordered_json;
using Entry = AdapterRegistry::Entry;

/// The flags of `graft adapter ...`; each command has its own of them.
struct AdapterCommandFlags {
  std::string registry;  ///< A folder; empty is the usual one.
  std::string name;
  std::string source;
  std::string model;
  bool replace = false;
  bool yes = false;
  bool none = false;
  bool json = false;
};

std::string base_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

void print_json(const AdapterRegistry& registry, const std::vector<Entry>& entries) {
  ordered_json json;
  json["registry"] = registry.folder();
  json["adapters"] = ordered_json::array();
  for (const Entry& entry : entries) {
    json["adapters"].push_back({{"name", entry.name},
                                {"folder", entry.folder},
                                {"default", entry.is_default},
                                {"problem", entry.problem},
                                {"model", entry.model.name},
                                {"rank", entry.rank},
                                {"alpha", entry.alpha},
                                {"target_modules", entry.targets},
                                {"bytes", entry.bytes}});
  }
  fmt::print("{}\n", lossy_json_text(json, 2));
}

void print_entry(const Entry& entry, std::size_t width) {
  fmt::print("{} {:<{}}  ", entry.is_default ? '*' : ' ', entry.name, width);
  if (!entry.problem.empty()) {
    fmt::print("unusable: {}\n", entry.problem);
    return;
  }
  fmt::print("rank {}, alpha {}, {}, for {}\n", entry.rank, entry.alpha, format_bytes(entry.bytes),
             base_name(entry.model.name));
}

// The model's file to check against: the one given, or the one that the adapter names.
std::string model_file(const AdapterCommandFlags& flags) {
  if (!flags.model.empty()) return flags.model;
  const std::string named = base_model_of(flags.source);
  if (!named.empty() && std::filesystem::is_regular_file(named)) return named;
  throw UserError(
      fmt::format("{}: its model, {}, is not here; name the GGUF file of it with --model",
                  flags.source, named.empty() ? "which it does not name" : "'" + named + "'"));
}

enum class Confirmation { kYes, kNo, kInterrupted };

Confirmation ask(const std::string& question) {
  if (::isatty(STDIN_FILENO) != 1) return Confirmation::kNo;
  const InterruptFlag interrupts;  // Ctrl-C is to end the program with the terminal as it was.
  std::string line;
  const LineReader::Event event = LineReader(STDIN_FILENO).read(line, [&] {
    fmt::print("{} [y/N] ", question);
    std::fflush(stdout);
  });
  if (event == LineReader::Event::kLine) {
    return line == "y" || line == "yes" ? Confirmation::kYes : Confirmation::kNo;
  }
  fmt::print("\n");
  return event == LineReader::Event::kEnd ? Confirmation::kNo : Confirmation::kInterrupted;
}

void run_adapter_list(const AdapterCommandFlags& flags) {
  const AdapterRegistry registry(flags.registry);
  const std::vector<Entry> entries = registry.list();
  if (flags.json) {
    print_json(registry, entries);
    return;
  }
  if (entries.empty()) {
    fmt::print("no adapters in {}; `graft adapter add` adds one\n", registry.folder());
    return;
  }
  std::size_t width = 0;
  for (const Entry& entry : entries) width = std::max(width, entry.name.size());
  for (const Entry& entry : entries) print_entry(entry, width);
}

void run_adapter_add(const AdapterCommandFlags& flags) {
  AdapterRegistry registry(flags.registry);
  const std::string path = model_file(flags);
  const GgufFile file = GgufFile::open(path);
  const LlamaConfig config = read_llama_config(file);
  check_llama_tensors(file, config);  // An adapter's size follows from what the metadata claims.
  const std::string absolute = std::filesystem::absolute(path).lexically_normal().string();
  const std::string fingerprint = fingerprint_of_file(path);
  const ModelIdentity base =
      registry.add(flags.name, flags.source, {absolute, fingerprint}, config, flags.replace);
  warn_of_base(flags.source, doubt_about_base(base, config, [&] { return fingerprint; }));
  fmt::print("added {} for {}\n", flags.name, base_name(path));
}

void run_adapter_remove(const AdapterCommandFlags& flags) {
  AdapterRegistry registry(flags.registry);
  registry.check_exists(flags.name);
  const Confirmation answer =
      flags.yes ? Confirmation::kYes
                : ask(fmt::format("Remove adapter {} from {}?", flags.name, registry.folder()));
  if (answer == Confirmation::kInterrupted) {
    throw Interrupted(fmt::format("adapter {} was not removed", flags.name));
  }
  if (answer == Confirmation::kNo) {
    throw UserError(
        fmt::format("adapter {} was not removed; --yes removes without asking", flags.name));
  }
  registry.remove(flags.name);
  fmt::print("removed {}\n", flags.name);
}

void run_adapter_use(const AdapterCommandFlags& flags) {
  AdapterRegistry registry(flags.registry);
  if (flags.none == !flags.name.empty()) {
    throw UsageError("graft adapter use: expected the name of an adapter, or --none");
  }
  registry.set_default(flags.none ? std::nullopt : std::optional(flags.name));
  fmt::print("{}\n", flags.none ? "no default" : flags.name + " is the default");
}

}  // namespace

void add_adapter(CLI::App& program) {
  const auto flags = std::make_shared<AdapterCommandFlags>();
  CLI::App* adapter = program.add_subcommand("adapter", "Keep adapters under names");
  adapter->require_subcommand(1);
  add_registry_flag(*adapter, flags->registry);
  adapter->fallthrough();  // --registry may stand behind the command too

  CLI::App* list = adapter->add_subcommand("list", "List the adapters; * marks the default");
  list->add_flag("--json", flags->json, "Print one JSON object");
  list->callback([flags] { run_adapter_list(*flags); });

  CLI::App* add = adapter->add_subcommand("add", "Check an adapter and copy it into the registry");
  add->add_option("name", flags->name, "Name to give it")->required();
  add->add_option("folder", flags->source, "Folder of the adapter")->required();
  add->add_option("--model", flags->model,
                  "The model that it is for, in GGUF; usually the one that the adapter names")
      ->type_name(kFile);
  add->add_flag("--replace", flags->replace, "Put it in the place of one of that name");
  add->callback([flags] { run_adapter_add(*flags); });

  CLI::App* remove = adapter->add_subcommand("remove", "Delete an adapter from the registry");
  remove->add_option("name", flags->name, "Its name")->required();
  remove->add_flag("--yes,-y", flags->yes, "Do not ask; needed where nobody could answer");
  remove->callback([flags] { run_adapter_remove(*flags); });

  CLI::App* use = adapter->add_subcommand(
      "use", "Make an adapter the one that generate and chat take by default");
  use->add_option("name", flags->name, "Its name");
  use->add_flag("--none", flags->none, "Have no default");
  use->callback([flags] { run_adapter_use(*flags); });
}

}  // namespace graft::app
