#pragma once

#define GRAFT_VERSION_MAJOR 0
#define GRAFT_VERSION_MINOR 1
#define GRAFT_VERSION_PATCH 0

namespace graft {

/// The library's version, "major.minor.patch".
inline constexpr const char* kVersion = "0.1.0";

}  // namespace graft
