# SPDX-License-Identifier: Apache-2.0
# Installs `build_dir` under `work_dir`, builds the consumer against it and runs both programs.
function(run out)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nfailed (${status}):\n${output}")
  endif()
  set(${out} "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${work_dir})
run(ignored ${CMAKE_COMMAND} --install ${build_dir} --prefix ${work_dir}/prefix)
run(ignored ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${work_dir}/build -G ${generator}
  -D CMAKE_CXX_COMPILER=${compiler} -D CMAKE_BUILD_TYPE=${build_type} "-DCMAKE_CXX_FLAGS=${flags}"
  -D CMAKE_PREFIX_PATH=${work_dir}/prefix)
run(ignored ${CMAKE_COMMAND} --build ${work_dir}/build)
foreach(program IN ITEMS ${work_dir}/build/consumer "${work_dir}/prefix/bin/kvspan;--version")
  run(output ${program})
  if(NOT output MATCHES "${version}")
    message(FATAL_ERROR "${program} should name version ${version}, but printed:\n${output}")
  endif()
endforeach()
