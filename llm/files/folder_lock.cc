#include "graft/llm/files/folder_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "graft/llm/user_error.h"

namespace graft::llm {

FolderLock::FolderLock(const std::string& folder, const char* flag)
    : fd_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  // Some network file systems lock no folders: there the user has to take care.
  if (fd_ < 0 || ::flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
  ::close(fd_);
  throw UserError(fmt::format("{}: another run is writing here; wait for it, or choose another {}",
                              folder, flag));
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace graft::llm
