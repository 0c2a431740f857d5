// SPDX-License-Identifier: Apache-2.0
// Which targets Highway compiles kernels for; every file with kernels includes it before Highway,
// so that all of them choose among the same.
//
// On x86-64 four: AVX3, AVX2, SSE4 and the SSE2 baseline, which Highway emulates (EMU128; it avoids
// that before GCC 12.3 because of a wrong 16-bit multiply, which we do not use). SVE vectors cannot
// be array elements; such machines run NEON.
#pragma once

#define HWY_BROKEN_EMU128 0
#if defined(__x86_64__) || defined(_M_X64)
#define HWY_DISABLED_TARGETS HWY_SSSE3
#elif defined(__aarch64__)
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
