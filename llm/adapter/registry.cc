#include "graft/llm/adapter/registry.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/files/atomic_file.h"
#include "graft/llm/files/folder_lock.h"
#include "graft/llm/files/input_file.h"
#include "graft/llm/files/json_text.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kEntryFile = "graft.json";
constexpr const char* kDefaultFile = "default";
constexpr const char* kScratchFolder = ".adding";
constexpr std::size_t kLongestName = 64;

json read_object(const std::string& path) {
  const std::optional<std::string> text = read_if_there(path);
  json object = text ? json::parse(*text, nullptr, false) : json();
  if (!object.is_object()) {
    throw UserError(fmt::format("{}: {}", path, text ? "not a JSON object" : "cannot be read"));
  }
  return object;
}

std::string text_in(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// Names are folders: nothing that a path could be made of, and no hidden files.
void check_name(const std::string& name) {
  const auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  if (name.empty() || name.size() > kLongestName || name[0] == '.' || name[0] == '-' ||
      !std::ranges::all_of(name, good) || name == "none" || name == kDefaultFile) {
    throw UserError(fmt::format(
        "adapter name '{}': expected up to {} letters, digits, '.', '-' and '_', the first one a "
        "letter, digit or '_', and neither 'none' nor 'default'",
        name, kLongestName));
  }
}

void must(const std::error_code& error, const std::string& path, const char* what) {
  if (error) throw UserError(fmt::format("{}: cannot {}: {}", path, what, error.message()));
}

/// A folder that is removed at the end. A killed program leaves it to the next one.
class Scratch {
 public:
  explicit Scratch(fs::path path) : path_(std::move(path)) { remove(); }
  ~Scratch() { remove(); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const fs::path& path() const { return path_; }

 private:
  void remove() const {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

  fs::path path_;
};

// The copy is checked, as the source may change meanwhile; what is wrong with it is wrong with the
// source.
ModelIdentity check_copy(const std::string& copy, const std::string& source,
                         const LlamaConfig& config) {
  try {
    return load_adapter(copy, config).base;
  } catch (const UserError& failure) {
    std::string message = failure.what();
    if (const std::size_t at = message.find(copy); at != std::string::npos) {
      message.replace(at, copy.size(), source);
    }
    throw UserError(message);
  }
}

}  // namespace

std::string AdapterRegistry::default_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return fs::path(value ? value : "");
  };
  if (const fs::path home = variable("GRAFT_HOME"); !home.empty()) return home / "adapters";
  if (const fs::path data = variable("XDG_DATA_HOME"); !data.empty()) {
    return data / "graft" / "adapters";
  }
  if (const fs::path home = variable("HOME"); !home.empty()) {
    return home / ".local" / "share" / "graft" / "adapters";
  }
  throw UserError("no place for adapters: set GRAFT_HOME, or name a folder with --registry");
}

AdapterRegistry::AdapterRegistry(const std::string& folder)
    : folder_(folder.empty() ? default_folder() : folder) {}

std::string AdapterRegistry::path_of(const std::string& name) const {
  return (fs::path(folder_) / name).string();
}

AdapterRegistry::Entry AdapterRegistry::read_entry(const std::string& name) const {
  Entry entry;
  entry.name = name;
  entry.folder = path_of(name);
  entry.is_default = default_name() == name;
  const fs::path folder = entry.folder;
  try {
    const json about = read_object((folder / kEntryFile).string());
    const json config = read_object((folder / kAdapterConfigFile).string());
    entry.model = {text_in(about, "model"), text_in(about, "fingerprint")};
    entry.rank = config.value("r", 0);
    entry.alpha = config.value("lora_alpha", 0.0);
    if (const auto targets = config.find("target_modules"); targets != config.end()) {
      for (const json& target : *targets) {
        if (target.is_string()) entry.targets.push_back(target.get<std::string>());
      }
    }
    std::error_code error;
    entry.bytes = static_cast<std::int64_t>(fs::file_size(folder / kAdapterWeightsFile, error));
    must(error, (folder / kAdapterWeightsFile).string(), "read it");
  } catch (const std::exception& error) {
    entry.problem = error.what();
  }
  return entry;
}

std::vector<AdapterRegistry::Entry> AdapterRegistry::list() const {
  std::vector<Entry> entries;
  std::error_code error;
  for (const fs::directory_entry& item : fs::directory_iterator(folder_, error)) {
    const std::string name = item.path().filename().string();
    if (name.starts_with('.') || !item.is_directory()) continue;
    entries.push_back(read_entry(name));
  }
  if (error && error != std::errc::no_such_file_or_directory) must(error, folder_, "read it");
  std::ranges::sort(entries, {}, &Entry::name);
  return entries;
}

void AdapterRegistry::check_exists(const std::string& name) const {
  check_name(name);
  if (fs::is_directory(path_of(name))) return;
  std::vector<std::string> names;
  for (const Entry& entry : list()) names.push_back(entry.name);
  throw UserError(fmt::format("no adapter '{}' in {}{}", name, folder_,
                              names.empty()
                                  ? std::string(", which has none; `graft adapter add` adds one")
                                  : fmt::format("; there is {}", fmt::join(names, ", "))));
}

std::string AdapterRegistry::find(const std::string& name, const ModelIdentity& model) const {
  check_exists(name);
  const Entry entry = read_entry(name);
  if (!entry.problem.empty()) throw UserError(entry.problem);
  if (entry.model.fingerprint != model.fingerprint) {
    const bool same_file =
        fs::path(entry.model.name) == fs::absolute(model.name).lexically_normal();
    throw UserError(fmt::format(
        "adapter '{}' was added for {}; to use it with {} all the same, add it again under another "
        "name: graft adapter add NAME {} --model {}",
        name,
        same_file ? entry.model.name + ", which has changed since"
                  : "another model, " + entry.model.name,
        same_file ? "it" : model.name, entry.folder, model.name));
  }
  return entry.folder;
}

ModelIdentity AdapterRegistry::add(const std::string& name, const std::string& source,
                                   const ModelIdentity& model, const LlamaConfig& config,
                                   bool replace) {
  check_name(name);
  if (fs::exists(path_of(name)) && !replace) {
    throw UserError(fmt::format("there is an adapter '{}' in {}; --replace puts this in its place",
                                name, folder_));
  }
  make_folder(folder_);
  const FolderLock lock(folder_, "--registry");
  // Made in a hidden folder first: an entry is there whole or not at all.
  const Scratch scratch(path_of(kScratchFolder));
  const std::string fresh = (scratch.path() / name).string();
  make_folder(fresh);
  for (const char* file : {kAdapterConfigFile, kAdapterWeightsFile}) {
    const fs::path from = fs::path(source) / file;
    std::error_code error;
    fs::copy_file(from, fs::path(fresh) / file, error);
    if (error) {
      throw UserError(fmt::format("{}: cannot be copied: {}; is this an adapter's folder?",
                                  from.string(), error.message()));
    }
  }
  ModelIdentity base = check_copy(fresh, source, config);
  const ordered_json about = {{"model", model.name}, {"fingerprint", model.fingerprint}};
  write_file_atomically((fs::path(fresh) / kEntryFile).string(), lossy_json_text(about, 2) + "\n");
  place_folder(fresh, path_of(name));
  return base;
}

void AdapterRegistry::remove(const std::string& name) {
  check_exists(name);
  if (default_name() == name) set_default(std::nullopt);
  std::error_code error;
  fs::remove_all(path_of(name), error);
  must(error, path_of(name), "remove it");
}

std::optional<std::string> AdapterRegistry::default_name() const {
  std::optional<std::string> name = read_if_there(path_of(kDefaultFile));
  if (!name) return std::nullopt;
  while (!name->empty() && name->back() == '\n') name->pop_back();
  return fs::is_directory(path_of(*name)) && !name->empty() ? name : std::nullopt;
}

void AdapterRegistry::set_default(const std::optional<std::string>& name) {
  if (name) {
    check_exists(*name);
    write_file_atomically(path_of(kDefaultFile), *name + "\n");
    return;
  }
  std::error_code error;
  fs::remove(path_of(kDefaultFile), error);
  must(error, path_of(kDefaultFile), "remove it");
}

bool AdapterRegistry::default_fits(const ModelIdentity& model) const {
  const std::optional<std::string> name = default_name();
  if (!name) return false;
  const Entry entry = read_entry(*name);
  return entry.problem.empty() && entry.model.fingerprint == model.fingerprint;
}

std::string base_model_of(const std::string& adapter_folder) {
  return text_in(read_object((fs::path(adapter_folder) / kAdapterConfigFile).string()),
                 "base_model_name_or_path");
}

}  // namespace graft::llm
