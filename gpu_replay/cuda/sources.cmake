# SPDX-License-Identifier: Apache-2.0
# What the module kvspan_cuda.so has of gpu_replay; tests compile the same as C++, with a driver of their
# own in place of driver.cpp.
set(kvspan_replay_cuda_sources
  attend.cpp
  decode_row.cu
  memory.cpp
  score.cu
  score_layer.cpp
  score_outputs.cu)
list(TRANSFORM kvspan_replay_cuda_sources PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
set(kvspan_replay_cuda_driver ${CMAKE_CURRENT_LIST_DIR}/driver.cpp)
set(kvspan_replay_cuda_module ${CMAKE_CURRENT_LIST_DIR}/module.cpp)
