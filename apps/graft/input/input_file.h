#pragma once

#include <cstdint>
#include <fstream>
#include <string>

namespace graft::app {

/// Opens a file for reading; pipes are files too. Throws UserError if there is none at `path`, it
/// is a folder, or it may not be read.
std::ifstream open_input(const std::string& path);

/// The whole of a file of at most `max_bytes`. Throws UserError.
std::string read_input(const std::string& path, std::uint64_t max_bytes);

/// Like std::getline, for files that may hold a line of any length. Throws UserError, its message
/// opening with `place`, if the line has more than `max_bytes`.
bool read_line(std::istream& in, std::string& line, std::size_t max_bytes,
               const std::string& place);

}  // namespace graft::app
