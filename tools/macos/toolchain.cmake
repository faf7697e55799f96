# Cross-compiles for macOS on Apple silicon. tools/check_macos.sh sets up the folder GRAFT_MACOS_DIR:
# bin/ with the compiler's commands, and sdk/ in place of what a Mac and Homebrew have.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_VERSION 23)  # of macOS 14
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_DEPLOYMENT_TARGET 14.0 CACHE STRING "")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES GRAFT_MACOS_DIR)

set(CMAKE_CXX_COMPILER ${GRAFT_MACOS_DIR}/bin/c++)
set(CMAKE_AR ${GRAFT_MACOS_DIR}/bin/ar CACHE FILEPATH "")
set(CMAKE_RANLIB ${GRAFT_MACOS_DIR}/bin/ranlib CACHE FILEPATH "")
set(CMAKE_INSTALL_NAME_TOOL /bin/false CACHE FILEPATH "")  # CMake wants one; nothing is installed
set(CMAKE_CXX_FLAGS_INIT "-isystem ${CMAKE_CURRENT_LIST_DIR}/include")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-F${GRAFT_MACOS_DIR}/sdk/frameworks -L${GRAFT_MACOS_DIR}/sdk/lib")

# What this machine has is for another system.
set(CMAKE_FIND_ROOT_PATH ${GRAFT_MACOS_DIR}/sdk ${MLX_ROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

# What CMake knows of macOS on a Mac only.
set(CMAKE_USER_MAKE_RULES_OVERRIDE ${CMAKE_CURRENT_LIST_DIR}/rules.cmake)
