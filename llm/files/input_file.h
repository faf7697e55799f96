#pragma once

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>

namespace graft::llm {

/// A pipe that a user names is as good as a file, but one that lies in a folder would be waited for
/// without end.
enum class InputKind { kFile, kFileOrPipe };

/// Opens a file for reading. Throws UserError if there is none at `path`, it is of another kind, or
/// it may not be read.
std::ifstream open_input(const std::string& path, InputKind kind = InputKind::kFile);

/// Throws UserError if what the file at `path` asks to be loaded, `bytes`, is more than this
/// machine has of memory. A file with holes may claim any size.
void check_fits_in_memory(std::uint64_t bytes, const std::string& path);

/// The whole of a file, or nothing if there is none that can be read.
std::optional<std::string> read_if_there(const std::string& path);

/// The whole of a file of at most `max_bytes`. Throws UserError.
std::string read_input(const std::string& path, std::uint64_t max_bytes);

/// Like std::getline, for files that may hold a line of any length. Throws UserError, its message
/// opening with `place`, if the line has more than `max_bytes`.
bool read_line(std::istream& in, std::string& line, std::size_t max_bytes,
               const std::string& place);

}  // namespace graft::llm
