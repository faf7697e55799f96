#include "apps/graft/adapter/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "apps/graft/user_error.h"

namespace graft::app {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
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
    const int fd = fd_;
    fd_ = -1;
    return fd < 0 || ::close(fd) == 0;
  }

 private:
  int fd_;
};

}  // namespace

void write_file_atomically(const std::string& path, std::string_view bytes) {
  // In the same folder, as a rename across file systems is not atomic.
  const std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
  const auto fail = [&](const char* what) {
    const int error = errno;
    ::unlink(temporary.c_str());
    throw UserError(fmt::format("{}: cannot {}: {}", path, what, std::strerror(error)));
  };
  FileDescriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
  if (!file.is_open()) fail("create the file");
  if (!file.write(bytes) || !file.sync() || !file.close()) fail("write the file");
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail("replace the file");

  const fs::path folder = folder_of(path);
  // The rename itself survives a crash only once the folder is on disk; some file systems cannot
  // sync folders, and then there is nothing more to do.
  const FileDescriptor handle(folder.string(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (handle.is_open()) static_cast<void>(handle.sync());
}

void make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error || !fs::is_directory(path)) {
    throw UserError(fmt::format("{}: cannot make the folder: {}", path,
                                error ? error.message() : "a file of that name is in the way"));
  }
}

void check_writable(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) {
    throw UserError(path + ": cannot write the file: a folder of that name is in the way");
  }
  const fs::path folder = folder_of(path);
  if (::access(folder.c_str(), W_OK | X_OK) != 0) {
    throw UserError(
        fmt::format("{}: cannot write into the folder: {}", folder.string(), std::strerror(errno)));
  }
}

}  // namespace graft::app
