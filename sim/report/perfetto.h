// SPDX-License-Identifier: Apache-2.0
// A report as a trace of events, for the Perfetto UI (ui.perfetto.dev) and its SQL.
#pragma once

#include <string>

#include "sim/run/result.h"

namespace kvspan {

// JSON of the Trace Event Format. A run is a process, in the order of reports; a row is a
// millisecond. Counters: KV memory (kv and overhead, bytes), entries (resident, read), retained
// attention (%), each where it changes, at timeline_rows(). Slices: the passes of the prompt, and
// decoding.
// Source: "Trace Event Format", Google; Perfetto's documentation, "JSON trace format".
[[nodiscard]] std::string perfetto_trace(const RunReport& report);

}  // namespace kvspan
