# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

find_program(LLD_PROGRAM ld.lld)
if(LLD_PROGRAM)
  add_link_options(-fuse-ld=lld)
endif()

# One target carries what all our code is compiled with; link it PRIVATE.
add_library(statepool_warnings INTERFACE)
target_compile_options(statepool_warnings INTERFACE -Wall -Wextra -Werror)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND NOT STATEPOOL_FUZZ)
  target_compile_options(statepool_warnings INTERFACE -Wthread-safety)
endif()
add_library(statepool::warnings ALIAS statepool_warnings)

if(STATEPOOL_SANITIZE)
  add_compile_options(-fsanitize=${STATEPOOL_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${STATEPOOL_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Between a sanitizer's own calls GCC loses sight of what is initialized. Without sanitizers it stays on.
    target_compile_options(statepool_warnings INTERFACE -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
  if(STATEPOOL_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()

# Coverage for libFuzzer in all our code; the targets of tests/fuzz link its main().
if(STATEPOOL_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

# What the binaries say of themselves (GetCapabilities, statepool_build_info).
find_package(Git QUIET)
set(STATEPOOL_COMMIT "unknown")
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${CMAKE_SOURCE_DIR} rev-parse --short=12 HEAD
                  OUTPUT_VARIABLE git_head OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE git_result)
  if(git_result EQUAL 0)
    set(STATEPOOL_COMMIT ${git_head})
    # Configured anew after each commit, so that a binary names the one that it was built from.
    execute_process(COMMAND ${GIT_EXECUTABLE} -C ${CMAKE_SOURCE_DIR} rev-parse --git-path logs/HEAD
                    OUTPUT_VARIABLE git_log OUTPUT_STRIP_TRAILING_WHITESPACE)
    get_filename_component(git_log ${git_log} ABSOLUTE BASE_DIR ${CMAKE_SOURCE_DIR})
    if(EXISTS ${git_log})
      set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${git_log})
    endif()
  endif()
endif()

# CUDA code is compiled wherever nvcc and GCC exist; without, everything else is as it is with it. CMAKE_CUDA_ARCHITECTURES: machine code for H100
# and H200, and with "90" also PTX, from which drivers make code for later devices.
find_program(NVCC_PROGRAM nvcc HINTS /usr/local/cuda/bin)
set(STATEPOOL_CUDA OFF)
if(NOT NVCC_PROGRAM)
  message(STATUS "CUDA: no nvcc; kernels for the host alone")
elseif(STATEPOOL_SANITIZE OR NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  message(STATUS "CUDA: not with sanitizers, nor with compilers other than GCC; kernels for the host alone")
else()
  set(STATEPOOL_CUDA ON)
  set(CMAKE_CUDA_COMPILER ${NVCC_PROGRAM})
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90)
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  if(CCACHE_PROGRAM)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25 does not know that nvcc has it
  find_package(CUDAToolkit REQUIRED)
  message(STATUS "CUDA: ${NVCC_PROGRAM}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
endif()
