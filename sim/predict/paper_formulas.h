// SPDX-License-Identifier: Apache-2.0
// The formulas of arXiv 2506.17121 (section 2.1, kv_footprint.py), a second opinion on the closed
// forms. n prompt tokens in chunks of `chunk`, m generated tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace kvspan {

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
// A head of Locret as that metric sees it: the prompt's last `local` tokens are a chunk of their
// own, and every chunk keeps `stabilizers` more than its share.
[[nodiscard]] HeadArea locret_head(std::int64_t n, std::int64_t m, std::int64_t chunk, double s,
                                   std::int64_t local, std::int64_t stabilizers);
// A share h of streaming heads among evicting ones: {footprint, peak}.
struct FootprintAndPeak {
  double footprint = 0, peak = 0;
};
[[nodiscard]] FootprintAndPeak mixed(const HeadArea& streaming, const HeadArea& evicting, double h,
                                     std::int64_t n, std::int64_t m);

}  // namespace kvspan
