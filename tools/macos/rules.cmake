# Read by CMake after its own rules for Darwin, which set this on a Mac only.
set(CMAKE_SHARED_LIBRARY_RUNTIME_C_FLAG "-Wl,-rpath,")
