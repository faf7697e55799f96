# MLX (its C++ interface changes between versions, so one is pinned) and a fast BLAS to put before
# the reference BLAS that MLX's CPU wheel carries. Defines graft_mlx_deps, which graft::mlx links to.
#
# Read by this project's build and, installed, by graft-config.cmake: graft_mlx_deps is an imported
# target, found anew on the machine of whoever uses the installed copy.

set(GRAFT_MLX_VERSION 0.32.4)

find_package(MLX ${GRAFT_MLX_VERSION} EXACT CONFIG QUIET HINTS ${MLX_ROOT}/share/cmake/MLX)

if(MLX_FOUND AND NOT TARGET graft_mlx_deps)
  add_library(graft_mlx_deps INTERFACE IMPORTED)
  target_link_libraries(graft_mlx_deps INTERFACE mlx)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    find_library(GRAFT_OPENBLAS NAMES openblas REQUIRED)
    # The first library that defines cblas_sgemm serves every caller, libmlx included. Without
    # --no-as-needed the linker drops OpenBLAS, which nothing of ours calls, and MLX falls back to
    # its own reference BLAS: 40 times slower.
    target_link_options(graft_mlx_deps INTERFACE
      "LINKER:--push-state,--no-as-needed" ${GRAFT_OPENBLAS} "LINKER:--pop-state")
  endif()
endif()
