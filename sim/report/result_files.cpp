// SPDX-License-Identifier: Apache-2.0
#include "sim/report/result_files.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/build_info.h"
#include "sim/base/text.h"
#include "sim/trace/safetensors.h"

namespace kvspan {

static_assert(std::endian::native == std::endian::little,
              "tensors are written as they lie in memory");

namespace {

constexpr std::int64_t kFold = 64;  // points of one level per point of the next

using Entries = std::vector<SafetensorsWriter::Entry>;

std::string name_of(std::size_t run, std::string_view what) {
  return fmt::format("runs.{}.{}", run, what);
}

Metadata metadata_of(const RunReport& report, std::string_view format) {
  Metadata metadata;
  metadata["format"] = format;
  metadata["version"] = "1";
  metadata["program"] = fmt::format("kvspan {} ({})", build_info().version, build_info().git);
  metadata["trace.path"] = valid_utf8(report.trace_path);
  metadata["trace.sha256"] = report.trace_sha256;
  metadata["tokens"] = fmt::format("{}", report.trace.tokens);
  metadata["prompt_tokens"] = fmt::format("{}", report.trace.prompt_tokens);
  const auto evict_at = [&](std::size_t r) { return report.runs[r].ledger.plan.evict_at; };
  if (!report.runs.empty()) metadata["evict_at"] = fmt::format("{}", evict_at(0));
  metadata["chunk"] = fmt::format("{}", report.chunk);
  metadata["model_layers"] = fmt::format("{}", report.trace.model_layers);
  metadata["layer_ids"] = nlohmann::json(report.trace.layer_ids).dump();
  metadata["query_heads"] = fmt::format("{}", report.trace.query_heads);
  metadata["sliding_window"] = nlohmann::json(report.trace.sliding_window).dump();
  metadata["kv_bytes"] = fmt::format("{}", report.accounting.kv_bytes);
  metadata["layout"] = report.accounting.layout;
  metadata["prefill"] = report.accounting.layerwise ? "layerwise" : "whole";
  metadata["runs"] = fmt::format("{}", report.runs.size());
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const RunResult& run = report.runs[r];
    metadata[name_of(r, "policy")] = valid_utf8(run.spec);
    metadata[name_of(r, "label")] = valid_utf8(run.label);
    metadata[name_of(r, "class")] = valid_utf8(run.klass);
    metadata[name_of(r, "bound")] = run.bound ? "true" : "false";
    if (evict_at(r) != evict_at(0))
      metadata[name_of(r, "evict_at")] = fmt::format("{}", evict_at(r));
    nlohmann::json names = nlohmann::json::array();
    for (const Representation& held : run.ledger.representations) {
      names.push_back({{"name", valid_utf8(held.name)},
                       {"device_bytes", held.device_bytes},
                       {"host_bytes", held.host_bytes},
                       {"entries", held.entries}});
    }
    metadata[name_of(r, "representations")] = names.dump();
    metadata[name_of(r, "charge")] =
        nlohmann::json{{"entry", run.ledger.charge.entry}, {"once", run.ledger.charge.once}}.dump();
  }
  return metadata;
}

template <class T>
void write(SafetensorsWriter& writer, const std::string& name, const std::vector<T>& values) {
  writer.write(name, 0, std::as_bytes(std::span(values)));
}

template <class T>
constexpr Dtype dtype_of() {
  if (std::is_same_v<T, float>) return Dtype::f32;
  if (std::is_same_v<T, std::int32_t>) return Dtype::i32;
  if (std::is_same_v<T, std::uint32_t>) return Dtype::u32;
  return std::is_same_v<T, std::uint8_t> ? Dtype::u8 : Dtype::i64;
}

// Calls visit(name, values, shape) for every tensor that a ledger holds, but its changes.
template <class Visit>
void for_each_tensor(const Ledger& ledger, std::size_t r, const Visit& visit) {
  const auto show = [&](const char* what, const auto& values,
                        const std::vector<std::int64_t>& shape) {
    if (!values.empty()) visit(name_of(r, what), values, shape);
  };
  const std::int64_t tokens = ledger.plan.tokens;
  const auto samples = static_cast<std::int64_t>(ledger.read_rows.size());
  const std::vector<std::int64_t> entries{ledger.layers, ledger.heads, tokens};
  show("passes", ledger.plan.ends, {static_cast<std::int64_t>(ledger.plan.ends.size())});
  show("death", ledger.death, entries);
  show("score", ledger.score, entries);
  show("rank", ledger.rank, entries);
  show("state", ledger.state, {tokens});
  show("selected", ledger.selected, {tokens});
  show("read_rows", ledger.read_rows, {samples});
  show("reads", ledger.reads,
       {ledger.layers, ledger.heads, samples, static_cast<std::int64_t>(ledger.reads_bytes())});
}

// ---- Levels -------------------------------------------------------------------------------------

// The next level: min or max of every 64 points. NaN, which compares false, never wins over a
// number.
template <class T>
std::vector<T> folded(const std::vector<T>& below, bool largest) {
  std::vector<T> result;
  for (std::size_t begin = 0; begin < below.size(); begin += kFold) {
    const std::size_t end = std::min(below.size(), begin + kFold);
    T extreme = below[begin];
    for (std::size_t i = begin + 1; i < end; ++i) {
      const bool better = largest ? below[i] > extreme : below[i] < extreme;
      if constexpr (std::is_floating_point_v<T>) {
        if (std::isnan(extreme)) extreme = below[i];
      }
      if (better) extreme = below[i];
    }
    result.push_back(extreme);
  }
  return result;
}

void declare_levels(const std::string& name, Dtype dtype, std::int64_t points, Entries& entries) {
  entries.push_back({name, dtype, {points}});
  for (int level = 1; points > kFold; ++level) {
    points = (points + kFold - 1) / kFold;
    entries.push_back({fmt::format("{}.min.{}", name, level), dtype, {points}});
    entries.push_back({fmt::format("{}.max.{}", name, level), dtype, {points}});
  }
}

template <class T>
void write_levels(SafetensorsWriter& writer, const std::string& name,
                  const std::vector<T>& series) {
  write(writer, name, series);
  std::vector<T> low = series;
  std::vector<T> high = series;
  for (int level = 1; low.size() > kFold; ++level) {
    low = folded(low, false);
    high = folded(high, true);
    write(writer, fmt::format("{}.min.{}", name, level), low);
    write(writer, fmt::format("{}.max.{}", name, level), high);
  }
}

// Calls visit(name, series) for every series of a run.
template <class Visit>
void for_each_series(const RunResult& run, std::size_t r, const Visit& visit) {
  const Timeline& line = run.metrics.timeline;
  visit(name_of(r, "entries"), line.resident_entries);
  visit(name_of(r, "bytes"), line.resident_bytes);
  visit(name_of(r, "overhead"), line.overhead_bytes);
  visit(name_of(r, "host"), line.host_bytes);
  visit(name_of(r, "active"), line.active_entries);
  if (run.fidelity) visit(name_of(r, "mass"), run.fidelity->row_mass);
}

}  // namespace

ChangePoints change_points(std::span<const std::uint32_t> deaths) {
  ChangePoints points;
  const std::size_t tokens = deaths.size();
  std::vector<std::int64_t> gone(tokens + 1, 0);
  for (const std::uint32_t death : deaths) ++gone[death];
  std::int64_t resident = 0;
  for (std::size_t row = 0; row < tokens; ++row) {
    // One entry is born in every row, so that slopes differ where numbers of deaths do.
    resident += 1 - gone[row];
    if (row == 0 || row + 1 == tokens || gone[row + 1] != gone[row]) {
      points.rows.push_back(static_cast<std::int64_t>(row));
      points.entries.push_back(resident);
    }
  }
  return points;
}

void write_lifetimes(const RunReport& report, const std::filesystem::path& path) {
  constexpr std::int64_t kFields = 5;
  Entries entries;
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const Ledger& ledger = report.runs[r].ledger;
    for_each_tensor(ledger, r,
                    [&]<class T>(const std::string& name, const std::vector<T>&,
                                 const std::vector<std::int64_t>& shape) {
                      entries.push_back({name, dtype_of<T>(), shape});
                    });
    std::int64_t changes = 0;
    for (const auto& of_layer : ledger.changes)
      changes += static_cast<std::int64_t>(of_layer.size());
    if (changes > 0) entries.push_back({name_of(r, "changes"), Dtype::i64, {changes, kFields}});
  }
  // Wide elements first: every tensor lies aligned in a mapped file.
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return dtype_bytes(a.dtype) > dtype_bytes(b.dtype);
  });
  SafetensorsWriter writer(path, metadata_of(report, "kvspan.lifetimes"), entries);
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const Ledger& ledger = report.runs[r].ledger;
    for_each_tensor(
        ledger, r,
        [&]<class T>(const std::string& name, const std::vector<T>& values,
                     const std::vector<std::int64_t>&) { write(writer, name, values); });
    std::int64_t at = 0;
    for (std::size_t layer = 0; layer < ledger.changes.size(); ++layer) {
      std::vector<std::int64_t> fields;
      for (const Change& change : ledger.changes[layer]) {
        fields.insert(fields.end(), {static_cast<std::int64_t>(layer), change.row, change.head,
                                     change.token, change.representation});
      }
      if (fields.empty()) continue;
      const auto bytes = std::as_bytes(std::span(fields));
      writer.write(name_of(r, "changes"), at, bytes);
      at += static_cast<std::int64_t>(bytes.size());
    }
  }
  writer.finish();
}

void write_timeline(const RunReport& report, const std::filesystem::path& path) {
  Entries entries;
  std::vector<std::vector<std::int64_t>> offsets(report.runs.size());
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const RunResult& run = report.runs[r];
    for_each_series(run, r, [&]<class T>(const std::string& name, const std::vector<T>& series) {
      declare_levels(name, dtype_of<T>(), static_cast<std::int64_t>(series.size()), entries);
    });
    // The points are found twice, once to be counted: together they may be as large as the ledger.
    offsets[r] = {0};
    for (int layer = 0; layer < run.ledger.layers; ++layer) {
      for (int head = 0; head < run.ledger.heads; ++head) {
        const ChangePoints points = change_points(run.ledger.deaths(layer, head));
        offsets[r].push_back(offsets[r].back() + static_cast<std::int64_t>(points.rows.size()));
      }
    }
    entries.push_back({name_of(r, "change_rows"), Dtype::i64, {offsets[r].back()}});
    entries.push_back({name_of(r, "change_entries"), Dtype::i64, {offsets[r].back()}});
    entries.push_back(
        {name_of(r, "change_offsets"), Dtype::i64, {static_cast<std::int64_t>(offsets[r].size())}});
  }
  SafetensorsWriter writer(path, metadata_of(report, "kvspan.timeline"), entries);
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const RunResult& run = report.runs[r];
    for_each_series(run, r, [&]<class T>(const std::string& name, const std::vector<T>& series) {
      write_levels(writer, name, series);
    });
    write(writer, name_of(r, "change_offsets"), offsets[r]);
    for (int layer = 0; layer < run.ledger.layers; ++layer) {
      for (int head = 0; head < run.ledger.heads; ++head) {
        const ChangePoints points = change_points(run.ledger.deaths(layer, head));
        const std::int64_t index = std::int64_t{layer} * run.ledger.heads + head;
        const std::int64_t at =
            offsets[r][static_cast<std::size_t>(index)] * dtype_bytes(Dtype::i64);
        writer.write(name_of(r, "change_rows"), at, std::as_bytes(std::span(points.rows)));
        writer.write(name_of(r, "change_entries"), at, std::as_bytes(std::span(points.entries)));
      }
    }
  }
  writer.finish();
}

}  // namespace kvspan
