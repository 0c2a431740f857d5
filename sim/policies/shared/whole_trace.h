// SPDX-License-Identifier: Apache-2.0
// The one door to the trace itself, its vectors and full rows of attention. A rule sees one layer
// through View and never a later row; whoever comes in here (calibration, fits, oracles, models'
// files) says in its notes which rows it looked at.
#pragma once

#include "sim/attention/full_rows.h"     // IWYU pragma: export
#include "sim/attention/layer_scores.h"  // IWYU pragma: export
#include "sim/trace/probes.h"            // IWYU pragma: export
#include "sim/trace/trace.h"             // IWYU pragma: export
