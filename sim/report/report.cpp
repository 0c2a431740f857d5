// SPDX-License-Identifier: Apache-2.0
#include "sim/report/report.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/build_info.h"
#include "sim/report/terminal_chart.h"

namespace kvspan {

using nlohmann::json;

std::string layer_subset(const TraceMeta& trace) {
  if (trace.layers >= trace.model_layers) return "";
  return fmt::format("bytes of {} of {} layers", trace.layers, trace.model_layers);
}

std::vector<std::string> notes_of(const RunReport& report, const RunResult& run) {
  std::vector<std::string> notes;
  const auto add = [&](const std::string& note) {
    if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
  };
  for (const std::string& note : run.notes) add(valid_utf8(note));
  if (const std::string subset = layer_subset(report.trace); !subset.empty()) add(subset);
  const auto is_bound = [](const std::string& note) { return note.starts_with("bound"); };
  if (run.bound && std::none_of(notes.begin(), notes.end(), is_bound)) {
    add("bound: reads the future");
  }
  if (run.fidelity) {
    for (const auto* phase : {&run.fidelity->all, &run.fidelity->prefill, &run.fidelity->decode}) {
      if (*phase && !(*phase)->exact_percentiles) add("percentiles from a histogram of 65536 bins");
    }
  }
  return notes;
}

// ---- JSON ---------------------------------------------------------------------------------------

namespace {

constexpr std::size_t kTimelinePoints = 4096;

json number(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }

// The shortest decimal that is the same float: widened, 0.9f would become 0.8999999761581421.
json number(float value) {
  if (!std::isfinite(value)) return nullptr;
  const std::string text = fmt::format("{}", value);
  double result = 0;
  std::from_chars(text.data(), text.data() + text.size(), result);
  return result;
}

json numbers(const std::vector<std::vector<double>>& table) {
  json result = json::array();
  for (const std::vector<double>& line : table) {
    json values = json::array();
    for (const double value : line) values.push_back(number(value));
    result.push_back(std::move(values));
  }
  return result;
}

json path_or_null(const std::string& path) {
  return path.empty() ? json(nullptr) : json(valid_utf8(path));
}

json peak_json(const PeakBytes& peak) {
  return {{"total", peak.total},     {"kv", peak.kv},         {"overhead", peak.overhead},
          {"prefill", peak.prefill}, {"decode", peak.decode}, {"row", peak.row}};
}

json phase_json(const std::optional<PhaseFidelity>& phase) {
  if (!phase) return nullptr;
  json result;
  result["retained_mass"] = {{"mean", number(phase->mass_mean)},
                             {"p5", number(phase->mass_p5)},
                             {"min", number(phase->mass_min)}};
  result["output_error"] = nullptr;
  if (phase->has_error) {
    result["output_error"] = {{"mean", number(phase->error_mean)},
                              {"p95", number(phase->error_p95)},
                              {"max", number(phase->error_max)}};
  }
  if (phase->logit_error) result["logit_error"] = {{"mean", number(*phase->logit_error)}};
  return result;
}

json fidelity_json(const RunResult& run) {
  if (!run.fidelity) return nullptr;
  return {{"all", phase_json(run.fidelity->all)},
          {"prefill", phase_json(run.fidelity->prefill)},
          {"decode", phase_json(run.fidelity->decode)},
          {"rows_measured", run.fidelity->rows_measured}};
}

// NaN where nothing was measured.
float mass_at(const RunResult& run, std::size_t row) {
  return run.fidelity && row < run.fidelity->row_mass.size() ? run.fidelity->row_mass[row] : NAN;
}

std::vector<std::size_t> changed_rows(const RunResult& run) {
  const Timeline& line = run.metrics.timeline;
  const std::size_t rows = line.resident_entries.size();
  std::vector<std::size_t> result;
  for (std::size_t row = 0; row < rows; ++row) {
    const auto differs = [&](const std::vector<std::int64_t>& series) {
      return series[row] != series[row - 1];
    };
    const bool ends = row == 0 || row + 1 == rows;
    const float mass = mass_at(run, row);
    // NaN before a measured value compares unequal to it, which is what is wanted.
    if (ends || differs(line.resident_entries) || differs(line.resident_bytes) ||
        differs(line.overhead_bytes) || differs(line.active_entries) ||
        (std::isfinite(mass) && mass != mass_at(run, row - 1))) {
      result.push_back(row);
    }
  }
  return result;
}

// The rows of the timeline (see report.h).
std::vector<std::size_t> timeline_rows(const RunResult& run) {
  const Timeline& line = run.metrics.timeline;
  std::vector<std::size_t> rows = changed_rows(run);
  const std::array series{&line.resident_entries, &line.resident_bytes, &line.overhead_bytes,
                          &line.active_entries};
  std::vector<std::size_t> always;
  if (!rows.empty()) always = {rows.front(), rows.back()};
  const auto peak = static_cast<std::size_t>(run.metrics.peak_bytes.row);
  if (peak < line.resident_entries.size()) always.push_back(peak);
  for (const auto* values : series) {
    const auto largest = std::max_element(values->begin(), values->end());
    if (largest != values->end()) {
      always.push_back(static_cast<std::size_t>(largest - values->begin()));
    }
  }
  const auto with_always = [&](std::vector<std::size_t> chosen) {
    chosen.insert(chosen.end(), always.begin(), always.end());
    std::sort(chosen.begin(), chosen.end());
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
    return chosen;
  };
  const auto thinned = [&](std::size_t pieces) {
    std::vector<std::size_t> chosen;
    for (std::size_t piece = 0; piece < pieces; ++piece) {
      const std::size_t begin = piece * rows.size() / pieces;
      const std::size_t end = (piece + 1) * rows.size() / pieces;
      std::array<std::size_t, 5> extreme;
      extreme.fill(rows[begin]);
      for (std::size_t i = begin + 1; i < end; ++i) {
        for (std::size_t s = 0; s < series.size(); ++s) {
          if ((*series[s])[rows[i]] > (*series[s])[extreme[s]]) extreme[s] = rows[i];
        }
        // Memory is looked at for its maxima, mass for its minima.
        const float mass = mass_at(run, rows[i]);
        const float least = mass_at(run, extreme.back());
        if (mass < least || (std::isfinite(mass) && !std::isfinite(least)))
          extreme.back() = rows[i];
      }
      chosen.insert(chosen.end(), extreme.begin(), extreme.end());
    }
    return with_always(std::move(chosen));
  };
  std::vector<std::size_t> whole = with_always(rows);
  if (whole.size() <= kTimelinePoints) return whole;
  // A piece yields one to five rows: start with the most pieces and come down.
  std::size_t pieces = kTimelinePoints - always.size();
  std::vector<std::size_t> chosen = thinned(pieces);
  while (chosen.size() > kTimelinePoints) {
    pieces = std::min(pieces - 1, pieces * kTimelinePoints / chosen.size());
    chosen = thinned(pieces);
  }
  return chosen;
}

json timeline_json(const RunResult& run) {
  const Timeline& line = run.metrics.timeline;
  json result = {{"row", json::array()},
                 {"resident_entries", json::array()},
                 {"resident_bytes", json::array()},
                 {"overhead_bytes", json::array()},
                 {"active_entries", json::array()},
                 {"retained_mass", json::array()}};
  for (const std::size_t row : timeline_rows(run)) {
    result["row"].push_back(row);
    result["resident_entries"].push_back(line.resident_entries[row]);
    result["resident_bytes"].push_back(line.resident_bytes[row]);
    result["overhead_bytes"].push_back(line.overhead_bytes[row]);
    result["active_entries"].push_back(line.active_entries[row]);
    result["retained_mass"].push_back(number(mass_at(run, row)));
  }
  return result;
}

json per_layer_json(const RunReport& report, const RunResult& run) {
  json result = json::array();
  for (std::size_t l = 0; l < run.metrics.per_layer.size(); ++l) {
    const LayerMetrics& layer = run.metrics.per_layer[l];
    const bool has_mass = run.fidelity && l < run.fidelity->layer_mass.size();
    const auto& ids = report.trace.layer_ids;
    result.push_back({{"layer", l < ids.size() ? ids[l] : static_cast<int>(l)},
                      {"footprint", number(layer.footprint)},
                      {"peak_kv", number(layer.peak_kv)},
                      {"peak_bytes", layer.peak_bytes},
                      {"retained_mass", has_mass ? number(run.fidelity->layer_mass[l]) : nullptr}});
  }
  return result;
}

json match_json(const RunResult::Match& match) {
  return {{"what", match.what},
          {"wanted", number(match.wanted)},
          {"reached", number(match.reached)},
          {"reachable", match.reachable},
          {"lowest", match.reachable ? json(nullptr) : number(match.lowest)},
          {"highest", match.reachable ? json(nullptr) : number(match.highest)}};
}

// Everything of a run but the arrays that have no place in a line of CSV.
json scalars_json(const RunReport& report, const RunResult& run) {
  const Metrics& metrics = run.metrics;
  json result = {{"policy", valid_utf8(run.spec)},
                 {"label", valid_utf8(run.label)},
                 {"class", valid_utf8(run.klass)},
                 {"bound", run.bound},
                 {"footprint", number(metrics.footprint)},
                 {"peak_kv", number(metrics.peak_kv)},
                 {"entry_rows", metrics.entry_rows},
                 {"full_entry_rows", metrics.full_entry_rows},
                 {"host_footprint", number(metrics.host_footprint)},
                 {"peak_bytes", peak_json(metrics.peak_bytes)},
                 {"byte_rows", metrics.byte_rows},
                 {"host_peak_bytes", metrics.host_peak_bytes},
                 {"fidelity", fidelity_json(run)},
                 {"spans", json::array()},
                 {"undecided", run.undecided ? json(*run.undecided) : json(nullptr)},
                 {"layouts", json::object()},
                 {"notes", notes_of(report, run)}};
  result["traffic"] = {{"entries_read", metrics.entries_read}, {"bytes_read", metrics.bytes_read}};
  if (run.fidelity) {
    for (const SpanResult& span : run.fidelity->spans) {
      result["spans"].push_back({{"name", valid_utf8(span.name)},
                                 {"resident_share", number(span.resident_share)},
                                 {"mass_lost", number(span.mass_lost)}});
    }
  }
  for (const auto& [name, peak] : metrics.layouts) result["layouts"][name] = peak_json(peak);
  if (run.match) result["match"] = match_json(*run.match);
  return result;
}

// The root without its runs.
json root_json(const RunReport& report) {
  const BuildInfo build = build_info();
  const TraceMeta& trace = report.trace;
  json command = json::array();
  for (const std::string& word : report.command) command.push_back(valid_utf8(word));
  return {{"schema_version", 1},
          {"kvspan", {{"version", build.version}, {"git", build.git}, {"build", build.build}}},
          {"command", std::move(command)},
          {"files",
           {{"lifetimes", path_or_null(report.lifetimes_path)},
            {"timeline", path_or_null(report.timeline_path)}}},
          {"trace",
           {{"path", valid_utf8(report.trace_path)},
            {"sha256", report.trace_sha256},
            {"layers", trace.layers},
            {"model_layers", trace.model_layers},
            {"query_heads", trace.query_heads},
            {"kv_heads", trace.kv_heads},
            {"head_dim", trace.head_dim},
            {"tokens", trace.tokens},
            {"prompt_tokens", trace.prompt_tokens},
            {"model", valid_utf8(trace.model)}}},
          {"chunk", report.chunk},
          {"accounting",
           {{"kv_bytes", report.accounting.kv_bytes},
            {"prefill", report.accounting.layerwise ? "layerwise" : "whole"},
            {"layout", report.accounting.layout}}}};
}

}  // namespace

json to_json(const RunReport& report) {
  json root = root_json(report);
  root["runs"] = json::array();
  for (const RunResult& run : report.runs) {
    json result = scalars_json(report, run);
    result["timeline"] = timeline_json(run);
    result["per_layer"] = per_layer_json(report, run);
    result["per_head"] = {
        {"footprint", numbers(run.metrics.head_footprint)},
        {"peak_kv", numbers(run.metrics.head_peak_kv)},
        {"retained_mass", run.fidelity ? numbers(run.fidelity->head_mass) : json(nullptr)}};
    root["runs"].push_back(std::move(result));
  }
  return root;
}

// ---- CSV ----------------------------------------------------------------------------------------

namespace {

// The value at a dotted path, null if it is not there.
const json& at_path(const json& root, std::string_view path) {
  static const json kNull;
  const json* value = &root;
  while (!path.empty()) {
    const std::size_t dot = std::min(path.find('.'), path.size());
    const std::string key(path.substr(0, dot));
    path.remove_prefix(std::min(dot + 1, path.size()));
    if (value->is_array()) {
      const std::size_t index = std::stoul(key);
      if (index >= value->size()) return kNull;
      value = &(*value)[index];
    } else {
      if (!value->is_object() || !value->contains(key)) return kNull;
      value = &value->at(key);
    }
  }
  return *value;
}

std::string csv_field(const json& value) {
  if (value.is_null()) return "";
  std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  if (text.find_first_of("\",\r\n") == text.npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + '"';
}

// Appends the dotted paths of the leaves below `value` that are not in `paths` yet.
void add_leaves(const json& value, const std::string& path, std::vector<std::string>& paths) {
  if (!value.is_structured()) {
    if (std::find(paths.begin(), paths.end(), path) == paths.end()) paths.push_back(path);
    return;
  }
  for (const auto& [key, below] : value.items()) {
    add_leaves(below, path.empty() ? key : fmt::format("{}.{}", path, key), paths);
  }
}

// A run in which everything that may be absent is there: it names the columns of every file, so
// that they do not depend on what was measured.
RunResult complete_run() {
  RunResult run;
  PhaseFidelity phase;
  phase.has_error = true;
  run.fidelity.emplace();
  run.fidelity->all = run.fidelity->prefill = run.fidelity->decode = phase;
  run.undecided = 0;
  return run;
}

}  // namespace

std::string to_csv(const RunReport& report) {
  const json root = root_json(report);
  std::vector<json> runs;
  for (const RunResult& run : report.runs) runs.push_back(scalars_json(report, run));
  // What a reader looks for first, the rest by name, then what varies from file to file.
  std::vector<std::string> columns{"policy",    "label",   "class",
                                   "footprint", "peak_kv", "peak_bytes.total"};
  json complete = scalars_json(RunReport{}, complete_run());
  for (const char* varying : {"spans", "layouts", "notes"}) complete.erase(varying);
  add_leaves(complete, "", columns);
  for (const char* varying : {"match", "spans", "layouts", "notes"}) {
    for (const json& run : runs) {
      if (run.contains(varying)) add_leaves(run.at(varying), varying, columns);
    }
  }
  const std::size_t of_run = columns.size();
  for (const char* part : {"trace", "chunk", "accounting"})
    add_leaves(root.at(part), part, columns);

  std::string text;
  for (const std::string& column : columns) text += csv_field(column) + ",";
  text.back() = '\n';
  for (const json& run : runs) {
    for (std::size_t i = 0; i < columns.size(); ++i) {
      text += csv_field(at_path(i < of_run ? run : root, columns[i])) + ",";
    }
    text.back() = '\n';
  }
  return text;
}

// ---- Table --------------------------------------------------------------------------------------

namespace {

constexpr int kLeastLabel = 12;
constexpr std::size_t kMostSpans = 3;
constexpr std::string_view kGap = "  ";

struct Column {
  std::array<std::string, 3> head;
  std::vector<std::string> cells;  // [runs], in display order
  std::string meaning;             // for the legend; empty: said by another column
  int drop = 0;                    // 0: never left out; otherwise the largest goes first
  [[nodiscard]] int width() const {
    int width = 0;
    for (const std::string& text : head) width = std::max(width, display_width(text));
    for (const std::string& text : cells) width = std::max(width, display_width(text));
    return width;
  }
};

std::string padded(const std::string& text, int width, bool right) {
  const std::string space(static_cast<std::size_t>(std::max(0, width - display_width(text))), ' ');
  return right ? space + text : text + space;
}

// Cells in percent, all with the same number of decimals; a value that is missing is a dash.
std::vector<std::string> percent_cells(const std::vector<std::optional<double>>& shares,
                                       int decimals) {
  for (const auto& share : shares) {
    if (share && *share > 0 && *share < 0.01) decimals = 2;
  }
  std::vector<std::string> cells;
  for (const auto& share : shares) {
    const bool known = share && std::isfinite(*share);
    cells.push_back(known ? fmt::format("{:.{}f}", 100 * *share, decimals) : "-");
  }
  return cells;
}

// Names of at most three spans, needles first.
std::vector<std::string> shown_spans(const RunReport& report) {
  std::vector<std::string> names;
  for (const RunResult& run : report.runs) {
    if (!run.fidelity) continue;
    for (const SpanResult& span : run.fidelity->spans) {
      if (std::find(names.begin(), names.end(), span.name) == names.end())
        names.push_back(span.name);
    }
  }
  std::stable_sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    const auto place = [](const std::string& s) {
      return s == "needle" ? 0 : s.starts_with("needle") ? 1 : 2;
    };
    return place(a) < place(b);
  });
  names.resize(std::min(names.size(), kMostSpans));
  return names;
}

std::string match_value(const std::string& what, double value) {
  if (what == "peak_bytes") return human_bytes(std::llround(value));
  return fmt::format("{:.2f} %", 100 * value);
}

class Table {
 public:
  Table(const RunReport& report, const TableOptions& options)
      : report_(report), options_(options), order_(display_order(report)) {}

  std::string text() {
    collect_notes();
    collect_columns();
    fit();
    title();
    rows();
    for (std::size_t i = 0; i < notes_.size(); ++i) wrapped(fmt::format("[{}] ", i + 1), notes_[i]);
    twins();
    legend();
    return std::move(text_);
  }

 private:
  using Value = std::function<std::optional<double>(const RunResult&)>;

  [[nodiscard]] const RunResult& run(std::size_t place) const {
    return report_.runs[order_[place]];
  }

  void collect_notes() {
    const std::string subset = layer_subset(report_.trace);
    for (std::size_t i = 0; i < order_.size(); ++i) {
      std::vector<std::string> notes = notes_of(report_, run(i));
      std::erase(notes, subset);  // the title says it once
      if (run(i).undecided.value_or(0) > 0) {
        notes.push_back(
            fmt::format("{} decisions rest on probabilities that the trace cut off (undecided)",
                        *run(i).undecided));
      }
      if (const auto& match = run(i).match; match && !match->reachable) {
        notes.push_back(fmt::format("cannot reach {} {}: its range is {} to {}", match->what,
                                    match_value(match->what, match->wanted),
                                    match_value(match->what, match->lowest),
                                    match_value(match->what, match->highest)));
      }
      std::string marks;
      for (const std::string& note : notes) {
        const auto known = std::find(notes_.begin(), notes_.end(), one_line(note));
        marks += fmt::format("[{}]", known - notes_.begin() + 1);
        if (known == notes_.end()) notes_.push_back(one_line(note));
      }
      marks_.push_back(marks.empty() ? "" : " " + marks);
    }
  }

  void add(Column column, const Value& value, int decimals) {
    std::vector<std::optional<double>> shares;
    for (std::size_t i = 0; i < order_.size(); ++i) shares.push_back(value(run(i)));
    if (std::none_of(shares.begin(), shares.end(),
                     [](const auto& share) { return share.has_value(); })) {
      return;
    }
    column.cells = percent_cells(shares, decimals);
    columns_.push_back(std::move(column));
  }

  void collect_columns() {
    Column reached{{"", "reached", ""}, {}, "", 0};
    for (std::size_t i = 0; i < order_.size(); ++i) {
      const auto& match = run(i).match;
      if (match) reached.head[2] = match->what;
      reached.cells.push_back(match ? match_value(match->what, match->reached) : "-");
    }
    if (!reached.head[2].empty()) columns_.push_back(std::move(reached));

    add(
        {{"KV", "footprint", "%"},
         {},
         "footprint: KV entries held, summed over all rows (full = 100 %)"},
        [](const RunResult& r) { return r.metrics.footprint; }, 1);
    add(
        {{"peak", "KV", "%"}, {}, "peak: the most held at once", 2},
        [](const RunResult& r) { return r.metrics.peak_kv; }, 1);
    Column memory{{"", "peak", "memory"}, {}, "", 0};
    for (std::size_t i = 0; i < order_.size(); ++i) {
      memory.cells.push_back(human_bytes(run(i).metrics.peak_bytes.total));
    }
    columns_.push_back(std::move(memory));

    const auto decoded = [](const RunResult& r) { return r.fidelity && r.fidelity->decode; };
    const std::string rows =
        std::any_of(report_.runs.begin(), report_.runs.end(), decoded) ? "decode rows" : "all rows";
    const auto quality = [](double PhaseFidelity::*field, bool error) {
      return [field, error](const RunResult& r) -> std::optional<double> {
        const PhaseFidelity* phase = quality_of(r);
        if (phase == nullptr || (error && !phase->has_error)) return std::nullopt;
        return phase->*field;
      };
    };
    add({{"retained", "attention", "mean %"},
         {},
         "retained attention: what " + rows +
             " still reach of the full cache's, a proxy and not accuracy"},
        quality(&PhaseFidelity::mass_mean, false), 2);
    add({{"retained", "attention", "p5 %"}, {}, "p5: 5 % of the rows reach less", 3},
        quality(&PhaseFidelity::mass_p5, false), 2);
    add({{"output", "error", "mean %"}, {}, "output error: relative", 4},
        quality(&PhaseFidelity::error_mean, true), 2);
    int drop = 1;
    for (const std::string& name : shown_spans(report_)) {
      const std::string heading = shorten_middle(one_line(name), 10) + " %";
      add(
          {{"entries", "left of", heading},
           {},
           drop == 1 ? "left: held at the end" : "",
           drop == 1 ? 1 : 4 + drop},
          [&name](const RunResult& r) -> std::optional<double> {
            if (!r.fidelity) return std::nullopt;
            for (const SpanResult& span : r.fidelity->spans) {
              if (span.name == name) return span.resident_share;
            }
            return std::nullopt;
          },
          1);
      ++drop;
    }
  }

  // Leaves out columns until the labels have room, and gives the labels what is left.
  void fit() {
    int longest = kLeastLabel;
    int marks = 0;
    for (std::size_t i = 0; i < order_.size(); ++i) {
      marks = std::max(marks, display_width(marks_[i]));
      longest = std::max(longest, display_width(label_of(run(i))) + display_width(marks_[i]));
    }
    const auto room = [&] {
      int used = 0;
      for (const Column& column : columns_) used += static_cast<int>(kGap.size()) + column.width();
      return options_.width - used;
    };
    // Labels of a common length come before p5, output error and a second span; nothing but the
    // three figures of a comparison comes before labels of the least length.
    const auto needed = [&](int drop) {
      return std::min(longest, kLeastLabel + marks + (drop >= 3 ? 12 : drop == 2 ? 8 : 0));
    };
    for (;;) {
      const auto last =
          std::max_element(columns_.begin(), columns_.end(),
                           [](const Column& a, const Column& b) { return a.drop < b.drop; });
      if (last->drop == 0 || room() >= needed(last->drop)) break;
      std::string name;
      for (const std::string& line : last->head)
        name += (name.empty() || line.empty() ? "" : " ") + line;
      left_out_.push_back(name);
      columns_.erase(last);
    }
    label_width_ = std::clamp(room(), std::min(kLeastLabel + marks, longest), longest);
    total_width_ = label_width_ + options_.width - room();
  }

  [[nodiscard]] std::string styled(std::string_view text, std::string_view code) const {
    return options_.colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
  }

  [[nodiscard]] std::string rule(const std::string& caption) const {
    const std::string_view dash = options_.utf8 ? "\u2500" : "-";
    std::string line;
    int drawn = 0;
    if (!caption.empty()) {
      line = fmt::format("{}{} {} ", dash, dash, shorten_middle(caption, total_width_ - 4));
      drawn = display_width(line);
    }
    for (; drawn < total_width_; ++drawn) line += dash;
    return styled(line, "2") + "\n";
  }

  // `text` in lines of the terminal's width, the first behind `lead`, the others below it.
  void wrapped(const std::string& lead, const std::string& text) {
    const int room = std::max(20, options_.width - display_width(lead));
    std::string line;
    std::string margin = lead;
    const auto flush = [&] {
      text_ += margin + line + "\n";
      margin.assign(static_cast<std::size_t>(display_width(lead)), ' ');
      line.clear();
    };
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find(' ', at), text.size());
      const std::string word = shorten_middle(text.substr(at, end - at), room);
      if (!line.empty() && display_width(line) + 1 + display_width(word) > room) flush();
      line += (line.empty() ? "" : " ") + word;
      at = end + 1;
    }
    flush();
  }

  void title() {
    const TraceMeta& trace = report_.trace;
    wrapped("trace   ", one_line(report_.trace_path));
    wrapped("model   ",
            fmt::format("{}{} layers, {} query heads, {} KV heads of {}",
                        trace.model.empty() ? "" : one_line(trace.model) + ": ", trace.model_layers,
                        trace.query_heads, trace.kv_heads, trace.head_dim));
    std::string tokens =
        fmt::format("{} = {} prompt + {} generated; chunk {}", trace.tokens, trace.prompt_tokens,
                    trace.tokens - trace.prompt_tokens, report_.chunk);
    tokens += report_.chunk == 0 ? " (one prefill pass)" : " tokens";
    if (!report_.runs.empty()) {
      const PassPlan& plan = report_.runs.front().ledger.plan;
      if (plan.evict_at != plan.prompt)
        tokens += fmt::format("; eviction point at row {}", plan.evict_at);
    }
    wrapped("tokens  ", tokens);
    std::string bytes = fmt::format(
        "{} per KV element; layout {}; prefill peak {}", report_.accounting.kv_bytes,
        report_.accounting.layout,
        report_.accounting.layerwise ? "layerwise (each layer compresses after its own attention)"
                                     : "whole (all layers attend, then compress)");
    if (const std::string subset = layer_subset(trace); !subset.empty()) bytes += "; " + subset;
    wrapped("bytes   ", bytes);
    for (const RunResult& run : report_.runs) {
      if (!run.match) continue;
      wrapped("match   ", fmt::format("{} {} wanted", run.match->what,
                                      match_value(run.match->what, run.match->wanted)));
      break;
    }
    text_ += "\n";
  }

  [[nodiscard]] std::string shortened(std::size_t i) const {
    return shorten_middle(label_of(run(i)), label_width_ - display_width(marks_[i]));
  }

  // Labels that look the same once they are shortened, in full.
  void twins() {
    std::map<std::string, std::vector<std::size_t>> places;
    for (std::size_t i = 0; i < order_.size(); ++i) places[shortened(i)].push_back(i);
    for (const auto& [text, rows] : places) {
      const bool cut = text != label_of(run(rows.front()));
      if (rows.size() < 2 || !cut) continue;
      std::string names;
      for (const std::size_t i : rows) names += (names.empty() ? "" : "; ") + label_of(run(i));
      wrapped("", fmt::format("{}, in this order: {}", text, names));
    }
  }

  void rows() {
    for (std::size_t i = 0; i < 3; ++i) {
      std::string line = padded(i == 2 ? "policy" : "", label_width_, false);
      for (const Column& column : columns_) {
        line += std::string(kGap) + padded(column.head[i], column.width(), true);
      }
      text_ += styled(line, "1") + "\n";
    }
    text_ += rule("");
    for (std::size_t i = 0; i < order_.size(); ++i) {
      if (run(i).bound && (i == 0 || !run(i - 1).bound)) {
        text_ += rule("bounds: they read the future, no method can");
      }
      std::string line = padded(shortened(i) + marks_[i], label_width_, false);
      for (const Column& column : columns_) {
        line += std::string(kGap) + padded(column.cells[i], column.width(), true);
      }
      text_ += line + "\n";
    }
    text_ += rule("");
  }

  void legend() {
    std::string meanings;
    for (const Column& column : columns_) {
      if (!column.meaning.empty()) meanings += (meanings.empty() ? "" : "; ") + column.meaning;
    }
    if (!left_out_.empty()) {
      meanings += fmt::format("; no room for: {}", fmt::join(left_out_, ", "));
    }
    wrapped("", meanings);
  }

  const RunReport& report_;
  const TableOptions& options_;
  std::vector<std::size_t> order_;
  std::vector<std::string> marks_;  // [runs] " [1][3]"
  std::vector<std::string> notes_;
  std::vector<Column> columns_;
  std::vector<std::string> left_out_;
  int label_width_ = 0;
  int total_width_ = 0;
  std::string text_;
};

}  // namespace

std::string format_table(const RunReport& report, const TableOptions& options) {
  return Table(report, options).text();
}

}  // namespace kvspan
