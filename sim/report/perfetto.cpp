// SPDX-License-Identifier: Apache-2.0
#include "sim/report/perfetto.h"

#include <cmath>
#include <iterator>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/report/listing.h"
#include "sim/report/timeline_rows.h"

namespace kvspan {
namespace {

using nlohmann::json;

constexpr std::int64_t kRow = 1000;  // microseconds

class Events {
 public:
  explicit Events(std::size_t process) : process_(process) {}

  void add(const char* phase, const std::string& name, json more) {
    more["ph"] = phase;
    more["name"] = name;
    more["pid"] = process_;
    more["tid"] = 1;
    if (!text_.empty()) text_ += ",\n";
    text_ += more.dump();
  }
  void count(const char* name, std::size_t row, json values) {
    add("C", name, {{"ts", static_cast<std::int64_t>(row) * kRow}, {"args", std::move(values)}});
  }
  void slice(const std::string& name, RowIndex begin, RowIndex end) {
    add("X", name, {{"ts", begin * kRow}, {"dur", (end - begin) * kRow}});
  }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::size_t process_;
  std::string text_;
};

void add_passes(const PassPlan& plan, Events& events) {
  RowIndex begin = 0;
  for (const RowIndex end : plan.ends) {
    if (end > plan.prompt) break;
    events.slice(fmt::format("prefill [{}, {})", begin, end), begin, end);
    begin = end;
  }
  if (begin < plan.tokens)
    events.slice(fmt::format("decode [{}, {})", begin, plan.tokens), begin, plan.tokens);
}

std::string events_of(const RunReport& report, std::size_t place, const RunResult& run) {
  Events events(place + 1);
  const std::string name = label_of(run) + (run.bound ? " (bound)" : "");
  events.add("M", "process_name", {{"args", {{"name", name}}}});
  events.add("M", "process_sort_index", {{"args", {{"sort_index", place}}}});
  events.add("M", "thread_name", {{"args", {{"name", "passes"}}}});
  add_passes(run.ledger.plan, events);
  const Timeline& line = run.metrics.timeline;
  for (const std::size_t row : timeline_rows(run)) {
    events.count("KV memory, bytes", row,
                 {{"kv", line.resident_bytes[row] - line.overhead_bytes[row]},
                  {"overhead", line.overhead_bytes[row]}});
    events.count("entries", row,
                 {{"resident", line.resident_entries[row]}, {"read", line.active_entries[row]}});
    const float retained = retained_at(run, row);
    if (std::isfinite(retained))
      events.count("retained attention, %", row, {{"mean", 100 * retained}});
  }
  // Counters hold their value; they end with the run.
  const auto end = static_cast<std::size_t>(report.trace.tokens);
  events.count("KV memory, bytes", end, {{"kv", 0}, {"overhead", 0}});
  events.count("entries", end, {{"resident", 0}, {"read", 0}});
  return events.text();
}

}  // namespace

std::string perfetto_trace(const RunReport& report) {
  std::string text = "{\"displayTimeUnit\": \"ms\", \"otherData\": " +
                     json{{"trace", report.trace_path}, {"row", "1 ms"}}.dump(
                         -1, ' ', false, json::error_handler_t::replace) +
                     ",\n\"traceEvents\": [\n";
  const std::vector<std::size_t> order = display_order(report);
  for (std::size_t place = 0; place < order.size(); ++place)
    text += (place == 0 ? "" : ",\n") + events_of(report, place, report.runs[order[place]]);
  return text + "\n]}\n";
}

}  // namespace kvspan
