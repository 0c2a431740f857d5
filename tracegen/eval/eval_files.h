// SPDX-License-Identifier: Apache-2.0
// Files of evaluations, one or several put together: other samples, tasks, models and settings
// stand beside each other, other policies on the same samples, too.
#pragma once

#include <filesystem>
#include <vector>

#include "tracegen/eval/eval.h"

namespace kvspan::tracegen {

// What `kvspan eval --out` wrote: samples by task, with figures by `options`. A sample that several
// files have is there once, with the runs of all of them.
// Errors: TraceError when a file is none of these; ConfigError when files do not go together: one
// is there twice, they are of different versions, say different things of one run, or have no
// policy in common on the samples of a task.
[[nodiscard]] EvalResult read_evaluations(const std::vector<std::filesystem::path>& paths,
                                          const FigureOptions& options);

}  // namespace kvspan::tracegen
