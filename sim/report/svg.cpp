// SPDX-License-Identifier: Apache-2.0
#include "sim/report/svg.h"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "sim/base/build_info.h"
#include "sim/report/listing.h"
#include "sim/report/svg/canvas.h"
#include "sim/report/svg/legend.h"
#include "sim/report/svg/memory_panel.h"
#include "sim/report/svg/retained_panel.h"
#include "sim/report/svg/series.h"

namespace kvspan {
namespace {

constexpr double kWidth = 1240;
constexpr double kMargin = 28;

// What was run, and on what.
void draw_heading(svg::Canvas& canvas, const RunReport& report) {
  const TraceMeta& trace = report.trace;
  canvas.text(kMargin, 36, "start", 18, svg::kInk,
              fmt::format("KV memory of {} {}{}{}", report.runs.size(),
                          report.runs.size() == 1 ? "run" : "runs",
                          trace.model.empty() ? "" : " on ", svg::fitted(trace.model, 18, 700)),
              svg::Canvas::kBold);
  std::string what = fmt::format(
      "{}: {} tokens = {} prompt + {} decoded, {}", svg::fitted(report.trace_path, 12, 420),
      trace.tokens, trace.prompt_tokens, trace.tokens - trace.prompt_tokens,
      report.chunk == 0 ? "one prefill pass" : fmt::format("chunks of {}", report.chunk));
  what +=
      fmt::format("; {} bytes per KV element, layout {}, prefill {}", report.accounting.kv_bytes,
                  report.accounting.layout, report.accounting.layerwise ? "layerwise" : "whole");
  if (const std::string subset = layer_subset(trace); !subset.empty()) what += "; " + subset;
  canvas.text(kMargin, 58, "start", 12, svg::kFaint, svg::fitted(what, 12, kWidth - 2 * kMargin));
}

}  // namespace

std::string memory_svg(const RunReport& report) {
  const std::vector<svg::Series> series = svg::make_series(report);
  const Box memory{kMargin + 64, 132, 730, 482};
  const Box retained{830, 132, kWidth - kMargin, 482};
  svg::Canvas canvas;
  draw_heading(canvas, report);
  double end = memory.bottom + 76;
  if (!series.empty() && report.trace.tokens > 0) {
    svg::draw_memory(canvas, report, series, memory);
    svg::draw_retained(canvas, series, retained, {report.frontier});
    end = svg::draw_legend(canvas, series, kMargin, kWidth - kMargin, end);
  }
  const bool intervals = std::any_of(series.begin(), series.end(), [](const svg::Series& s) {
    return s.retained_most.has_value();
  });
  canvas.text(kMargin, end + 30, "start", 11, svg::kFaint,
              std::string("dots on the left: peaks; hollow on the right: bounds, which read the "
                          "future; retained attention is a proxy, not accuracy") +
                  (report.frontier.empty() ? "" : "; shaded: beyond any eviction policy") +
                  (intervals ? "; lines above dots: what a score trace leaves open" : ""));
  canvas.text(kWidth - kMargin, end + 30, "end", 11, svg::kFaint,
              fmt::format("kvspan {}", build_info().version));

  return svg::document(canvas, kWidth, end + 46,
                       "kvspan: memory over time, and footprint against retained attention");
}

}  // namespace kvspan
