#include "graft/llm/train/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <utility>

#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/data/fingerprint.h"
#include "graft/llm/files/input_file.h"
#include "graft/llm/files/json_text.h"
#include "graft/llm/train/checkpoint_state.h"
#include "graft/llm/user_error.h"
#include "graft/llm/weights/safetensors.h"

namespace graft::llm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kStateFile = "state.json";
constexpr const char* kMetricsFile = "metrics.jsonl";
constexpr const char* kOptimizerFile = "optimizer.safetensors";

// Calls visit(name, values) for every vector of the trainer that is a tensor of the optimizer's
// file: as many values each as the adapter has parameters, or none.
template <class State, class Visit>
void visit_optimizer_tensors(State& state, Visit&& visit) {
  visit("first_moment", state.optimizer.first_moment);
  visit("second_moment", state.optimizer.second_moment);
  visit("pending_gradients", state.pending.mean);
}

std::string read_file(const fs::path& path) {
  if (auto bytes = read_if_there(path.string())) return *std::move(bytes);
  throw UserError("cannot be read");
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
  const json state = parse_json_object(read_file(path / kStateFile), kStateFile);
  Checkpoint checkpoint;
  try {
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

std::string optimizer_file(const TrainerState& state) {
  std::vector<std::pair<std::string, mx::array>> tensors;
  visit_optimizer_tensors(state, [&](const char* name, const std::vector<float>& values) {
    if (values.empty()) return;
    tensors.emplace_back(name,
                         mx::array(values.data(), {static_cast<int>(values.size())}, mx::float32));
  });
  return to_safetensors(tensors);
}

}  // namespace

std::string checkpoints_folder(const std::string& folder) {
  return (fs::path(folder) / "checkpoints").string();
}

std::string checkpoint_path(const std::string& folder, int iteration) {
  return (fs::path(checkpoints_folder(folder)) / fmt::format("{:07}", iteration)).string();
}

void save_checkpoint(const std::string& folder, const std::vector<FileContents>& adapter,
                     const Checkpoint& checkpoint) {
  std::vector<FileContents> files = adapter;
  files.push_back({kOptimizerFile, optimizer_file(checkpoint.trainer)});
  files.push_back({kMetricsFile, checkpoint.metrics});
  ordered_json state = state_of(checkpoint);
  for (const FileContents& file : files) state["files"][file.name] = fingerprint_of(file.bytes);
  files.push_back({kStateFile, state.dump(1) + "\n"});

  make_folder(checkpoints_folder(folder));
  write_folder_atomically(checkpoint_path(folder, checkpoint.trainer.iteration), files);
}

std::optional<FoundCheckpoint> last_checkpoint(const std::string& folder,
                                               std::vector<std::string>& damaged) {
  std::optional<UserError> other_format;
  for (const auto& [iteration, path] : newest_first(folder)) {
    try {
      FoundCheckpoint found{path.string(), read_whole(path)};
      if (found.checkpoint.trainer.iteration != iteration) throw UserError("it was renamed");
      return found;
    } catch (const OtherFormat& error) {
      damaged.push_back(fmt::format("{}: passed over: {}", path.string(), error.what()));
      if (other_format) continue;
      other_format.emplace(fmt::format(
          "{}: {}: finish the run with the version of graft that began it, or start a new one in "
          "another --adapter-path with --resume-adapter-file {}",
          (path / kStateFile).string(), error.what(), (path / kAdapterWeightsFile).string()));
    } catch (const UserError& error) {
      damaged.push_back(fmt::format("{}: passed over: {}", path.string(), error.what()));
    }
  }
  if (other_format) throw *other_format;
  return std::nullopt;
}

void check_whole(const std::string& path) { read_whole(path); }

TrainerState FoundCheckpoint::trainer_state(std::vector<LoraPair> pairs) const {
  TrainerState state = checkpoint.trainer;
  state.pairs = std::move(pairs);
  const auto tensors = read_safetensors((fs::path(path) / kOptimizerFile).string()).tensors;
  visit_optimizer_tensors(state, [&](const char* name, std::vector<float>& values) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) return;
    const mx::array& tensor = found->second;
    values.assign(tensor.data<float>(), tensor.data<float>() + tensor.size());
  });
  return state;
}

}  // namespace graft::llm
