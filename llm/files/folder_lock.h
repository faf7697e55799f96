#pragma once

#include <string>

namespace graft::llm {

/// Keeps two programs from writing into one folder. The system lets go of it when the program ends,
/// however that happens.
class FolderLock {
 public:
  /// Throws UserError if another program holds the folder, which names the flag that chooses it.
  explicit FolderLock(const std::string& folder, const char* flag = "--adapter-path");
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

}  // namespace graft::llm
