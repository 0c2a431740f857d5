// SPDX-License-Identifier: Apache-2.0
#include <fstream>
#include <limits>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/result_node.h"
#include "gui/model/result_parts.h"
#include "sim/base/text.h"

namespace kvspan::gui {

using nlohmann::json;

namespace {

constexpr int kSchemaVersion = 1;
constexpr std::int64_t kMostTokens = std::numeric_limits<std::int32_t>::max();

void read_timeline(const Node& timeline, RowIndex tokens, Run& run) {
  const std::vector<RowIndex> at = json_rows(timeline, tokens);
  if (at.empty()) return;
  run.entries = json_series(timeline, "resident_entries", at, tokens);
  run.bytes = json_series(timeline, "resident_bytes", at, tokens);
  run.overhead = json_series(timeline, "overhead_bytes", at, tokens);
  run.active = json_series(timeline, "active_entries", at, tokens);
  run.mass = json_series(timeline, "retained_mass", at, tokens);
}

Run read_run(const Node& node, const TraceInfo& trace) {
  Run run;
  run.figures = &node.value();
  run.policy = one_line(node["policy"].text());
  run.label = node.value().contains("label") ? one_line(node["label"].text()) : run.policy;
  run.klass = one_line(node["class"].text());
  run.bound = node["bound"].truth();
  const Node notes = node["notes"];
  for (std::size_t i = 0; i < notes.size(); ++i)
    run.notes.push_back(one_line(notes.item(i).text()));
  for (const char* number : {"footprint", "peak_kv"}) (void)node[number].number_or_null();
  const Node heads = node["per_head"]["footprint"];
  if (heads.size() != static_cast<std::size_t>(trace.layers()) ||
      node["per_layer"].size() != heads.size()) {
    heads.wrong(
        fmt::format("found {} layers, expected the trace's {}", heads.size(), trace.layers()));
  }
  for (std::size_t l = 0; l < heads.size(); ++l) {
    run.heads = static_cast<int>(heads.item(l).size());
    if (heads.item(l).size() != heads.item(0).size() || run.heads == 0) {
      heads.wrong(fmt::format("layer {} has {} heads, the first one {}", l, heads.item(l).size(),
                              heads.item(0).size()));
    }
  }
  if (node.value().contains("timeline")) read_timeline(node["timeline"], trace.tokens, run);
  return run;
}

}  // namespace

std::vector<RowIndex> json_rows(const Node& timeline, RowIndex tokens) {
  const Node rows = timeline["row"];
  std::vector<RowIndex> at;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    at.push_back(rows.item(i).integer(at.empty() ? 0 : at.back() + 1, tokens - 1));
  }
  return at;
}

SeriesPtr json_series(const Node& timeline, const char* name, const std::vector<RowIndex>& rows,
                      RowIndex tokens) {
  const Node values = timeline[name];
  if (values.size() != rows.size()) {
    values.wrong(fmt::format("found {} values, expected one for each of {} rows", values.size(),
                             rows.size()));
  }
  std::vector<double> read;
  bool any = false;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    read.push_back(values.number_or_null(i));
    any = any || read.back() == read.back();
  }
  return any ? series_of_steps(rows, std::move(read), tokens) : nullptr;
}

// The path in a message that already names it is one too many.
json parse_json(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(path, "cannot be read");
  try {
    return json::parse(in);
  } catch (const json::parse_error& error) {
    std::error_code ignored;
    const auto size = std::filesystem::file_size(path, ignored);
    if (error.byte > size) fail(path, fmt::format("breaks off after {} bytes", size));
    fail(path, fmt::format("is not JSON: at byte {} of {}", error.byte, size));
  } catch (const json::out_of_range&) {
    fail(path, "holds a number that is out of range");
  }
}

void read_json(const std::filesystem::path& path, json document, Result& result) {
  const auto whole = std::make_shared<json>(std::move(document));
  result.json = whole;
  const Node root(path, *whole, "");
  if (!result.json->is_object() || !result.json->contains("schema_version")) {
    fail(path, "is JSON, but not a result of 'kvspan run --out': it has no schema_version");
  }
  const auto version = root["schema_version"].integer(0, 1'000'000);
  if (version != kSchemaVersion) {
    fail(path, fmt::format("is a result of schema_version {}, this program reads {}{}", version,
                           kSchemaVersion,
                           version > kSchemaVersion ? "; a newer kvspan-viewer reads it" : ""));
  }
  const Node trace = root["trace"];
  TraceInfo& info = result.trace;
  info.path = trace["path"].text();
  info.sha256 = trace["sha256"].text();
  info.model = one_line(trace["model"].text());
  info.model_layers = static_cast<int>(trace["model_layers"].integer(1, 1 << 20));
  const auto layers = trace["layers"].integer(1, info.model_layers);
  info.query_heads = static_cast<int>(trace["query_heads"].integer(1, 1 << 20));
  info.kv_heads = static_cast<int>(trace["kv_heads"].integer(1, info.query_heads));
  info.head_dim = static_cast<int>(trace["head_dim"].integer(1, 1 << 20));
  info.tokens = trace["tokens"].integer(1, kMostTokens);
  info.prompt = trace["prompt_tokens"].integer(1, info.tokens);
  result.chunk = root["chunk"].integer(0, kMostTokens);
  const Node accounting = root["accounting"];
  result.kv_bytes = accounting["kv_bytes"].integer(1, 16);
  result.layout = one_line(accounting["layout"].text());
  result.prefill = one_line(accounting["prefill"].text());
  const Node runs = root["runs"];
  if (runs.size() == 0) fail(path, "holds no runs");
  if (is_replay(*whole)) return read_pools(root, result);
  const Node per_layer = runs.item(0)["per_layer"];
  for (std::size_t l = 0; l < per_layer.size(); ++l) {
    info.layer_ids.push_back(static_cast<int>(per_layer.item(l)["layer"].integer(0, 1 << 20)));
  }
  if (info.layers() != layers) {
    per_layer.wrong(fmt::format("found {} layers, the trace has {}", info.layers(), layers));
  }
  for (std::size_t r = 0; r < runs.size(); ++r) {
    result.runs.push_back(read_run(runs.item(r), info));
    (*whole)["runs"][r].erase("timeline");  // the series have it
  }
}

}  // namespace kvspan::gui
