// SPDX-License-Identifier: Apache-2.0
//
// Checks the twin against numbers that are written in the documents or that fit in the head.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/twin/twin.h"

namespace {

using namespace kvspan::twin;  // a test program of one file
using Points = std::vector<long long>;

int failures = 0;

void check(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// Two layers of the model's 32 (first and last), 2 query heads on 1 KV head, pseudo-random q, k, v;
// `flat` makes all keys equal, so that every score of a row is a tie.
Trace make_trace(int n, int m, bool flat = false) {
  Trace t;
  t.tokens = n + m;
  t.prompt_tokens = n;
  t.query_heads = 2;
  t.kv_heads = 1;
  t.head_dim = t.v_head_dim = 2;
  t.model_layers = 32;
  t.spans = {{"start", 0, 2}};
  std::uint64_t x = 1;
  const auto draw = [&](int count) {
    std::vector<double> out;
    for (int i = 0; i < count; ++i) {
      x = x * 6364136223846793005ULL + 1442695040888963407ULL;
      out.push_back(static_cast<double>(x >> 40) / 8388608.0 - 1.0);
    }
    return out;
  };
  for (const int id : {0, 31}) {
    Layer layer;
    layer.model_layer = id;
    layer.q = draw(t.tokens * 4);
    layer.k = flat ? std::vector<double>(static_cast<std::size_t>(t.tokens) * 2, 1.0)
                   : draw(t.tokens * 2);
    layer.v = draw(t.tokens * 2);
    t.layers.push_back(layer);
  }
  return t;
}

Spec make_spec(const std::string& name, int tokens = -1) {
  Spec s;
  s.name = name;
  s.has_budget = tokens >= 0;
  s.budget.value = tokens;
  return s;
}

Spec with_share(Spec s, const std::string& percent) {
  s.has_budget = true;
  s.budget.kind = Amount::share;
  s.budget.decimal = percent;
  return s;
}

// Tokens of (layer, head 0) that are alive after `row`.
std::vector<int> alive(const Trace& t, const Result& r, int layer, int row) {
  std::vector<int> out;
  for (int j = 0; j <= row; ++j) {
    if (r.death[static_cast<std::size_t>(layer * r.heads * t.tokens + j)] > row + 1 ||
        row + 1 == t.tokens) {
      out.push_back(j);
    }
  }
  return out;
}

void closed_forms_match_the_paper() {
  const auto streaming = [](int n, int m, int c, int s, int w, long long a, const Points& peaks) {
    const Closed x = streaming_head(n, m, c, s, w);
    check(x.entry_rows == a && x.peak_points == peaks, "streaming closed form");
    const Trace t = make_trace(n, m);
    Spec spec = make_spec("streaming_llm");
    spec.sinks = s;
    spec.window = w;
    const Result r = simulate(t, spec, {c, -1, -1});
    check(r.entry_rows == 2 * a, "streaming replay");
    long long top = 0;
    for (const long long p : peaks) top = std::max(top, p);
    check(r.peak_total_whole == 2 * top * 8, "streaming peak");
  };
  streaming(8, 3, 4, 1, 2, 44, {4, 7, 4});
  streaming(10, 4, 4, 2, 3, 73, {4, 8, 7, 6});
  streaming(5, 3, 5, 1, 2, 27, {5, 4});
  streaming(4, 4, 2, 0, 3, 26, {2, 4, 4});  // 26 of 36 = 72.2 %, the paper's picture

  const auto evicting = [](int n, int m, int c, const std::string& keep, int w, long long a,
                           const Points& peaks) {
    const double s = keep == "50" ? 0.5 : 0.9;
    const Closed x = evicting_head(n, m, c, s, w);
    check(x.entry_rows == a && x.peak_points == peaks, "evicting closed form");
    Spec spec = with_share(make_spec(w > 0 ? "snapkv" : "scores"), keep);
    const Trace t = make_trace(n, m);
    spec.obs_window = w;
    spec.scores.assign(static_cast<std::size_t>(2 * t.tokens), 0.0);
    spec.chunked = true;
    for (const bool patched : {false, true}) {
      spec.patched = patched && w > 0;
      const Result r = simulate(t, spec, {c, -1, -1});
      check(r.entry_rows == 2 * a, "evicting replay");
      check(std::abs(r.peak_kv * t.tokens - static_cast<double>(peaks.back())) < 1e-9,
            "evicting peak");
    }
  };
  evicting(8, 3, 4, "50", 0, 46, {4, 6, 7});
  evicting(8, 3, 4, "50", 1, 56, {4, 7, 9});
  evicting(10, 4, 4, "50", 1, 89, {4, 7, 8, 12});
  const Closed last = evicting_head(12, 2, 5, 0.9, 2);
  check(last.entry_rows == 66 && last.peak_points == Points{5, 7, 6, 8}, "evicting, n=12");

  const auto mix = [](int chunk, int sinks, int window, double s, int w, double h, double footprint,
                      double peak) {
    const int n = 131072, m = 128;
    const Closed a = streaming_head(n, m, chunk, sinks, window);
    const Closed b = evicting_head(n, m, chunk, s, w);
    const double all = 0.5 * (n + m) * (n + m + 1.0);
    const double f = h * static_cast<double>(a.entry_rows) / all +
                     (1 - h) * static_cast<double>(b.entry_rows) / all;
    double top = 0;
    for (std::size_t j = 0; j < a.peak_points.size(); ++j) {
      top = std::max(top, h * static_cast<double>(a.peak_points[j]) +
                              (1 - h) * static_cast<double>(b.peak_points[j]));
    }
    check(std::abs(f - footprint) < 6e-11, "mixed footprint " + std::to_string(footprint));
    check(peak < 0 || std::abs(top / (n + m) - peak) < 6e-11, "mixed peak");
  };
  mix(32768, 128, 1024, 0, 0, .7, 0.4838851526, 0.4806829268);
  mix(8192, 128, 1024, 0, 0, .7, 0.3551947355, 0.3495609756);
  mix(128, 128, 1024, 0, 0, .7, 0.3129202213, 0.3065365854);
  mix(32768, 0, 0, .7, 64, 0, 0.4761199954, 0.4759908537);
  mix(131072, 0, 0, .7, 64, 0, 0.9986364470, 0.9990243902);
  mix(32768, 0, 0, .7, 0, 0, 0.4746542124, -1);
  mix(131072, 0, 0, .7, 0, 0, 0.9986354952, -1);
}

void counts_follow_the_documents() {
  // chunked: r = 10 %, c = 1000 keeps 99 inside the window count; r = 1 %, c = 50, metric: 1 + w.
  Trace t = make_trace(1000, 1);
  t.layers.pop_back();
  Spec s = with_share(make_spec("snapkv"), "10");
  s.chunked = true;
  s.metric_count = false;
  check(alive(t, simulate(t, s, {}), 0, 999).size() == 99, "implementation count");
  s = with_share(make_spec("snapkv"), "1");
  s.chunked = true;
  check(alive(t, simulate(t, s, {0, 50, -1}), 0, 49).size() == 33, "metric count");

  // PyramidKV, capacity 128, w 8, beta 20, 32 layers: 242 in the first, 25 in the last; the exact
  // pyramid ends at 234 + 8 and 6 + 8.
  t = make_trace(300, 1);
  s = make_spec("pyramidkv", 128);
  s.obs_window = 8;
  Result r = simulate(t, s, {});
  check(alive(t, r, 0, 299).size() == 242 && alive(t, r, 1, 299).size() == 25, "pyramid code");
  s.exact_rounding = true;
  r = simulate(t, s, {});
  check(alive(t, r, 0, 299).size() == 242 && alive(t, r, 1, 299).size() == 14, "pyramid exact");
}

void ties_keep_the_lower_token() {
  const Trace t = make_trace(6, 3, true);
  const std::vector<int> low{0, 1, 2};
  check(alive(t, simulate(t, make_spec("tova", 3), {}), 0, 7) == low, "tova ties");
  Spec s = make_spec("snapkv", 3);
  s.obs_window = 1;
  check(alive(t, simulate(t, s, {}), 0, 5) == std::vector<int>{0, 1, 5}, "snapkv ties");
  // H2O: older tokens have collected more rows; recent = 3 - 1 = 2.
  const Result r = simulate(t, make_spec("h2o", 3), {});
  check(alive(t, r, 0, 5) == std::vector<int>{0, 4, 5}, "h2o at the prompt's end");
  check(alive(t, r, 0, 6) == std::vector<int>{0, 5, 6}, "h2o in decode");
  // Row 6 reads 0 4 5 6 of seven equal probabilities, row 7 reads 0 5 6 7 of eight.
  check(std::abs(r.row_mass[6] - 4.0 / 7) < 1e-12, "mass of row 6");
  check(std::abs(r.mass_decode_min - 4.0 / 9) < 1e-12, "least mass");
  check(r.span_resident[0] == 0.5, "span resident");
  check(std::abs(r.span_mass_lost[0] - (1.0 / 7 + 1.0 / 8 + 1.0 / 9) / 7) < 1e-12, "span mass");
  // 6 entries in 2 layers at the prompt's end: 8 bytes and 4 of score each. Layerwise, in the
  // second layer: 3 survivors of the first, its own 6, and the copy of 3 without scores.
  check(r.peak_total_whole == 144 && r.peak_overhead == 48 && r.peak_row == 5, "h2o bytes");
  check(r.peak_total_layerwise == 12 * 8 + 9 * 4, "h2o layerwise");
  check(r.near_count.near_ties == 0 && r.near_count.decisions == 6, "h2o decisions");
}

void layouts_bound_the_ideal() {
  const Trace t = make_trace(40, 20);
  const Result r = simulate(t, make_spec("h2o", 10), {16, -1, -1});
  const auto peak = [&](const std::string& name) {
    return layout_peak(name, t, {16, -1, -1}, r.death, r.heads, 2, 4);
  };
  check(peak("ideal") == r.peak_total_whole, "ideal layout");
  check(peak("query_head") == 2 * r.peak_kv_bytes + r.peak_overhead, "query_head layout");
  check(peak("padded") == peak("ideal"), "padded layout of one head");
  check(peak("paged16_per_head") == 2 * (48 * 8 + 40 * 4), "three blocks of 16 for 40 tokens");
  check(peak("paged16_per_layer") == peak("paged16_per_head"), "per_layer of one head");
  check(peak("masked") == 2 * (60 * 8 + 11 * 4), "masked never frees");
}

}  // namespace

int main() {
  closed_forms_match_the_paper();
  counts_follow_the_documents();
  ties_keep_the_lower_token();
  layouts_bound_the_ideal();
  std::printf(failures == 0 ? "twin selfcheck: ok\n" : "twin selfcheck: failed\n");
  return failures == 0 ? 0 : 1;
}
