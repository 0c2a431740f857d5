// SPDX-License-Identifier: Apache-2.0
// What the twin says in one formula: a head's entries by its policy, and the bytes of layouts.
#include <algorithm>
#include <cmath>

#include "tests/twin/parts.h"

namespace kvspan::twin {

Closed streaming_head(int n, int m, int chunk, int sinks, int window) {
  const auto held = [&](long long a) {  // loc(a) + snk(a)
    const long long local = std::min<long long>(a, window);
    return local + std::min<long long>(a - local, sinks);
  };
  Closed out;
  const int step = chunk > 0 ? chunk : n;
  for (int a = 0; a < n; a += step) {
    const long long c = std::min(step, n - a);
    out.entry_rows += c * (c + 1) / 2 + c * held(a);
    out.peak_points.push_back(c + held(a));
  }
  for (int a = n; a < n + m; ++a) out.entry_rows += 1 + held(a);
  if (m > 0) out.peak_points.push_back(1 + held(n + m - 1));
  return out;
}

Closed evicting_head(int n, int m, int chunk, double s, int w) {
  Closed out;
  long long past = 0;
  const int step = chunk > 0 ? chunk : n;
  for (int a = 0; a < n; a += step) {
    const long long c = std::min(step, n - a);
    out.entry_rows += c * (c + 1) / 2 + past * c;
    out.peak_points.push_back(past + c);
    const double kept = (1.0 - s) * static_cast<double>(c);
    past += std::min(static_cast<long long>(std::nearbyint(kept)) + w, c);
  }
  if (m > 0) {
    out.entry_rows += static_cast<long long>(m) * (m + 1) / 2 + past * m;
    out.peak_points.push_back(past + m);
  }
  return out;
}

// Every token is born in every head, in order, so token j fills slot j % 16 of block j / 16. A
// partly filled tail block always holds the row's own newborn, so it is never free at a row.
long long layout_peak(const std::string& layout, const Trace& trace, const Plan& plan,
                      const std::vector<int>& death, int heads, int kv_bytes,
                      long long overhead_per_entry) {
  constexpr int kBlock = 16;
  const auto blocks = [](long long entries) { return (entries + kBlock - 1) / kBlock; };
  const long long entry_bytes =
      static_cast<long long>(trace.head_dim + trace.v_head_dim) * kv_bytes;
  const int layers = static_cast<int>(trace.layers.size());
  const int point = plan.evict_point < 0 ? trace.prompt_tokens : plan.evict_point;
  std::vector<char> ends_pass(at(trace.tokens), 0);
  for (const Pass& pass : make_passes(plan.chunk, point, trace.prompt_tokens, trace.tokens))
    ends_pass[at(pass.end - 1)] = 1;
  std::vector<long long> whole_blocks(at(layers), 0);  // tokens of OpenVINO's cache
  long long peak = 0;
  for (int i = 0; i < trace.tokens; ++i) {
    long long resident = 0;  // entries of the ideal ledger
    long long stored = 0;    // slots that the layout takes
    for (int l = 0; l < layers; ++l) {
      long long longest = 0, own = 0, live_blocks = 0, compact_blocks = 0;
      std::vector<char> live_in_layer(at(i / kBlock + 1), 0);
      for (int h = 0; h < heads; ++h) {
        std::vector<char> live(live_in_layer.size(), 0);
        long long n = 0;
        for (int j = 0; j <= i; ++j) {
          if (death[flat(trace, heads, l, h, j)] <= i) continue;
          ++n;
          live[at(j / kBlock)] = live_in_layer[at(j / kBlock)] = 1;
        }
        own += n;
        longest = std::max(longest, n);
        live_blocks += std::count(live.begin(), live.end(), 1);
        compact_blocks += blocks(n);
      }
      resident += own;
      if (layout == "ideal") {
        stored += own;
      } else if (layout == "query_head") {
        stored += own * (trace.query_heads / heads);
      } else if (layout == "padded") {
        stored += longest * heads;
      } else if (layout == "paged16_per_head") {
        stored += live_blocks * kBlock;
      } else if (layout == "paged16_per_layer") {
        stored += std::count(live_in_layer.begin(), live_in_layer.end(), 1) * kBlock * heads;
      } else if (layout == "paged16_per_head_compact") {
        stored += compact_blocks * kBlock;
      } else if (layout == "paged16_per_layer_compact") {
        stored += blocks(longest) * kBlock * heads;
      } else if (layout == "openvino") {
        // Blocks of 32; three at least; the pass's own eviction comes after the row.
        long long& held = whole_blocks[at(l)];
        stored += (++held + 31) / 32 * 32 * heads;
        long long stay = 0;
        for (int h = 0; h < heads; ++h) {
          long long n = 0;
          for (int j = 0; j <= i; ++j) n += death[flat(trace, heads, l, h, j)] > i + 1 ? 1 : 0;
          stay = std::max(stay, n);
        }
        while (ends_pass[at(i)] != 0 && held >= std::max(96LL, (stay + 31) / 32 * 32) + 32)
          held -= 32;
      } else {
        require(layout == "masked", "unknown layout");
        stored += static_cast<long long>(i + 1) * heads;
      }
    }
    peak = std::max(peak, stored * entry_bytes + resident * overhead_per_entry);
  }
  return peak;
}

}  // namespace kvspan::twin
