// SPDX-License-Identifier: Apache-2.0
// Which SIMD instructions the kernels use: the best of the machine, unless the user wants others.
#pragma once

namespace kvspan::kernels {

// Does what the environment variable KVSPAN_SIMD asks for: avx512 (the best kind of it that the
// machine has), avx2 or sse4, in any case; unset or empty: the best of all. It holds for every
// kernel of the program, capture's included (Highway keeps one choice), and for oneDNN, unless the
// user set ONEDNN_MAX_CPU_ISA. Called once, by main(), before any kernel and any thread.
// Errors: ConfigError for an unknown name, DeviceError for a target that the machine lacks.
void choose_simd_target();

}  // namespace kvspan::kernels
