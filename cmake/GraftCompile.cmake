# Flags that every target of this project is built with, through the interface target graft_compile.

add_library(graft_warnings INTERFACE)
target_compile_options(graft_warnings INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wnon-virtual-dtor>")
if(GRAFT_WERROR)
  target_compile_options(graft_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
add_library(graft_compile INTERFACE)
target_link_libraries(graft_compile INTERFACE graft_warnings)

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

# The flags of what a test runs on one thread, between the calls that it tests, such as the references:
# ThreadSanitizer would find nothing there, and look at every element ten times as long as it takes.
add_library(graft_compile_serial INTERFACE)
if(GRAFT_SANITIZE STREQUAL "thread")
  target_link_libraries(graft_compile_serial INTERFACE graft_warnings)
else()
  target_link_libraries(graft_compile_serial INTERFACE graft_compile)
endif()

# graft_compile_together(<target> <header> ...): for targets whose files spend most of their time on the
# same large headers, and whose names in unnamed namespaces differ. Compiles several files as one; where
# GRAFT_UNITY is off, each by itself, with these headers precompiled.
function(graft_compile_together target)
  if(GRAFT_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
  else()
    target_precompile_headers(${target} PRIVATE ${ARGN})
  endif()
endfunction()

# graft_compile_fast(<target>): for code that only hands work to the kernels. -O3 of the large headers
# it includes takes half as long again as -O1, and buys nothing.
function(graft_compile_fast target)
  target_compile_options(${target}
    PRIVATE $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:${fast_level}>)
endfunction()
