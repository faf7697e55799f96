# Whether the compiler can build fuzzers. Included before the flags of the build are set, since all of
# the code under a fuzzer is built for it.

option(GRAFT_FUZZ "Build the fuzzers, with sanitizers; takes Clang with libFuzzer" OFF)

if(GRAFT_FUZZ)
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_FLAGS -fsanitize=fuzzer,address,undefined)
  check_cxx_source_compiles(
    "extern \"C\" int LLVMFuzzerTestOneInput(const unsigned char*, decltype(sizeof(0))) { return 0; }"
    GRAFT_HAS_LIBFUZZER)
  unset(CMAKE_REQUIRED_FLAGS)
  if(NOT GRAFT_HAS_LIBFUZZER)
    message(STATUS "Fuzzing is skipped: ${CMAKE_CXX_COMPILER} does not link with -fsanitize=fuzzer; "
      "it takes Clang and its runtime (on Debian 12: clang, libclang-rt-14-dev)")
  endif()
else()
  unset(GRAFT_HAS_LIBFUZZER CACHE)
endif()
