# SPDX-License-Identifier: Apache-2.0
include(CMakeFindDependencyMacro)
find_dependency(fmt)
find_dependency(TBB)
find_dependency(hwy CONFIG)
find_dependency(OpenSSL COMPONENTS Crypto)
find_dependency(nlohmann_json)
include(${CMAKE_CURRENT_LIST_DIR}/kvspanTargets.cmake)
