#include "graft/llm/files/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

// Ends the name of everything that is not yet whole.
constexpr std::string_view kUnfinished = ".graft-tmp";

[[noreturn]] void fail(const fs::path& path, std::string_view what, int error) {
  throw UserError(fmt::format("{}: {}", path.string(), describe_failure(what, error)));
}

class FileDescriptor {
 public:
  FileDescriptor(const std::string& path, int flags) : fd_(::open(path.c_str(), flags, 0644)) {}
  ~FileDescriptor() { close(); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  bool is_open() const { return fd_ >= 0; }
  bool sync() const { return ::fsync(fd_) == 0; }

  bool write(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
    return true;
  }

  bool close() {
    const int fd = std::exchange(fd_, -1);
    return fd < 0 || ::close(fd) == 0;
  }

 private:
  int fd_;
};

// A file or folder beside `path`, as a rename across file systems is not atomic. It is removed
// unless it took its place.
class Unfinished {
 public:
  explicit Unfinished(fs::path path)
      : path_(std::move(path)),
        temporary_(fmt::format("{}.{}{}", path_.string(), ::getpid(), kUnfinished)) {}
  ~Unfinished() {
    std::error_code ignored;
    if (!placed_) fs::remove_all(temporary_, ignored);
  }
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;

  const fs::path& path() const { return temporary_; }

  void take_its_place() {
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "cannot replace it", errno);
    placed_ = true;
  }

 private:
  fs::path path_;
  fs::path temporary_;
  bool placed_ = false;
};

// `name` is what an error says; the bytes go to `path`.
void write_through(const fs::path& path, const fs::path& name, std::string_view bytes) {
  FileDescriptor file(path.string(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
  if (!file.is_open()) fail(name, "cannot create the file", errno);
  if (!file.write(bytes) || !file.sync() || !file.close()) {
    fail(name, "cannot write the file", errno);
  }
}

// A rename survives a crash only once the folder is on disk. Some file systems cannot sync folders,
// and then there is nothing more to do.
void sync_folder(const fs::path& folder) {
  const FileDescriptor handle(folder.string(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (handle.is_open()) static_cast<void>(handle.sync());
}

// Swaps the two in one step, where the system and the file system can.
bool exchange(const fs::path& one, const fs::path& other) {
#ifdef __APPLE__
  return ::renamex_np(one.c_str(), other.c_str(), RENAME_SWAP) == 0;
#else
  return ::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) == 0;
#endif
}

// Puts the folder `fresh` at `path`; what was there is then at `fresh`.
void swap_into_place(const fs::path& fresh, const fs::path& path) {
  if (::rename(fresh.c_str(), path.c_str()) == 0) return;
  std::error_code error(errno, std::generic_category());
  if (!fs::exists(fs::symlink_status(path))) fail(path, "cannot make the folder", error.value());
  if (exchange(fresh, path)) return;
  const fs::path old = folder_of(fresh) / (".old." + fresh.filename().string());
  fs::rename(path, old, error);
  if (!error) {
    fs::rename(fresh, path, error);
    std::error_code ignored;
    fs::rename(old, error ? path : fresh, ignored);
  }
  if (error) fail(path, "cannot replace the folder", error.value());
}

// The files in `fresh` are on disk; what was at `path` is removed.
void place_synced_folder(const fs::path& fresh, const fs::path& path) {
  sync_folder(fresh);
  swap_into_place(fresh, path);
  sync_folder(folder_of(path));
  std::error_code error;
  fs::remove_all(fresh, error);
  if (error) fail(fresh, "cannot be removed", error.value());
}

}  // namespace

std::string describe_failure(std::string_view what, int error) {
  std::string_view advice;
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      advice = "; free some space on that disk";
      break;
    case EFBIG:
      advice = "; raise the limit on file sizes (ulimit -f)";
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      advice = "; choose a folder that you may write to";
      break;
    default:
      break;
  }
  return fmt::format("{}: {}{}", what, std::strerror(error), advice);
}

void write_file_atomically(const std::string& path, std::string_view bytes) {
  Unfinished file{fs::path(path)};
  write_through(file.path(), path, bytes);
  file.take_its_place();
  sync_folder(folder_of(path));
}

void write_files_atomically(const std::string& folder, const std::vector<FileContents>& files) {
  std::vector<std::unique_ptr<Unfinished>> unfinished;
  for (const FileContents& file : files) {
    const fs::path path = fs::path(folder) / file.name;
    unfinished.push_back(std::make_unique<Unfinished>(path));
    write_through(unfinished.back()->path(), path, file.bytes);
  }
  for (const auto& file : unfinished) file->take_its_place();
  sync_folder(folder);
}

void write_folder_atomically(const std::string& path, const std::vector<FileContents>& files) {
  Unfinished folder{fs::path(path)};
  std::error_code error;
  fs::remove_all(folder.path(), error);
  if (!error) fs::create_directory(folder.path(), error);
  if (error) fail(path, "cannot make the folder", error.value());
  for (const FileContents& file : files) {
    write_through(folder.path() / file.name, fs::path(path) / file.name, file.bytes);
  }
  place_synced_folder(folder.path(), path);
}

void place_folder(const std::string& fresh, const std::string& path) {
  std::error_code error;
  for (fs::directory_iterator entry(fresh, error), end; !error && entry != end;
       entry.increment(error)) {
    const FileDescriptor file(entry->path().string(), O_RDONLY | O_CLOEXEC);
    if (!file.is_open() || !file.sync()) fail(entry->path(), "cannot write the file", errno);
  }
  if (error) fail(fresh, "cannot be read", error.value());
  place_synced_folder(fresh, path);
}

void remove_folder_atomically(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return;
  const fs::path doomed = fmt::format("{}.{}{}", path, ::getpid(), kUnfinished);
  fs::rename(path, doomed, error);
  if (!error) fs::remove_all(doomed, error);
  if (error) fail(path, "cannot be removed", error.value());
}

void remove_unfinished_writes(const std::string& folder) {
  std::error_code error;
  std::vector<fs::path> found;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().filename().string().ends_with(kUnfinished)) found.push_back(entry->path());
  }
  for (const fs::path& path : found) {
    fs::remove_all(path, error);
    if (error) fail(path, "cannot be removed", error.value());
  }
}

void make_folder(const std::string& path) {
  std::error_code error;
  std::vector<fs::path> missing;
  for (fs::path above = path; !above.empty() && !fs::exists(above, error);
       above = above.parent_path()) {
    missing.push_back(above);
  }
  fs::create_directories(path, error);
  if (error) fail(path, "cannot make the folder", error.value());
  if (!fs::is_directory(path)) {
    throw UserError(
        fmt::format("{}: cannot make the folder: a file of that name is in the way", path));
  }
  for (const fs::path& made : missing) sync_folder(folder_of(made));
}

void check_writable(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) {
    throw UserError(path + ": cannot write the file: a folder of that name is in the way");
  }
  const fs::path folder = folder_of(path);
  if (::access(folder.c_str(), W_OK | X_OK) != 0) {
    fail(folder, "cannot write into the folder", errno);
  }
}

}  // namespace graft::llm
