#include "apps/graft/train/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "apps/graft/adapter/adapter_file.h"
#include "apps/graft/adapter/safetensors.h"
#include "apps/graft/data/fingerprint.h"
#include "apps/graft/train/checkpoint_state.h"
#include "apps/graft/user_error.h"

namespace graft::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kStateFile = "state.json";
constexpr const char* kMetricsFile = "metrics.jsonl";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kFirstMoment = "adamw.first_moment";
constexpr const char* kSecondMoment = "adamw.second_moment";

mx::array flat_array(const std::vector<float>& values) {
  return mx::array(values.data(), {static_cast<int>(values.size())}, mx::float32);
}

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  if (!in) throw UserError("cannot be read");
  return bytes;
}

// The iteration that a folder's name says, or -1 if it is no checkpoint's.
int iteration_named(const std::string& name) {
  int iteration = -1;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data(), end, iteration);
  return error == std::errc() && stop == end && iteration >= 0 ? iteration : -1;
}

std::vector<std::pair<int, fs::path>> newest_first(const std::string& folder) {
  std::vector<std::pair<int, fs::path>> found;
  std::error_code error;
  for (fs::directory_iterator entry(checkpoints_folder(folder), error), end; !error && entry != end;
       entry.increment(error)) {
    const int iteration = iteration_named(entry->path().filename().string());
    if (iteration >= 0) found.emplace_back(iteration, entry->path());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

// Throws UserError with what is wrong, without the path.
Checkpoint read_whole(const fs::path& path) {
  const json state = json::parse(read_file(path / kStateFile), nullptr, false);
  Checkpoint checkpoint;
  try {
    if (!state.is_object()) throw UserError("state.json is not a JSON object");
    checkpoint = checkpoint_from_state(state);
    for (const auto& [name, fingerprint] : state.at("files").items()) {
      const std::string bytes = read_file(path / fs::path(name).filename());
      if (fingerprint_of(bytes) != fingerprint.get<std::string>()) {
        throw UserError(fmt::format("{} has changed since it was written", name));
      }
      if (name == kMetricsFile) checkpoint.metrics = bytes;
    }
  } catch (const json::exception&) {
    throw UserError("state.json is not what this version writes");
  }
  return checkpoint;
}

std::vector<float> floats_of(const mx::array& tensor) {
  return {tensor.data<float>(), tensor.data<float>() + tensor.size()};
}

}  // namespace

std::string checkpoints_folder(const std::string& folder) {
  return (fs::path(folder) / "checkpoints").string();
}

void save_checkpoint(const std::string& folder, const std::vector<FileContents>& adapter,
                     const Checkpoint& checkpoint) {
  const AdamWState& optimizer = checkpoint.trainer.optimizer;
  std::vector<FileContents> files = adapter;
  files.push_back(
      {kOptimizerFile, to_safetensors({{kFirstMoment, flat_array(optimizer.first_moment)},
                                       {kSecondMoment, flat_array(optimizer.second_moment)}})});
  files.push_back({kMetricsFile, checkpoint.metrics});
  ordered_json state = state_of(checkpoint);
  for (const FileContents& file : files) state["files"][file.name] = fingerprint_of(file.bytes);
  files.push_back({kStateFile, state.dump(1) + "\n"});

  make_folder(checkpoints_folder(folder));
  const std::string name = fmt::format("{:07}", checkpoint.trainer.iteration);
  write_folder_atomically((fs::path(checkpoints_folder(folder)) / name).string(), files);
}

std::optional<FoundCheckpoint> last_checkpoint(const std::string& folder,
                                               std::vector<std::string>& damaged) {
  for (const auto& [iteration, path] : newest_first(folder)) {
    try {
      FoundCheckpoint found{path.string(), read_whole(path)};
      if (found.checkpoint.trainer.iteration != iteration) throw UserError("it was renamed");
      return found;
    } catch (const UserError& error) {
      damaged.push_back(fmt::format("{}: passed over: {}", path.string(), error.what()));
    }
  }
  return std::nullopt;
}

TrainerState FoundCheckpoint::trainer_state(const LlamaConfig& model) const {
  TrainerState state = checkpoint.trainer;
  state.pairs = load_adapter(path, model).pairs;
  const std::string file = (fs::path(path) / kOptimizerFile).string();
  const auto tensors = read_safetensors(file);
  if (!tensors.contains(kFirstMoment) || !tensors.contains(kSecondMoment)) {
    throw UserError(fmt::format("{}: expected {} and {}", file, kFirstMoment, kSecondMoment));
  }
  state.optimizer.first_moment = floats_of(tensors.at(kFirstMoment));
  state.optimizer.second_moment = floats_of(tensors.at(kSecondMoment));
  return state;
}

}  // namespace graft::app
