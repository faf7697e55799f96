# The torch that the PyTorch host is compiled against: headers and libraries in the site-packages of a
# Python, by default the one that pip runs. Nothing is fetched, since torch and what it needs are 3 GB.
# Defines graft_torch_deps, and sets GRAFT_TORCH_LIBRARY_CUDA where that torch has CUDA.

set(GRAFT_TORCH_OLDEST 2.10)  # the first whose stable interface has all that is used here
set(TORCH_ROOT "" CACHE PATH "torch: the folder of the Python package, with its include/ and lib/")

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)

if(NOT TORCH_ROOT)
  # Where pip builds a package apart from what is installed, it does so with PYTHONPATH: without that
  # (-E) Python sees what it sees else. A virtual environment made for the build has nothing in it, and
  # torch may be where it was made from.
  set(folders "")
  foreach(words -c "-E;-c")
    execute_process(
      COMMAND ${Python_EXECUTABLE} ${words} "
import sys, sysconfig
base = {'base': sys.base_prefix, 'platbase': sys.base_exec_prefix}
print(';'.join([*filter(None, sys.path), sysconfig.get_path('platlib', vars=base)]))"
      OUTPUT_VARIABLE seen OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    list(APPEND folders ${seen})
  endforeach()
  list(REMOVE_DUPLICATES folders)
  foreach(folder IN LISTS folders)
    if(EXISTS ${folder}/torch/include/torch/headeronly/version.h OR EXISTS ${folder}/torch/version.py)
      set(graft_torch_root ${folder}/torch)
      break()
    endif()
  endforeach()
else()
  set(graft_torch_root ${TORCH_ROOT})
endif()

string(CONCAT advice
  "Install torch ${GRAFT_TORCH_OLDEST} or later for ${Python_EXECUTABLE}, or say where it is with "
  "TORCH_ROOT, the folder of the Python package (for pip: "
  "--config-settings=cmake.define.TORCH_ROOT=FOLDER). A program that builds in an environment of its "
  "own, as uv does, needs to be told not to: install scikit-build-core, then --no-build-isolation. "
  "Without the PyTorch host: -DGRAFT_TORCH=OFF")
if(NOT graft_torch_root)
  list(JOIN folders ", " folders)
  message(FATAL_ERROR "GRAFT_TORCH: there is no torch in ${folders}. ${advice}")
endif()

# Older ones, which lack this header, say their version in Python alone.
set(version_header ${graft_torch_root}/include/torch/headeronly/version.h)
set(graft_torch_version "")
if(EXISTS ${version_header})
  file(STRINGS ${version_header} graft_torch_version REGEX "^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  list(TRANSFORM graft_torch_version REPLACE "^.* " "")
  list(JOIN graft_torch_version "." graft_torch_version)
elseif(EXISTS ${graft_torch_root}/version.py)
  file(STRINGS ${graft_torch_root}/version.py graft_torch_version REGEX "^__version__ = ")
  string(REGEX MATCH "[0-9]+[.0-9]*[0-9]" graft_torch_version "${graft_torch_version}")
endif()
if(graft_torch_version STREQUAL "")
  message(FATAL_ERROR "GRAFT_TORCH: there is no torch in ${graft_torch_root}. ${advice}")
elseif(graft_torch_version VERSION_LESS GRAFT_TORCH_OLDEST)
  message(FATAL_ERROR "GRAFT_TORCH: torch ${graft_torch_version} in ${graft_torch_root} is too old, "
    "since its stable interface lacks what is used here. ${advice}")
endif()

find_library(GRAFT_TORCH_LIBRARY_CPU torch_cpu PATHS ${graft_torch_root}/lib NO_DEFAULT_PATH NO_CACHE)
find_library(GRAFT_TORCH_LIBRARY_CUDA torch_cuda PATHS ${graft_torch_root}/lib NO_DEFAULT_PATH NO_CACHE)
if(NOT GRAFT_TORCH_LIBRARY_CPU)
  message(FATAL_ERROR "GRAFT_TORCH: there is no libtorch_cpu in ${graft_torch_root}/lib. ${advice}")
endif()
if(GRAFT_CUDA STREQUAL "AUTO" AND NOT GRAFT_TORCH_LIBRARY_CUDA)
  set(GRAFT_CUDA OFF)
endif()
message(STATUS "Found torch ${graft_torch_version}: ${graft_torch_root}")

add_library(graft_torch_deps INTERFACE)
target_include_directories(graft_torch_deps SYSTEM INTERFACE ${graft_torch_root}/include)
# What is compiled runs under every later torch too.
target_compile_definitions(graft_torch_deps INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
target_link_libraries(graft_torch_deps INTERFACE ${GRAFT_TORCH_LIBRARY_CPU})
