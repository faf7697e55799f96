#pragma once

/// Marks what a shared library of Graft shows to those that link it; all else in it is hidden.
#if defined(__GNUC__)
#define GRAFT_EXPORT __attribute__((visibility("default")))
#else
#define GRAFT_EXPORT
#endif
