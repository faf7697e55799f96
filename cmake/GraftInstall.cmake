# cmake --install: headers, libraries, the program, and a package for find_package(graft).

include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/graft)

install(DIRECTORY include/graft DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS graft_core EXPORT graft-core
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT graft-core NAMESPACE graft:: FILE graft-core-targets.cmake
  DESTINATION ${package_dir})

if(TARGET graft_mlx)
  # Shared libraries find each other beside them, and MLX where it was found: it stays there.
  # (INSTALL_RPATH_USE_LINK_PATH leaves out folders of this tree.)
  set_target_properties(graft_mlx graft_llm PROPERTIES
    INSTALL_RPATH "$<IF:$<PLATFORM_ID:Darwin>,@loader_path,$ORIGIN>;$<TARGET_FILE_DIR:mlx>")
  install(TARGETS graft_mlx EXPORT graft-mlx
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/graft/mlx
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT graft-mlx NAMESPACE graft:: FILE graft-mlx-targets.cmake
    DESTINATION ${package_dir})
  install(FILES cmake/GraftMlx.cmake DESTINATION ${package_dir})
endif()
if(TARGET graft_llm)
  install(TARGETS graft_llm EXPORT graft-llm
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  foreach(header ${GRAFT_LLM_HEADERS})
    get_filename_component(folder ${header} DIRECTORY)
    install(FILES llm/${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/graft/llm/${folder})
  endforeach()
  install(EXPORT graft-llm NAMESPACE graft:: FILE graft-llm-targets.cmake
    DESTINATION ${package_dir})
endif()
if(TARGET graft_cli)
  set_target_properties(graft_cli PROPERTIES
    INSTALL_RPATH "${CMAKE_INSTALL_FULL_LIBDIR};$<TARGET_FILE_DIR:mlx>")
  install(TARGETS graft_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  # What the program says of itself, for man and for shells.
  set(usage_dir ${CMAKE_CURRENT_BINARY_DIR}/usage)
  install(CODE "
    file(MAKE_DIRECTORY ${usage_dir})
    foreach(words man \"completions;bash\" \"completions;zsh\" \"completions;fish\")
      string(REPLACE \";\" \".\" name \"\${words}\")
      execute_process(COMMAND $<TARGET_FILE:graft_cli> \${words}
                      OUTPUT_FILE ${usage_dir}/\${name} COMMAND_ERROR_IS_FATAL ANY)
    endforeach()")
  install(FILES ${usage_dir}/man DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 RENAME graft.1)
  install(FILES ${usage_dir}/completions.bash
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME graft)
  install(FILES ${usage_dir}/completions.zsh
    DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions RENAME _graft)
  install(FILES ${usage_dir}/completions.fish
    DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d RENAME graft.fish)
endif()

configure_package_config_file(cmake/graft-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/graft-config.cmake INSTALL_DESTINATION ${package_dir}
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR)
# Before 1.0 any minor version may change the interface.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/graft-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/graft-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/graft-config-version.cmake DESTINATION ${package_dir})
