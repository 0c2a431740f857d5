// SPDX-License-Identifier: Apache-2.0
#include "sim/report/tradeoff_svg.h"

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/build_info.h"
#include "sim/report/listing.h"
#include "sim/report/run_names.h"
#include "sim/report/svg/canvas.h"
#include "sim/report/svg/retained_panel.h"
#include "sim/report/svg/series.h"

namespace kvspan {
namespace {

constexpr double kPictureWidth = 1240;
constexpr double kPictureMargin = 28;

// What a policy does, in colours that the colour-blind can tell apart; the first whose words are
// among its kinds.
struct Deed {
  std::string_view name, colour;
  std::array<std::string_view, 4> kinds;
};
constexpr std::array<Deed, 6> kDeeds{{
    {"selects or offloads", "#0072B2", {"selection", "offload", "prefill sparsity", ""}},
    {"stores otherwise", "#8A8A8A", {"quantisation", "mixed precision", "channel", "low-rank"}},
    {"evicts after the prompt", "#E69F00", {"post-fill", "budget", "", ""}},
    {"admits", "#CC79A7", {"admission", "", "", ""}},
    {"evicts while decoding", "#009E73", {"eviction", "", "", ""}},
    {"keeps everything", "#000000", {"", "", "", ""}},
}};

const Deed& deed_of(const RunResult& run) {
  return *std::find_if(kDeeds.begin(), kDeeds.end(), [&](const Deed& deed) {
    return deed.kinds[0].empty() ||
           std::any_of(deed.kinds.begin(), deed.kinds.end(), [&](std::string_view kind) {
             return !kind.empty() && run.klass.find(kind) != std::string::npos;
           });
  });
}

// Without numbers where that tells the runs apart.
void shorten_labels(std::vector<svg::Series>& series) {
  std::set<std::string> names;
  for (const svg::Series& s : series) names.insert(method_of(s.run->label));
  const bool apart = names.size() == series.size();
  for (svg::Series& s : series)
    s.label = apart ? method_of(s.run->label) : brief_label(std::move(s.label));
}

void draw_picture_heading(svg::Canvas& canvas, const RunReport& report) {
  const TraceMeta& trace = report.trace;
  canvas.text(kPictureMargin, 36, "start", 18, svg::kInk,
              fmt::format("{} policies{}", report.runs.size(),
                          report.frontier.empty() ? "" : ", and the best that eviction could do"),
              svg::Canvas::kBold);
  canvas.text(
      kPictureMargin, 58, "start", 12, svg::kFaint,
      svg::fitted(fmt::format("{}{}: {} prompt + {} decoded tokens, {}",
                              trace.model.empty() ? "" : trace.model + ", ", report.trace_path,
                              trace.prompt_tokens, trace.tokens - trace.prompt_tokens,
                              report.chunk == 0 ? "one prefill pass"
                                                : fmt::format("chunks of {}", report.chunk)),
                  12, kPictureWidth - 2 * kPictureMargin));
}

// The colours that occur, and what shading and hollow dots mean.
void draw_key(svg::Canvas& canvas, const std::vector<svg::Series>& series, double y) {
  double x = kPictureMargin + 64;
  for (const Deed& deed : kDeeds) {
    if (std::none_of(series.begin(), series.end(),
                     [&](const svg::Series& s) { return s.colour == deed.colour; }))
      continue;
    canvas.dot(x, y - 4, 5, deed.colour, svg::kPaper, 1);
    canvas.text(x + 11, y, "start", 11, svg::kInk, deed.name);
    x += 11 + svg::text_width(deed.name, 11) + 26;
  }
}

// What a reader must know, in lines.
std::vector<std::string> caption_lines(const RunReport& report) {
  std::vector<std::string> lines;
  if (!report.frontier.empty()) {
    lines.emplace_back(
        "shaded: what no eviction policy reaches, not even one that knows the future, at that KV "
        "footprint (entries held, summed over all rows)");
  }
  std::vector<std::string> hosted;
  for (const RunResult& run : report.runs) {
    if (run.metrics.host_footprint > 0.005) hosted.push_back(method_of(run.label));
  }
  lines.emplace_back(
      "retained attention is a proxy, not accuracy; hollow: bounds, which read the future");
  if (!hosted.empty() && !report.frontier.empty())
    lines.back() += fmt::format("; off the device, and so able to bring entries back: {}",
                                fmt::join(hosted, ", "));
  return lines;
}

}  // namespace

std::string tradeoff_svg(const RunReport& report) {
  std::vector<svg::Series> series = svg::make_series(report);
  shorten_labels(series);
  for (svg::Series& s : series) {
    s.colour = deed_of(*s.run).colour;
    s.dash = "";
  }
  const Box plot{kPictureMargin + 64, 116, kPictureWidth - kPictureMargin, 700};
  svg::Canvas canvas;
  draw_picture_heading(canvas, report);
  if (!series.empty()) svg::draw_retained(canvas, series, plot, {report.frontier, true});
  draw_key(canvas, series, plot.bottom + 70);
  double y = plot.bottom + 80;
  for (const std::string& line : caption_lines(report)) {
    y += 17;
    canvas.text(kPictureMargin + 64, y, "start", 11, svg::kFaint,
                svg::fitted(line, 11, kPictureWidth - 2 * kPictureMargin - 160));
  }
  canvas.text(kPictureWidth - kPictureMargin, y, "end", 11, svg::kFaint,
              fmt::format("kvspan {}", build_info().version));
  return svg::document(canvas, kPictureWidth, y + 20,
                       "kvspan: footprint against retained attention");
}

}  // namespace kvspan
