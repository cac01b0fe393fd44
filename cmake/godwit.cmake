# One static library per folder of src/: every .cpp and .S below it but *_test.cpp, plus its
# .proto files; *_test.cpp become one executable, <folder>_test, registered with ctest.
set(GODWIT_GEN ${CMAKE_BINARY_DIR}/gen)
file(MAKE_DIRECTORY ${GODWIT_GEN})

set(GODWIT_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  list(APPEND GODWIT_WARNINGS -Wno-sign-conversion)  # not in what g++ means by -Wconversion
endif()

# Headers of others that most files include, compiled once for each library: reading them was two
# thirds of the build's time. What a file uses it includes nevertheless: `make tidy` and clang's
# build, to which they would give little, go without.
set(GODWIT_HEADERS <algorithm> <array> <atomic> <charconv> <condition_variable> <cstring>
    <filesystem> <fstream> <functional> <map> <memory> <mutex> <optional> <random> <set> <span>
    <sstream> <string> <string_view> <thread> <utility> <vector> <fmt/format.h>
    <absl/cleanup/cleanup.h> <absl/functional/function_ref.h> <absl/status/statusor.h>
    <absl/time/time.h>)
set(GODWIT_PROTO_HEADERS <google/protobuf/message.h> <google/protobuf/repeated_field.h>
    <google/protobuf/map_field.h> <google/protobuf/generated_message_reflection.h>
    <google/protobuf/reflection_ops.h> <google/protobuf/wire_format.h>)
set(GODWIT_TEST_HEADERS <gmock/gmock.h> <gtest/gtest.h>)

# godwit_precompile(TARGET HEADER ...)  Nothing where the files are too few to be worth it: the
# headers take as long as five files do without them.
function(godwit_precompile target)
  get_target_property(files ${target} SOURCES)
  list(LENGTH files count)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND count GREATER 5)
    target_precompile_headers(${target} PRIVATE ${ARGN})
    # ccache(1), "precompiled headers".
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
  endif()
endfunction()

# godwit_library(NAME [DEPS ...] [LIBS ...] [HEADERS ...] [GRPC])
#   DEPS: other folders; LIBS: libraries of others; HEADERS: of others, besides GODWIT_HEADERS,
#   that most of its files include; GRPC: generate services as well.
function(godwit_library name)
  cmake_parse_arguments(ARG "GRPC" "" "DEPS;LIBS;HEADERS" ${ARGN})
  set(dir ${CMAKE_CURRENT_SOURCE_DIR})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${dir}/*.cpp ${dir}/*.S)
  file(GLOB_RECURSE tests CONFIGURE_DEPENDS ${dir}/*_test.cpp)
  file(GLOB mains CONFIGURE_DEPENDS ${dir}/godwit_main.cpp ${dir}/*_shim_main.cpp)
  file(GLOB_RECURSE protos CONFIGURE_DEPENDS ${dir}/*.proto)
  list(REMOVE_ITEM sources ${tests} ${mains} "")

  set(generated "")
  foreach(proto ${protos})
    file(RELATIVE_PATH rel ${CMAKE_SOURCE_DIR}/src ${proto})
    string(REGEX REPLACE "\\.proto$" "" stem ${rel})
    set(outs ${GODWIT_GEN}/${stem}.pb.cc ${GODWIT_GEN}/${stem}.pb.h)
    set(args --cpp_out=${GODWIT_GEN})
    if(ARG_GRPC)
      list(APPEND outs ${GODWIT_GEN}/${stem}.grpc.pb.cc ${GODWIT_GEN}/${stem}.grpc.pb.h)
      list(APPEND args --grpc_out=${GODWIT_GEN} --plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin)
    endif()
    add_custom_command(OUTPUT ${outs}
      COMMAND protoc -I ${CMAKE_SOURCE_DIR}/src ${args} ${proto}
      DEPENDS ${proto} VERBATIM)
    list(APPEND generated ${outs})
  endforeach()

  set(deps "")
  foreach(dep ${ARG_DEPS})
    list(APPEND deps godwit_${dep})
  endforeach()

  if(generated)
    # Generated code does not follow our warnings.
    add_library(godwit_${name}_proto STATIC ${generated})
    list(APPEND ARG_HEADERS ${GODWIT_PROTO_HEADERS})
    if(ARG_GRPC)
      list(APPEND ARG_HEADERS <grpcpp/grpcpp.h>)
    endif()
    godwit_precompile(godwit_${name}_proto ${ARG_HEADERS})
    target_include_directories(godwit_${name}_proto SYSTEM PUBLIC ${GODWIT_GEN})
    target_link_libraries(godwit_${name}_proto PUBLIC protobuf::libprotobuf)
    if(ARG_GRPC)
      target_link_libraries(godwit_${name}_proto PUBLIC PkgConfig::GRPC)
    endif()
    # A proto may import the proto of a folder below.
    foreach(dep ${ARG_DEPS})
      if(TARGET godwit_${dep}_proto)
        add_dependencies(godwit_${name}_proto godwit_${dep}_proto)
        target_link_libraries(godwit_${name}_proto PUBLIC godwit_${dep}_proto)
      endif()
    endforeach()
    list(APPEND deps godwit_${name}_proto)
  endif()

  if(sources)
    add_library(godwit_${name} STATIC ${sources})
    target_compile_options(godwit_${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${GODWIT_WARNINGS}>)
    target_include_directories(godwit_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(godwit_${name} PUBLIC ${deps} ${ARG_LIBS} Threads::Threads)
    godwit_precompile(godwit_${name} ${GODWIT_HEADERS} ${ARG_HEADERS})
  else()
    add_library(godwit_${name} INTERFACE)
    target_include_directories(godwit_${name} INTERFACE ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(godwit_${name} INTERFACE ${deps} ${ARG_LIBS} Threads::Threads)
  endif()

  if(tests)
    add_executable(${name}_test ${tests})
    # A quarter less of the time that they take to compile, which is a third of the whole build's.
    target_compile_options(${name}_test PRIVATE ${GODWIT_WARNINGS}
                           $<$<CONFIG:RelWithDebInfo>:-O1 -g0>)
    target_link_libraries(${name}_test PRIVATE godwit_${name} GTest::gmock GTest::gtest
                          GTest::gtest_main)
    godwit_precompile(${name}_test ${GODWIT_HEADERS} ${ARG_HEADERS} ${GODWIT_TEST_HEADERS})
    add_test(NAME ${name} COMMAND ${name}_test)
    set_tests_properties(${name} PROPERTIES TIMEOUT 300 LABELS unit)
  endif()
endfunction()
