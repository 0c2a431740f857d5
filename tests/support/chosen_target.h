// SPDX-License-Identifier: Apache-2.0
// The start of every test program: KVSPAN_SIMD, with which CTest runs tests of decisions once for
// each kind of SIMD instructions (tests/CMakeLists.txt).
#pragma once

#include <cstdio>

#include "sim/attention/simd_target.h"
#include "sim/base/error.h"

namespace kvspan::test {

inline constexpr int kSkipped = 77;  // CTest's SKIP_RETURN_CODE

// 0 to go on, or the exit code: kSkipped if the machine lacks the instructions.
inline int choose_target() {
  try {
    kernels::choose_simd_target();
  } catch (const DeviceError& error) {
    std::printf("skipped: %s\n", error.what());
    return kSkipped;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.exit_code();
  }
  return 0;
}

}  // namespace kvspan::test
