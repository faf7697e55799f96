# Flags that every target of this project is built with, through the interface target graft_compile.

add_library(graft_compile INTERFACE)
target_compile_options(graft_compile INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor)
if(GRAFT_WERROR)
  target_compile_options(graft_compile INTERFACE -Werror)
endif()

if(GRAFT_SANITIZE STREQUAL "address" OR GRAFT_HAS_LIBFUZZER)
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
elseif(GRAFT_SANITIZE STREQUAL "thread")
  set(sanitizers -fsanitize=thread -fno-omit-frame-pointer)
elseif(GRAFT_SANITIZE)
  message(FATAL_ERROR "GRAFT_SANITIZE: expected address or thread, got '${GRAFT_SANITIZE}'")
endif()
if(GRAFT_HAS_LIBFUZZER)
  list(APPEND sanitizers -fsanitize=fuzzer-no-link)
endif()
if(sanitizers)
  target_compile_options(graft_compile INTERFACE ${sanitizers})
  target_link_options(graft_compile INTERFACE ${sanitizers})
  # Line tables are enough for reports, and what is not optimized compiles in half the time.
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -g1 -DNDEBUG")
  set(fast_level -O0)
else()
  set(fast_level -O1)
endif()

# graft_compile_fast(<target>): for code that only hands work to the kernels. -O3 of the large headers
# it includes takes half as long again as -O1, and buys nothing.
function(graft_compile_fast target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:${fast_level}>)
endfunction()
