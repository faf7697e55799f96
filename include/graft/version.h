#pragma once

// What the version is, said here alone: CMake reads these three lines.
#define GRAFT_VERSION_MAJOR 0
#define GRAFT_VERSION_MINOR 2
#define GRAFT_VERSION_PATCH 0

#define GRAFT_QUOTED_VERSION(major, minor, patch) #major "." #minor "." #patch
#define GRAFT_QUOTE_VERSION(major, minor, patch) GRAFT_QUOTED_VERSION(major, minor, patch)

namespace graft {

/// The library's version, "major.minor.patch".
inline constexpr const char* kVersion =
    GRAFT_QUOTE_VERSION(GRAFT_VERSION_MAJOR, GRAFT_VERSION_MINOR, GRAFT_VERSION_PATCH);

}  // namespace graft

#undef GRAFT_QUOTED_VERSION
#undef GRAFT_QUOTE_VERSION
