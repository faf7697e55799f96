# The CUDA compiler, and what its files are built with. Kernels are compiled for Ampere (which Ada runs
# too), for Hopper with its own instructions (wgmma, TMA), and as PTX for what comes later.

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90a-real)
endif()
if(NOT CMAKE_CUDA_COMPILER)
  find_program(graft_nvcc NAMES $ENV{CUDACXX} nvcc HINTS /usr/local/cuda/bin)
  if(graft_nvcc)
    set(CMAKE_CUDA_COMPILER ${graft_nvcc})
  endif()
endif()
if(GRAFT_CUDA STREQUAL "AUTO")
  set(nvcc_version "")
  if(CMAKE_CUDA_COMPILER)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
    string(REGEX REPLACE ".*release ([0-9.]+).*" "\\1" nvcc_version "${nvcc_version}")
  endif()
  if(nvcc_version VERSION_LESS 13)
    message(STATUS "No CUDA kernels: there is no nvcc of CUDA 13 here (nvcc: '${nvcc_version}')")
    set(GRAFT_CUDA OFF)
    return()
  endif()
  set(GRAFT_CUDA ON)
endif()
enable_language(CUDA)
find_package(CUDAToolkit 13 REQUIRED)
# Older versions of CMake don't know that nvcc has it.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
# Programs without a GPU start as ever: the runtime is linked in, and the driver asked for at run time.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

target_compile_options(graft_warnings INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter>")
if(GRAFT_WERROR)
  target_compile_options(graft_warnings INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>")
endif()
