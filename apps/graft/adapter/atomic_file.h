#pragma once

#include <string>
#include <string_view>

namespace graft::app {

/// Replaces the file at `path`, or makes it, in one step: whoever reads it sees the old contents or
/// the new, also after a crash. Throws UserError.
void write_file_atomically(const std::string& path, std::string_view bytes);

/// Makes a folder and those above it. Throws UserError.
void make_folder(const std::string& path);

/// Whether write_file_atomically could write `path`, asked before hours of work whose result it is
/// to hold: throws UserError if the folder cannot be written to, or a folder is in the way.
void check_writable(const std::string& path);

}  // namespace graft::app
