// SPDX-License-Identifier: Apache-2.0
// The analytic model: footprint, peak and bytes from closed forms, without a trace.
//
// A policy whose number of entries does not depend on content declares capacity(layer, head, sizing)
// beside its rule; occupancy then follows pass by pass:  after = min(past + rows, capacity), and with
// it every figure. The paper's own formulas (arXiv 2506.17121, kv_footprint.py) stand beside it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sim/ledger/metrics.h"
#include "sim/policy/registry.h"

namespace kvspan {

struct Prediction {
  std::string spec;
  bool exact = true;  // false: upper bounds, since how many entries stay depends on the trace
  double footprint = 0, peak_kv = 0;
  std::int64_t entry_rows = 0, full_entry_rows = 0;
  PeakBytes peak_bytes;
  std::optional<std::int64_t> byte_rows;     // absent for paged layouts
  std::map<std::string, PeakBytes> layouts;  // those that do not depend on which entries leave
  std::vector<std::int64_t> after;           // [layers] entries of all heads at the end
  std::vector<std::int64_t> after_bytes;     // [layers] their bytes, ideal layout
  std::vector<std::string> notes;
};

// Equal to the replay's figures, to the last digit, for every policy with closed_form; upper bounds
// for the others. Errors: ConfigError for a layout that depends on which entries
// leave ("paged16_per_head"; its "_compact" variant does not).
// every_layout: also of the layouts that were not asked for; without them it is much faster.
[[nodiscard]] Prediction predict(const Policy& policy, const Geometry& geometry,
                                 const Accounting& accounting, bool every_layout = true);

// What a replay measured of a policy whose occupancy depends on content.
struct Occupancies {
  double kept = 1;   // of the prompt's entries, share that stays after its end
  double grows = 1;  // entries a head that stay of each decode row
};
// From the result file of a replay (kvspan run --out): occupancies by canonical specification.
// Errors: ConfigError when the file is not such a result.
[[nodiscard]] std::map<std::string, Occupancies> read_occupancies(const std::string& result_file);
// The policy with its content-dependent rules replaced by what was measured; exact only as far as the
// measured trace is typical, and its notes say so.
[[nodiscard]] Policy calibrated(Policy policy, const Occupancies& measured,
                                const std::string& result_file);

// ---- The paper's formulas, section 2.1 and kv_footprint.py ---------------------------------------
// n prompt tokens in chunks of `chunk`, m generated tokens.

struct HeadArea {
  std::int64_t entry_rows = 0;
  std::vector<std::int64_t> peak_points;  // one a chunk, then one for decode if m > 0
};
// A head that keeps `sinks` first and `window` newest tokens.
[[nodiscard]] HeadArea streaming_head(std::int64_t n, std::int64_t m, std::int64_t chunk,
                                      std::int64_t sinks, std::int64_t window);
// A head that keeps min(round_half_even((1 - s) c) + w, c) of every chunk of c, and all of decode.
[[nodiscard]] HeadArea evicting_head(std::int64_t n, std::int64_t m, std::int64_t chunk, double s,
                                     std::int64_t w);
// A head of Locret as that metric sees it: the prompt's last `local` tokens are a chunk of their own,
// and every chunk keeps `stabilizers` more than its share.
[[nodiscard]] HeadArea locret_head(std::int64_t n, std::int64_t m, std::int64_t chunk, double s,
                                   std::int64_t local, std::int64_t stabilizers);
// A share h of streaming heads among evicting ones: {footprint, peak}.
struct FootprintAndPeak {
  double footprint = 0, peak = 0;
};
[[nodiscard]] FootprintAndPeak mixed(const HeadArea& streaming, const HeadArea& evicting, double h,
                                     std::int64_t n, std::int64_t m);

}  // namespace kvspan
