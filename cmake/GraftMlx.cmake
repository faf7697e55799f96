# MLX (its C++ interface changes between versions, so one is pinned) and a fast BLAS to put before
# the reference BLAS that MLX's CPU wheel carries. Defines graft_mlx_deps, which graft::mlx links to.
#
# Read by this project's build and, installed, by graft-config.cmake: graft_mlx_deps is an imported
# target, found anew on the machine of whoever uses the installed copy.

set(GRAFT_MLX_VERSION 0.32.4)

# MLX's package for CUDA asks for cuDNN as it is for developers, which nothing here needs: it is shown an
# empty package.
set(CUDNN_DIR ${CMAKE_CURRENT_BINARY_DIR}/no-cudnn)
file(WRITE ${CUDNN_DIR}/CUDNNConfig.cmake "")
set(graft_prefer_config ${CMAKE_FIND_PACKAGE_PREFER_CONFIG})
set(CMAKE_FIND_PACKAGE_PREFER_CONFIG ON)
find_package(MLX ${GRAFT_MLX_VERSION} EXACT CONFIG QUIET HINTS ${MLX_ROOT}/share/cmake/MLX)
set(CMAKE_FIND_PACKAGE_PREFER_CONFIG ${graft_prefer_config})
unset(CUDNN_DIR)

if(MLX_FOUND AND NOT TARGET graft_mlx_deps)
  add_library(graft_mlx_deps INTERFACE IMPORTED)
  target_link_libraries(graft_mlx_deps INTERFACE mlx)
  # Whether it is MLX for CUDA, which then links the driver.
  get_target_property(GRAFT_MLX_CUDA mlx IMPORTED_LINK_DEPENDENT_LIBRARIES_RELEASE)
  string(FIND "${GRAFT_MLX_CUDA}" "CUDA::" GRAFT_MLX_CUDA)
  if(GRAFT_MLX_CUDA GREATER -1)
    set(GRAFT_MLX_CUDA ON)
    # The libraries that MLX for CUDA needs itself may be on the machine that runs it alone.
    target_link_options(graft_mlx_deps INTERFACE "LINKER:--allow-shlib-undefined")
  else()
    set(GRAFT_MLX_CUDA OFF)
  endif()
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    find_library(GRAFT_OPENBLAS NAMES openblas REQUIRED)
    # The first library that defines cblas_sgemm serves every caller, libmlx included. Without
    # --no-as-needed the linker drops OpenBLAS, which nothing of ours calls, and MLX falls back to
    # its own reference BLAS: 40 times slower.
    target_link_options(graft_mlx_deps INTERFACE
      "LINKER:--push-state,--no-as-needed" ${GRAFT_OPENBLAS} "LINKER:--pop-state")
  endif()
endif()
