// SPDX-License-Identifier: Apache-2.0
#include "cli/replay_output.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "sim/base/text.h"
#include "sim/policy/spec.h"
#include "sim/report/json.h"

namespace kvspan::cli {
namespace {

using gpu_replay::Fill;
using gpu_replay::MemoryReplay;
using gpu_replay::Moment;
using gpu_replay::Shortage;

std::string size_or_dash(std::int64_t bytes) { return bytes == 0 ? "-" : human_bytes(bytes); }

// Sums over rows of a pool's bytes above those of entries and state alone.
std::string above_ideal(const MemoryReplay& replay, const LayoutFound& ideal) {
  const auto part = replay.byte_rows, whole = ideal.memory.byte_rows;
  if (!part || !whole || *whole == 0 || replay.shortage || ideal.memory.shortage) return "";
  return fmt::format("{:.1f}",
                     100.0 * static_cast<double>(*part - *whole) / static_cast<double>(*whole));
}

std::vector<std::string> peak_line(const LayoutFound& found) {
  const MemoryReplay& r = found.memory;
  const Moment& at = r.at_peak;
  return {"  " + r.layout,
          human_bytes(r.predicted.total),
          human_bytes(r.peak.total),
          human_bytes(at.kv.payload + at.state),
          size_or_dash(at.kv.copies + at.kv.narrow),
          size_or_dash(at.kv.tail),
          size_or_dash(at.kv.dead),
          human_bytes(r.most_backed.backed),
          human_bytes(r.most_backed.measured)};
}

void print_peaks(const ReplayFound& found) {
  fmt::print("peaks\n");
  std::vector<std::vector<std::string>> rows = {
      {"", "predicted", "pool", "entries", "copies,", "tail", "dead,", "backed", "device"},
      {"", "", "", "+ state", "narrow", "", "padding", "", "says"}};
  for (std::size_t run = 0; run < found.runs.size(); ++run) {
    rows.push_back({found.report->runs[run].label});
    for (const LayoutFound& layout : found.runs[run]) rows.push_back(peak_line(layout));
  }
  fmt::print("{}", align(rows));
  fmt::print(
      "predicted: by the simulator; pool: what blocks and slots took, and of that: entries and "
      "the\n"
      "policy's state; copies for query heads, slots wider than what lies in them; slots not "
      "filled "
      "yet;\nslots of what has left or that pad to the longest head. backed: the most memory "
      "behind "
      "it, and\nwhat the device says of that\n");
}

// Means over rows of what a result has as sums, and what of the backed bytes holds nothing.
std::vector<std::string> rows_line(const LayoutFound& found, const LayoutFound* ideal,
                                   RowIndex tokens) {
  const MemoryReplay& r = found.memory;
  const auto mean = [&](std::int64_t sum) {
    return human_bytes(std::llround(static_cast<double>(sum) / static_cast<double>(tokens)));
  };
  std::vector<std::string> line = {"  " + r.layout, mean(r.predicted_byte_rows)};
  if (!r.byte_rows || r.shortage) return line;
  std::int64_t state = 0;
  for (const Moment& row : r.rows) state += row.state;
  const auto backed = static_cast<double>(*r.backed_byte_rows);
  const auto full = static_cast<double>(*r.payload_byte_rows + state);
  line.insert(line.end(), {mean(*r.byte_rows), mean(*r.backed_byte_rows),
                           backed > 0 ? fmt::format("{:.1f}", 100 * (1 - full / backed)) : "",
                           ideal == nullptr ? "" : above_ideal(r, *ideal),
                           fmt::format("{}", r.at_peak.table_entries), size_or_dash(r.moved)});
  return line;
}

void print_rows(const ReplayFound& found) {
  if (found.report->accounting.layerwise) return;  // a layer's rows are not others'
  std::vector<std::vector<std::string>> rows = {
      {"mean over rows", "predicted", "pool", "backed", "empty", "above", "blocks", "moved"},
      {"", "", "", "", "%", "ideal %", "listed", ""}};
  for (std::size_t run = 0; run < found.runs.size(); ++run) {
    rows.push_back({found.report->runs[run].label});
    const auto& of = found.runs[run];
    const auto ideal = std::find_if(
        of.begin(), of.end(), [](const LayoutFound& f) { return f.memory.layout == "ideal"; });
    for (const LayoutFound& layout : of)
      rows.push_back(rows_line(layout, ideal == of.end() ? nullptr : &*ideal,
                               found.report->runs[run].ledger.plan.tokens));
  }
  fmt::print("\n{}", align(rows));
  fmt::print(
      "footprint in bytes. empty: of what is backed, what holds neither entry nor state; above "
      "ideal:\nthe pool's bytes over those of layout ideal; blocks listed: by tables, at the peak; "
      "moved: copied\ninside the device, in all\n");
}

void print_shortage(const std::string& label, const MemoryReplay& replay) {
  const Shortage& s = *replay.shortage;
  fmt::print("out of memory: {}, {}: row {}, layer {}: {} asked for, {} free\n", label,
             replay.layout, s.row, s.layer, human_bytes(s.asked), human_bytes(s.free));
}

void print_fill(const ReplayFound& found) {
  std::vector<std::vector<std::string>> rows = {
      {"how many such sequences fit", "layout", "filled", "by peaks", "predict", "backed"}};
  for (std::size_t run = 0; run < found.runs.size(); ++run) {
    for (const LayoutFound& of : found.runs[run]) {
      if (!of.fill) continue;
      const Fill& fill = *of.fill;
      rows.push_back({found.report->runs[run].label, fill.layout,
                      fmt::format("{}{}", fill.stopped ? ">= " : "", fill.sequences),
                      fmt::format("{}{}", fill.stopped ? ">= " : "", fill.predicted),
                      !of.batch.why_not.empty() ? "-"
                      : of.batch.basis == Basis::closed_form
                          ? fmt::format("{}", of.batch.sequences)
                          : fmt::format(">= {}", of.batch.sequences),
                      human_bytes(fill.backed)});
    }
  }
  if (rows.size() == 1) return;
  fmt::print("\n{}", align(rows));
  fmt::print(
      "by peaks: as the run's own peaks say; predict: as kvspan predict --gpu-memory does without "
      "the\ntrace (>=: it knows a bound; -: it has no form for that layout)\n");
}

// Against a run of `full`, if there is one: time of a row, and what its traffic alone would give.
void print_attention(const ReplayFound& found) {
  const gpu_replay::AttentionReplay* first = nullptr;
  const gpu_replay::AttentionReplay* full = nullptr;
  std::vector<std::vector<std::string>> rows = {
      {"", "retained %", "run", "error %", "run", "read", "time", "GiB/s", "speed-up", "ideal"}};
  for (std::size_t run = 0; run < found.attention.size(); ++run) {
    const AttentionFound& of = found.attention[run];
    if (!of.why_not.empty()) continue;
    if (first == nullptr) first = &of.pool;
    const RecipeSpec spec = parse_spec(found.report->runs[run].spec);
    if (spec.size() == 1 && spec[0].name == "full") full = &of.pool;
  }
  if (found.attention.empty()) return;
  for (std::size_t run = 0; run < found.attention.size(); ++run) {
    const AttentionFound& of = found.attention[run];
    std::vector<std::string> line = {"  " + found.report->runs[run].label};
    if (!of.why_not.empty()) {
      line.push_back("-");
    } else {
      const gpu_replay::AttentionReplay& a = of.pool;
      line.insert(
          line.end(),
          {fmt::format("{:.3f}", 100 * a.retained), fmt::format("{:.3f}", 100 * of.retained),
           fmt::format("{:.3f}", 100 * a.error), fmt::format("{:.3f}", 100 * of.error),
           human_bytes(std::llround(a.bytes_read)), fmt::format("{:.3f} ms", 1e3 * a.seconds),
           fmt::format("{:.2f}", a.bytes_read / a.seconds / (1 << 30)),
           full == nullptr ? "" : fmt::format("{:.2f}", full->seconds / a.seconds),
           full == nullptr ? "" : fmt::format("{:.2f}", full->bytes_read / a.bytes_read)});
    }
    rows.push_back(std::move(line));
  }
  fmt::print("\nattention of decode rows, from the pool\n{}", align(rows));
  if (first != nullptr) {
    fmt::print(
        "{} rows of {} in layout {}; run: the simulator's figures of the same rows; read, time: "
        "of a row,\nall stored layers; ideal: the speed-up if traffic were all\n",
        first->rows, gpu_replay::name_of(first->element), first->layout);
  }
  for (std::size_t run = 0; run < found.attention.size(); ++run) {
    if (!found.attention[run].why_not.empty())
      fmt::print("{}: {}\n", found.report->runs[run].label, found.attention[run].why_not);
  }
}

nlohmann::json attention_json(const AttentionFound& of) {
  if (!of.why_not.empty()) return {{"why_not", of.why_not}};
  return {{"why_not", nullptr},
          {"layout", of.pool.layout},
          {"element", gpu_replay::name_of(of.pool.element)},
          {"rows", of.pool.rows},
          {"retained_mass", {{"predicted", of.retained}, {"measured", of.pool.retained}}},
          {"output_error", {{"predicted", of.error}, {"measured", of.pool.error}}},
          {"bytes_read", of.pool.bytes_read},
          {"seconds", of.pool.seconds}};
}

nlohmann::json moment_json(const Moment& now) {
  return {{"row", now.row},
          {"payload", now.kv.payload},
          {"copies", now.kv.copies},
          {"narrow", now.kv.narrow},
          {"tail", now.kv.tail},
          {"dead", now.kv.dead},
          {"overhead", now.state},
          {"backed", now.backed},
          {"measured", now.measured < 0 ? nlohmann::json() : nlohmann::json(now.measured)},
          {"table_entries", now.table_entries}};
}

// Rows in which something changes, at most as many as in a result of `run`; of each piece of a
// longer list the rows of its largest figures.
std::vector<std::size_t> listed_rows(const std::vector<Moment>& rows) {
  constexpr std::size_t kMost = 4096;
  std::vector<std::size_t> changes;
  const auto there = [&](std::size_t row) { return rows[row].row == static_cast<RowIndex>(row); };
  for (std::size_t row = 0; row < rows.size(); ++row) {
    if (!there(row) || (row > 0 && rows[row].backed == 0 && rows[row].total() == 0)) continue;
    if (changes.empty() || rows[row].total() != rows[changes.back()].total() ||
        rows[row].backed != rows[changes.back()].backed || row + 1 == rows.size())
      changes.push_back(row);
  }
  if (changes.size() <= kMost) return changes;
  std::vector<std::size_t> out;
  const std::size_t pieces = kMost / 2;
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    const auto begin =
        changes.begin() + static_cast<std::ptrdiff_t>(piece * changes.size() / pieces);
    const auto end =
        changes.begin() + static_cast<std::ptrdiff_t>((piece + 1) * changes.size() / pieces);
    std::array<std::size_t, 2> most = {
        *std::max_element(begin, end,
                          [&](auto a, auto b) { return rows[a].total() < rows[b].total(); }),
        *std::max_element(begin, end,
                          [&](auto a, auto b) { return rows[a].backed < rows[b].backed; })};
    std::sort(most.begin(), most.end());
    out.insert(out.end(), most.begin(), most[0] == most[1] ? most.begin() + 1 : most.end());
  }
  return out;
}

nlohmann::json timeline_json(const std::vector<Moment>& rows) {
  nlohmann::json out = {{"row", nlohmann::json::array()},
                        {"used", nlohmann::json::array()},
                        {"backed", nlohmann::json::array()}};
  for (const std::size_t row : listed_rows(rows)) {
    out["row"].push_back(row);
    out["used"].push_back(rows[row].total());
    out["backed"].push_back(rows[row].backed);
  }
  return out;
}

nlohmann::json number_or_null(const std::optional<std::int64_t>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

nlohmann::json layout_json(const LayoutFound& found, bool timelines) {
  const MemoryReplay& r = found.memory;
  nlohmann::json out = {{"predicted", peak_json(r.predicted)},
                        {"measured", peak_json(r.peak)},
                        {"byte_rows",
                         {{"predicted", r.predicted_byte_rows},
                          {"measured", number_or_null(r.byte_rows)},
                          {"backed", number_or_null(r.backed_byte_rows)},
                          {"payload", number_or_null(r.payload_byte_rows)}}},
                        {"at_peak", moment_json(r.at_peak)},
                        {"most_backed", moment_json(r.most_backed)},
                        {"moved_bytes", r.moved},
                        {"out_of_memory", nullptr},
                        {"fill", nullptr}};
  if (r.shortage) {
    out["out_of_memory"] = {{"row", r.shortage->row},
                            {"layer", r.shortage->layer},
                            {"asked", r.shortage->asked},
                            {"free", r.shortage->free}};
  }
  if (found.fill) {
    out["fill"] = {{"sequences", found.fill->sequences}, {"predicted", found.fill->predicted},
                   {"backed", found.fill->backed},       {"used", found.fill->used},
                   {"stopped", found.fill->stopped},     {"predict", nullptr}};
    if (found.batch.why_not.empty())
      out["fill"]["predict"] = {{"sequences", found.batch.sequences},
                                {"basis", text_of(found.batch.basis)}};
  }
  if (timelines) out["timeline"] = timeline_json(r.rows);
  return out;
}

}  // namespace

void print_replay(const ReplayFound& found) {
  const RunReport& report = *found.report;
  fmt::print("trace   {}\n", one_line(report.trace_path));
  fmt::print("device  {}; {}{}; prefill {}\n", found.device,
             found.mapped ? human_bytes(found.granule) + " backed together"
                          : "allocations in steps of " + human_bytes(found.granule),
             found.limit == 0 ? "" : fmt::format(", {} at most", human_bytes(found.limit)),
             report.accounting.layerwise ? "layerwise" : "whole");
  print_peaks(found);
  print_rows(found);
  for (std::size_t run = 0; run < found.runs.size(); ++run) {
    for (const LayoutFound& layout : found.runs[run]) {
      if (layout.memory.shortage) print_shortage(report.runs[run].label, layout.memory);
    }
  }
  print_fill(found);
  print_attention(found);
  if (!found.slots.empty()) print_slots(report, found.slots);
}

nlohmann::json replay_json(const ReplayFound& found, bool timelines) {
  nlohmann::json out = root_json(*found.report);
  out["trace"]["layer_ids"] = found.report->trace.layer_ids;
  out["device"] = {{"name", found.device},
                   {"allocator", found.mapped ? "map" : "pool"},
                   {"granule", found.granule},
                   {"limit", found.limit == 0 ? nlohmann::json() : nlohmann::json(found.limit)}};
  out["runs"] = nlohmann::json::array();
  for (std::size_t run = 0; run < found.runs.size(); ++run) {
    const RunResult& of = found.report->runs[run];
    nlohmann::json layouts = nlohmann::json::object();
    for (const LayoutFound& layout : found.runs[run])
      layouts[layout.memory.layout] = layout_json(layout, timelines);
    out["runs"].push_back({{"policy", of.spec},
                           {"label", of.label},
                           {"footprint", of.metrics.footprint},
                           {"layouts", layouts}});
    out["runs"].back()["attention"] =
        found.attention.empty() ? nlohmann::json() : attention_json(found.attention[run]);
    out["runs"].back()["slots"] =
        found.slots.empty() ? nlohmann::json() : slots_json(found.slots[run]);
  }
  return out;
}

std::string differences(const ReplayFound& found) {
  for (std::size_t run = 0; run < found.runs.size(); ++run) {
    for (const LayoutFound& layout : found.runs[run]) {
      const MemoryReplay& r = layout.memory;
      const std::string where =
          fmt::format("{} in layout {}", found.report->runs[run].label, r.layout);
      if (r.wrong_bytes > 0)
        return fmt::format("{}: {} entries do not hold what was written", where, r.wrong_bytes);
      if (r.wrong_deaths > 0)
        return fmt::format("{}: the pool differs from the ledger in {} entries", where,
                           r.wrong_deaths);
      if (!r.shortage && !(r.peak == r.predicted))
        return fmt::format("{}: a peak of {} bytes was predicted, and the pool used {}", where,
                           r.predicted.total, r.peak.total);
    }
  }
  return "";
}

}  // namespace kvspan::cli
