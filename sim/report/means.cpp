// SPDX-License-Identifier: Apache-2.0
#include "sim/report/means.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"
#include "sim/report/listing.h"
#include "sim/report/run_names.h"

namespace kvspan {
namespace {

using nlohmann::json;

std::vector<std::string> methods_of(const RunReport& report) {
  std::vector<std::string> out;
  for (const RunResult& run : report.runs) out.push_back(method_of(run.label));
  return out;
}

// Runs of one row: the same place in every report, or the same label.
using Key = std::pair<std::int64_t, std::string>;

std::vector<std::pair<Key, std::vector<const RunResult*>>> rows_of(
    std::span<const RunReport> reports) {
  const bool aligned = std::all_of(reports.begin(), reports.end(), [&](const RunReport& report) {
    return methods_of(report) == methods_of(reports.front());
  });
  std::vector<std::pair<Key, std::vector<const RunResult*>>> rows;
  std::map<Key, std::size_t> known;
  for (const RunReport& report : reports) {
    for (std::size_t r = 0; r < report.runs.size(); ++r) {
      const RunResult& run = report.runs[r];
      const Key key{report.chunk, aligned ? std::to_string(r) : run.label};
      const auto [at, fresh] = known.try_emplace(key, rows.size());
      if (fresh) rows.push_back({key, {}});
      rows[at->second].second.push_back(&run);
    }
  }
  return rows;
}

// Of the runs that have the value; nullopt: none has.
template <class Value>
std::optional<Spread> spread(const std::vector<const RunResult*>& runs, Value value) {
  std::vector<double> values;
  for (const RunResult* run : runs) {
    const std::optional<double> v = value(*run);
    if (v && std::isfinite(*v)) values.push_back(*v);
  }
  return values.empty() ? std::nullopt : std::optional(spread_of(values));
}

MeanRow mean_of(std::int64_t chunk, const std::vector<const RunResult*>& runs) {
  using Share = std::optional<double>;
  MeanRow row;
  const bool same = std::all_of(runs.begin(), runs.end(), [&](const RunResult* run) {
    return run->label == runs.front()->label;
  });
  row.label = same ? runs.front()->label : method_of(runs.front()->label);
  row.amount = chunked_amount(runs.front()->spec);
  if (!same && !row.amount.empty()) row.amount.erase(0, row.amount.find(' ') + 1);
  row.chunk = chunk;
  row.traces = runs.size();
  row.bound = runs.front()->bound;
  row.footprint = *spread(runs, [](const RunResult& r) -> Share { return r.metrics.footprint; });
  row.peak_kv = *spread(runs, [](const RunResult& r) -> Share { return r.metrics.peak_kv; });
  row.peak_bytes = *spread(runs, [](const RunResult& r) -> Share {
    return static_cast<double>(r.metrics.peak_bytes.total);
  });
  row.retained = spread(runs, [](const RunResult& r) -> Share {
    const PhaseFidelity* phase = judged_phase(r);
    return phase == nullptr ? Share() : phase->mass_mean;
  });
  const bool intervals = std::any_of(runs.begin(), runs.end(), [](const RunResult* run) {
    return judged_phase(*run) != nullptr && judged_phase(*run)->mass_upper;
  });
  if (intervals) {
    row.retained_upper = spread(runs, [](const RunResult& r) -> Share {
      const PhaseFidelity* phase = judged_phase(r);
      if (phase == nullptr) return std::nullopt;
      return phase->mass_upper ? phase->mass_upper->mean : phase->mass_mean;
    });
  }
  row.output_error = spread(runs, [](const RunResult& r) -> Share {
    const PhaseFidelity* phase = judged_phase(r);
    return phase == nullptr || !phase->has_error ? Share() : phase->error_mean;
  });
  row.regret =
      spread(runs, [](const RunResult& r) { return r.regret ? Share(r.regret->regret) : Share(); });
  row.optimum_footprint = spread(
      runs, [](const RunResult& r) { return r.regret ? Share(r.regret->footprint) : Share(); });
  return row;
}

json spread_json(const std::optional<Spread>& spread) {
  if (!spread) return nullptr;
  return {{"mean", spread->mean}, {"sd", spread->sd ? json(*spread->sd) : json(nullptr)}};
}

json mean_json(const MeanRow& row) {
  json retained = spread_json(row.retained);
  if (row.retained) retained["upper"] = spread_json(row.retained_upper);
  return {{"label", valid_utf8(row.label)},
          {"method", valid_utf8(method_of(row.label))},
          {"amount", row.amount.empty() ? json(nullptr) : json(valid_utf8(row.amount))},
          {"chunk", row.chunk},
          {"traces", row.traces},
          {"bound", row.bound},
          {"footprint", spread_json(row.footprint)},
          {"peak_kv", spread_json(row.peak_kv)},
          {"peak_bytes", spread_json(row.peak_bytes)},
          {"retained_mass", std::move(retained)},
          {"output_error", spread_json(row.output_error)},
          {"optimum", row.regret ? json{{"regret", spread_json(row.regret)},
                                        {"footprint", spread_json(row.optimum_footprint)}}
                                 : json(nullptr)}};
}

std::string percent(const std::optional<Spread>& spread, int digits, bool utf8) {
  if (!spread) return "-";
  std::string text = fmt::format("{:.{}f}", 100 * spread->mean, digits);
  if (spread->sd)
    text += fmt::format(" {} {:.{}f}", utf8 ? "\u00b1" : "+-", 100 * *spread->sd, digits);
  return text;
}

// ">= 81.33 ± 2.00, <= 86.27 ± 1.90" where score traces leave it open.
std::string retained_text(const MeanRow& row, bool utf8) {
  std::string least = percent(row.retained, 2, utf8);
  if (!row.retained_upper) return least;
  const std::string most = percent(row.retained_upper, 2, utf8);
  return least == most ? least : fmt::format(">= {}, <= {}", least, most);
}

std::string bytes(const Spread& spread, bool utf8) {
  std::string text = human_bytes(std::llround(spread.mean));
  if (spread.sd)
    text += fmt::format(" {} {}", utf8 ? "\u00b1" : "+-", human_bytes(std::llround(*spread.sd)));
  return text;
}

using Cells = std::vector<std::string>;

std::string aligned(const std::vector<Cells>& rows) {
  std::vector<int> widths(rows.front().size(), 0);
  for (const Cells& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i)
      widths[i] = std::max(widths[i], display_width(row[i]));
  }
  std::string text;
  for (const Cells& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string space(static_cast<std::size_t>(widths[i] - display_width(row[i])), ' ');
      line += i == 0 ? row[i] + space : "  " + space + row[i];
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

}  // namespace

Spread spread_of(std::span<const double> values) {
  const auto n = static_cast<double>(values.size());
  Spread out;
  out.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  if (values.size() < 2) return out;
  double squares = 0;
  for (const double value : values) squares += (value - out.mean) * (value - out.mean);
  out.sd = std::sqrt(squares / (n - 1));
  return out;
}

std::vector<MeanRow> means_of(std::span<const RunReport> reports) {
  std::vector<std::int64_t> chunks;  // as given
  for (const RunReport& report : reports) {
    if (std::find(chunks.begin(), chunks.end(), report.chunk) == chunks.end())
      chunks.push_back(report.chunk);
  }
  std::vector<MeanRow> out;
  const auto rows = rows_of(reports);
  for (const std::int64_t chunk : chunks) {
    for (const auto& [key, runs] : rows) {
      if (key.first == chunk) out.push_back(mean_of(chunk, runs));
    }
  }
  return out;
}

json to_json(std::span<const RunReport> reports, Timelines timelines) {
  json root = root_json(reports.front());
  for (const char* of_one : {"files", "trace", "chunk"}) root.erase(of_one);
  root["results"] = json::array();
  for (const RunReport& report : reports) root["results"].push_back(to_json(report, timelines));
  root["means"] = json::array();
  for (const MeanRow& row : means_of(reports)) root["means"].push_back(mean_json(row));
  return root;
}

std::string format_means(std::span<const RunReport> reports, const TableOptions& options) {
  std::set<std::string> traces;
  for (const RunReport& report : reports) traces.insert(report.trace_path);
  const std::vector<MeanRow> means = means_of(reports);
  std::vector<Cells> rows = {
      {"", "", "", "KV", "peak", "peak", "retained", "output"},
      {"policy", "chunk", "traces", "footprint %", "KV %", "memory", "attention %", "error %"}};
  const bool regrets =
      std::any_of(means.begin(), means.end(), [](const MeanRow& row) { return row.regret; });
  if (regrets) {
    rows[0].insert(rows[0].end(), {"", "optimum's"});
    rows[1].insert(rows[1].end(), {"regret %", "footprint %"});
  }
  for (const MeanRow& row : means) {
    rows.push_back({shorten_middle(one_line(brief_label(label_with_amount(row.label, row.amount))),
                                   std::max(20, options.width / 3)) +
                        (row.bound ? " (bound)" : ""),
                    std::to_string(row.chunk), std::to_string(row.traces),
                    percent(row.footprint, 1, options.utf8), percent(row.peak_kv, 1, options.utf8),
                    bytes(row.peak_bytes, options.utf8), retained_text(row, options.utf8),
                    percent(row.output_error, 2, options.utf8)});
    if (!regrets) continue;
    rows.back().push_back(percent(row.regret, 2, options.utf8));
    rows.back().push_back(percent(row.optimum_footprint, 1, options.utf8));
  }
  return fmt::format("means over {} traces {} standard deviation of the traces (n - 1)\n\n{}",
                     traces.size(), options.utf8 ? "\u00b1" : "+-", aligned(rows));
}

}  // namespace kvspan
