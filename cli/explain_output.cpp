// SPDX-License-Identifier: Apache-2.0
#include "cli/explain_output.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "sim/base/text.h"
#include "sim/report/json.h"
#include "sim/report/listing.h"

namespace kvspan::cli {
namespace {

using Table = std::vector<std::vector<std::string>>;
using Parts = std::vector<double>;

std::string as_percent(double share) { return fmt::format("{:.2f}", 100 * share); }
std::string change(double share) { return fmt::format("{:+.2f}", 100 * share); }

double total(const Parts& parts) { return std::accumulate(parts.begin(), parts.end(), 0.0); }

// A line of a table: what it is of, the sum, its parts by cause.
std::vector<std::string> cause_line(std::vector<std::string> of, const Parts& parts) {
  of.push_back(as_percent(total(parts)));
  for (const double part : parts) of.push_back(as_percent(part));
  return of;
}

std::vector<std::string> cause_heading(std::vector<std::string> of, const Explanation& found) {
  of.emplace_back("lost");
  for (const std::string& cause : found.causes) of.push_back(one_line(cause));
  return of;
}

Parts mean(const std::vector<Parts>& heads) {
  Parts out(heads.front().size(), 0.0);
  for (const Parts& head : heads) {
    for (std::size_t c = 0; c < out.size(); ++c) out[c] += head[c];
  }
  for (double& part : out) part /= static_cast<double>(heads.size());
  return out;
}

Parts difference(const Parts& a, const Parts& b) {
  Parts out;
  for (std::size_t c = 0; c < a.size(); ++c) out.push_back(a[c] - b[c]);
  return out;
}

// Every head with its place, those with the largest key first.
struct HeadParts {
  int layer = 0, head = 0;  // layer: in the trace
  Parts parts;
};
std::vector<HeadParts> sorted_heads(const std::vector<std::vector<Parts>>& by_head) {
  std::vector<HeadParts> out;
  for (std::size_t l = 0; l < by_head.size(); ++l) {
    for (std::size_t q = 0; q < by_head[l].size(); ++q)
      out.push_back({static_cast<int>(l), static_cast<int>(q), by_head[l][q]});
  }
  std::stable_sort(out.begin(), out.end(), [](const HeadParts& a, const HeadParts& b) {
    return total(a.parts) > total(b.parts);
  });
  return out;
}

std::string layer_name(const Trace& trace, int layer) {
  return fmt::format("{}", trace.meta().layer_ids[index(layer)]);
}

void print_runs(const ExplainAnswer& answer) {
  Table table{cause_heading({"policy"}, answer.found)};
  table.front().emplace_back("retained p5");
  Footnotes footnotes;
  for (std::size_t r = 0; r < answer.found.runs.size(); ++r) {
    const LostAttention& run = answer.found.runs[r];
    table.push_back(
        cause_line({answer.labels[r] + footnotes.marks(answer.notes[r])}, run.by_cause));
    table.back().push_back(as_percent(run.p5));
  }
  fmt::print("{}", align(table));
  print_footnotes(footnotes);
  fmt::print("\n");
}

void print_layers(const Trace& trace, const ExplainAnswer& answer, std::size_t r) {
  Table table{cause_heading({"layer"}, answer.found)};
  const auto& layers = answer.found.runs[r].by_head;
  for (std::size_t l = 0; l < layers.size(); ++l)
    table.push_back(cause_line({layer_name(trace, static_cast<int>(l))}, mean(layers[l])));
  fmt::print("{}\n", align(table));
}

void print_heads(const ExplainSettings& s, const Trace& trace, const ExplainAnswer& answer,
                 std::size_t r) {
  Table table{cause_heading({"layer", "query head"}, answer.found)};
  for (const HeadParts& head : sorted_heads(answer.found.runs[r].by_head)) {
    if (table.size() > s.shown || total(head.parts) <= 0) break;
    table.push_back(
        cause_line({layer_name(trace, head.layer), fmt::format("{}", head.head)}, head.parts));
  }
  if (table.size() > 1) fmt::print("heads that lose most\n{}\n", align(table));
}

void print_rows(const ExplainSettings& s, const Trace& trace, const ExplainAnswer& answer,
                std::size_t r) {
  const LostAttention& run = answer.found.runs[r];
  if (run.worst.empty()) return;
  Table rows{cause_heading({"row", "cells", "least left"}, answer.found)};
  for (const WorstRow& row : worst_rows(run)) {
    if (rows.size() > s.shown) break;
    rows.push_back(cause_line(
        {fmt::format("{}", row.row), fmt::format("{}", row.cells), as_percent(row.least)},
        row.by_cause));
  }
  fmt::print(
      "rows that make the p5: of the {} cells (layer, query head, row) that retain at most "
      "{} %\n{}\n",
      run.worst.size(), as_percent(run.p5), align(rows));
  Table cells{cause_heading({"row", "layer", "query head"}, answer.found)};
  cells.front().insert(cells.front().end(), {"largest loss: token", "%"});
  for (const LostAttention::Cell& cell : run.worst) {
    if (cells.size() > s.shown) break;
    cells.push_back(cause_line({fmt::format("{}", cell.row), layer_name(trace, cell.layer),
                                fmt::format("{}", cell.query_head)},
                               cell.by_cause));
    cells.back().insert(cells.back().end(),
                        {fmt::format("{}", cell.token), as_percent(cell.token_share)});
  }
  fmt::print("cells that lose most\n{}\n", align(cells));
}

// What one run loses beyond another.
void print_against(const ExplainSettings& s, const Trace& trace, const ExplainAnswer& answer,
                   std::size_t r) {
  const LostAttention& run = answer.found.runs[r];
  const LostAttention& other = answer.found.runs[*answer.against];
  const auto signed_line = [](std::vector<std::string> of, const Parts& parts) {
    of.push_back(change(total(parts)));
    for (const double part : parts) of.push_back(change(part));
    return of;
  };
  Table table{cause_heading({"layer", "query head"}, answer.found)};
  table.push_back(signed_line({"all", "all"}, difference(run.by_cause, other.by_cause)));
  auto heads = run.by_head;
  for (std::size_t l = 0; l < heads.size(); ++l) {
    for (std::size_t q = 0; q < heads[l].size(); ++q)
      heads[l][q] = difference(heads[l][q], other.by_head[l][q]);
  }
  const std::vector<HeadParts> sorted = sorted_heads(heads);
  const std::size_t half = std::max<std::size_t>(1, s.shown / 2);
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    if (i >= half && i + half < sorted.size()) continue;
    table.push_back(signed_line(
        {layer_name(trace, sorted[i].layer), fmt::format("{}", sorted[i].head)}, sorted[i].parts));
  }
  fmt::print("{} loses more than {} (+), or less (-): the heads that differ most\n{}\n",
             answer.labels[r], answer.labels[*answer.against], align(table));
}

nlohmann::json parts_json(const Parts& parts) {
  return {{"all", total(parts)}, {"by_cause", parts}};
}

nlohmann::json run_json(const Trace& trace, const ExplainAnswer& answer, std::size_t r) {
  using nlohmann::json;
  const LostAttention& run = answer.found.runs[r];
  json out = {{"policy", valid_utf8(answer.specs[r])},
              {"label", valid_utf8(answer.labels[r])},
              {"notes", answer.notes[r]},
              {"rows_measured", run.rows.size()},
              {"retained_mass", {{"mean", run.retained}, {"p5", run.p5}}},
              {"lost", parts_json(run.by_cause)},
              {"per_layer", json::array()},
              {"worst_rows", json::array()},
              {"worst_cells", json::array()}};
  for (std::size_t l = 0; l < run.by_head.size(); ++l) {
    out["per_layer"].push_back({{"layer", trace.meta().layer_ids[l]},
                                {"lost", parts_json(mean(run.by_head[l]))},
                                {"query_heads", run.by_head[l]}});
  }
  for (const WorstRow& row : worst_rows(run)) {
    out["worst_rows"].push_back({{"row", row.row},
                                 {"cells", row.cells},
                                 {"least_retained", row.least},
                                 {"lost", parts_json(row.by_cause)}});
  }
  for (const LostAttention::Cell& cell : run.worst) {
    out["worst_cells"].push_back(
        {{"row", cell.row},
         {"layer", trace.meta().layer_ids[index(cell.layer)]},
         {"query_head", cell.query_head},
         {"retained", cell.retained},
         {"lost", parts_json(cell.by_cause)},
         {"largest", {{"token", cell.token}, {"lost", cell.token_share}}}});
  }
  if (answer.against && *answer.against != r) {
    out["against"] = {{"policy", valid_utf8(answer.specs[*answer.against])},
                      {"lost", parts_json(difference(
                                   run.by_cause, answer.found.runs[*answer.against].by_cause))}};
  }
  return out;
}

}  // namespace

void print_explanation(const ExplainSettings& s, const Trace& trace, const ExplainAnswer& answer) {
  const Explanation& found = answer.found;
  const TraceMeta& meta = trace.meta();
  fmt::print("trace   {}\n", one_line(trace.name()));
  fmt::print("rows    {} to {}, in {} layers of {} query heads\n", found.rows.front(),
             found.rows.back(), meta.layers, meta.query_heads);
  fmt::print(
      "lost attention, % of a row's, by the kind of the keys that were gone, or not read; "
      "full loses none\n\n");
  print_runs(answer);
  for (std::size_t r = 0; r < found.runs.size(); ++r) {
    if (found.runs[r].rows.size() < found.rows.size()) {
      fmt::print("{}: of {} rows whose reads were kept; heads of a group count as one reader\n\n",
                 answer.labels[r], found.runs[r].rows.size());
    }
  }
  std::vector<std::size_t> told;
  for (std::size_t r = 0; r < found.runs.size(); ++r) {
    if (answer.against != r) told.push_back(r);
  }
  if (told.size() == 1) {
    const std::size_t r = told.front();
    fmt::print("{}\n\n", answer.labels[r]);
    print_layers(trace, answer, r);
    print_heads(s, trace, answer, r);
    print_rows(s, trace, answer, r);
    if (answer.against) print_against(s, trace, answer, r);
  }
  fmt::print(
      "sink: the first {} tokens; recent: the newest {} of a row; heavy hitter: of the {:.3g} % "
      "of the\nkeys that the prompt's last rows attended to most, head by head; rest: what "
      "none of these\nforetold.{}\n",
      s.options.sinks, s.options.recent, 100 * s.options.hitters,
      told.size() == 1 ? "" : " One run by layer, head and row: --policy.");
}

nlohmann::json explanation_json(const ExplainSettings& s, const std::vector<std::string>& command,
                                const Trace& trace, const ExplainAnswer& answer) {
  nlohmann::json out;
  out["schema_version"] = 1;
  out["kvspan"] = program_json();
  for (const std::string& word : command) out["command"].push_back(valid_utf8(word));
  out["result"] = valid_utf8(s.result);
  out["trace"] = {{"path", valid_utf8(trace.name())}, {"sha256", trace.sha256()}};
  out["rows"] = {{"begin", answer.found.rows.front()}, {"end", answer.found.rows.back() + 1}};
  for (const std::string& cause : answer.found.causes) out["causes"].push_back(valid_utf8(cause));
  out["sinks"] = s.options.sinks;
  out["recent"] = s.options.recent;
  out["hitters"] = s.options.hitters;
  out["runs"] = nlohmann::json::array();
  for (std::size_t r = 0; r < answer.found.runs.size(); ++r)
    out["runs"].push_back(run_json(trace, answer, r));
  return out;
}

}  // namespace kvspan::cli
