#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace graft::llm {

/// A file to be written: its name in a folder, and what it will hold.
struct FileContents {
  std::string name;
  std::string bytes;
};

/// Replaces the file at `path`, or makes it, in one step: whoever reads it sees the old contents or
/// the new, also after a crash. Throws UserError that says what to do, as all functions here do.
void write_file_atomically(const std::string& path, std::string_view bytes);

/// The same for files that belong together. All of them are on disk under temporary names before
/// the first takes its place, so that a full disk changes none of them.
void write_files_atomically(const std::string& folder, const std::vector<FileContents>& files);

/// Makes the folder at `path` with these files in one step: it is there with all of them or not at
/// all, also after a crash. A folder of that name is replaced.
void write_folder_atomically(const std::string& path, const std::vector<FileContents>& files);

/// Moves a folder of files to `path` in one step, all of it on disk first, and removes the folder
/// of that name, if there is one. Both are on one file system; one that cannot swap names may,
/// after a crash, have the replaced folder beside `fresh` alone, under a hidden name.
void place_folder(const std::string& fresh, const std::string& path);

/// Removes the folder at `path`, if there is one, in one step: it is there whole or not at all.
void remove_folder_atomically(const std::string& path);

/// Removes what writers that were killed left in `folder`: no other may be at work there.
void remove_unfinished_writes(const std::string& folder);

/// Makes a folder and those above it, to last as the files that will be in it.
void make_folder(const std::string& path);

/// Whether write_file_atomically could write `path`, asked before hours of work whose result it is
/// to hold: throws UserError if the folder cannot be written to, or a folder is in the way.
void check_writable(const std::string& path);

/// "cannot write the file: No space left on device; free some space on that disk": what failed, why
/// (an errno), and what helps where that is known.
std::string describe_failure(std::string_view what, int error);

}  // namespace graft::llm
