// SPDX-License-Identifier: Apache-2.0
// One capture, from the work folder's opening to the published trace. Private to tracegen/capture.
#pragma once

#include "tracegen/capture/capture.h"

namespace kvspan::tracegen {

// What capture() states.
CaptureResult run_job(const ModelSpec& model, Runner& runner, WorkFolder& work,
                      const CaptureOptions& options);

}  // namespace kvspan::tracegen
