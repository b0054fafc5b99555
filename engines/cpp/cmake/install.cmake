# What is installed: the library, its headers, and its descriptions for find_package and pkg-config.
include(CMakePackageConfigHelpers)

install(TARGETS flowless EXPORT flowlessTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/flowless DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/flowless)
install(EXPORT flowlessTargets NAMESPACE flowless:: DESTINATION ${package})
configure_package_config_file(cmake/flowlessConfig.cmake.in flowlessConfig.cmake INSTALL_DESTINATION ${package})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(flowlessConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/flowlessConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/flowlessConfigVersion.cmake
  DESTINATION ${package})

# The prefix follows from the file's place, so that an installed folder may be moved.
file(RELATIVE_PATH prefix_from_file /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/flowless.pc.in flowless.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/flowless.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
