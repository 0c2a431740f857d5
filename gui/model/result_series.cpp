// SPDX-License-Identifier: Apache-2.0
// Timeline and lifetimes files.
#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <limits>
#include <span>
#include <system_error>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/result_node.h"
#include "gui/model/result_parts.h"
#include "sim/base/text.h"
#include "sim/report/lifetimes_reader.h"
#include "sim/report/timeline_writer.h"

namespace kvspan::gui {

using nlohmann::json;

namespace {

constexpr std::int64_t kMostRows = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostEntryBytes = 1 << 30;

const std::string& metadata_text(const TensorSet& file, const std::filesystem::path& path,
                                 const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) fail(path, fmt::format("metadata '{}' is missing", key));
  return found->second;
}

std::int64_t metadata_integer(const TensorSet& file, const std::filesystem::path& path,
                              const std::string& key, std::int64_t low, std::int64_t high) {
  const std::string& text = metadata_text(file, path, key);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    fail(path,
         fmt::format("metadata '{}' is '{}', expected {} to {}", key, one_line(text), low, high));
  }
  return value;
}

json metadata_json(const TensorSet& file, const std::filesystem::path& path,
                   const std::string& key) {
  const std::string& text = metadata_text(file, path, key);
  json value = json::parse(text, nullptr, false);
  if (value.is_discarded()) fail(path, fmt::format("metadata '{}' is not JSON", key));
  return value;
}

// What timeline and lifetimes files say alike.
void check_version(const TensorSet& file, const std::filesystem::path& path) {
  const std::string& version = metadata_text(file, path, "version");
  if (version != "1") {
    fail(path, fmt::format("is of version '{}', this program reads '1'", one_line(version)));
  }
}

}  // namespace

// ---- Timeline files -----------------------------------------------------------------------------

void read_levels(const std::shared_ptr<const TensorSet>& file, const std::filesystem::path& path,
                 std::size_t r, const TraceInfo& trace, Run& run) {
  const auto name = [&](const char* what) { return fmt::format("runs.{}.{}", r, what); };
  run.entries = series_of_levels(file, name("entries"), trace.tokens);
  run.bytes = series_of_levels(file, name("bytes"), trace.tokens);
  run.overhead = series_of_levels(file, name("overhead"), trace.tokens);
  run.host = series_of_levels(file, name("host"), trace.tokens);
  run.active = series_of_levels(file, name("active"), trace.tokens);
  if (file->find(name("mass")) != nullptr) {
    run.mass = series_of_levels(file, name("mass"), trace.tokens);
  }
  const auto column = [&](const char* what) -> const TensorView& {
    const TensorView* tensor = file->find(name(what));
    if (tensor == nullptr || tensor->dtype != Dtype::i64 || tensor->shape.size() != 1) {
      fail(path, fmt::format("tensor '{}' is missing, or not a list of I64", name(what)));
    }
    return *tensor;
  };
  const TensorView& rows = column("change_rows");
  const TensorView& entries = column("change_entries");
  const TensorView& offsets = column("change_offsets");
  const std::int64_t heads = (offsets.elements() - 1) / trace.layers();
  if (heads < 1 || offsets.elements() != heads * trace.layers() + 1 ||
      rows.elements() != entries.elements()) {
    fail(path, fmt::format("tensor '{}' has {} values, expected heads x {} layers + 1",
                           name("change_offsets"), offsets.elements(), trace.layers()));
  }
  run.heads = static_cast<int>(heads);
  std::int64_t from = 0;
  for (std::int64_t i = 0; i <= heads * trace.layers(); ++i) {
    std::int64_t to = 0;
    std::copy_n(offsets.bytes.begin() + i * 8, 8,
                std::as_writable_bytes(std::span(&to, 1)).begin());
    if (to < from || to > rows.elements() || (i == 0 && to != 0)) {
      fail(path, fmt::format("tensor '{}' does not ascend from 0 to {}", name("change_offsets"),
                             rows.elements()));
    }
    if (i > 0) {
      const auto part = [&](const TensorView& tensor) {
        return tensor.bytes.subspan(static_cast<std::size_t>(from) * 8,
                                    static_cast<std::size_t>(to - from) * 8);
      };
      run.heads_over_time.emplace_back(file, part(rows), part(entries));
    }
    from = to;
  }
  const json held = metadata_json(*file, path, name("representations"));
  const Node list(path, held, name("representations"));
  if (list.size() == 0) list.wrong("found no representation, expected how entries are born");
  run.newborn_bytes = list.item(0)["device_bytes"].integer(0, kMostEntryBytes);
  run.one_representation = held.size() == 1;
}

void read_head(const TensorSet& file, const std::filesystem::path& path, Result& result) {
  check_version(file, path);
  TraceInfo& trace = result.trace;
  trace.path = metadata_text(file, path, "trace.path");
  trace.sha256 = metadata_text(file, path, "trace.sha256");
  trace.tokens = metadata_integer(file, path, "tokens", 1, kMostRows);
  trace.prompt = metadata_integer(file, path, "prompt_tokens", 1, trace.tokens);
  trace.model_layers = static_cast<int>(metadata_integer(file, path, "model_layers", 1, 1 << 20));
  const json ids = metadata_json(file, path, "layer_ids");
  const Node list(path, ids, "layer_ids");
  for (std::size_t l = 0; l < list.size(); ++l) {
    trace.layer_ids.push_back(static_cast<int>(list.item(l).integer(0, trace.model_layers - 1)));
  }
  if (trace.layer_ids.empty()) list.wrong("found no layer");
  result.chunk = metadata_integer(file, path, "chunk", 0, kMostRows);
  result.kv_bytes = metadata_integer(file, path, "kv_bytes", 1, 16);
  result.layout = metadata_text(file, path, "layout");
  result.prefill = metadata_text(file, path, "prefill");
  const auto runs = metadata_integer(file, path, "runs", 1, 1 << 20);
  for (std::int64_t r = 0; r < runs; ++r) {
    Run& run = result.runs.emplace_back();
    run.policy = one_line(metadata_text(file, path, fmt::format("runs.{}.policy", r)));
    run.label = one_line(metadata_text(file, path, fmt::format("runs.{}.label", r)));
    run.klass = one_line(metadata_text(file, path, fmt::format("runs.{}.class", r)));
    run.bound = metadata_text(file, path, fmt::format("runs.{}.bound", r)) == "true";
  }
}

// ---- Lifetimes files ----------------------------------------------------------------------------

void read_head(const LifetimesFile& file, Result& result) {
  TraceInfo& trace = result.trace;
  trace.path = file.trace_path();
  trace.sha256 = file.trace_sha256();
  trace.tokens = file.tokens();
  trace.prompt = file.prompt();
  trace.model_layers = file.model_layers();
  trace.layer_ids = file.layer_ids();
  trace.query_heads = file.query_heads();
  result.chunk = file.chunk();
  result.kv_bytes = file.accounting().kv_bytes;
  result.layout = file.accounting().layout;
  result.prefill = file.accounting().layerwise ? "layerwise" : "whole";
  for (const LifetimesFile::Run& of : file.runs()) {
    Run& run = result.runs.emplace_back();
    run.policy = one_line(of.policy);
    run.label = one_line(of.label);
    run.klass = one_line(of.klass);
    run.bound = of.bound;
    run.heads = of.heads;
    run.newborn_bytes = of.representations[0].device_bytes;
    run.one_representation = of.representations.size() == 1;
  }
}

void read_lives(const LifetimesFile& file, int r, Run& run) {
  using Counts = std::vector<std::int64_t>;
  const auto add = [](Counts& sum, const Counts& part) {
    std::transform(part.begin(), part.end(), sum.begin(), sum.begin(), std::plus<>());
  };
  const auto tokens = static_cast<std::size_t>(file.tokens());
  Timeline sum{Counts(tokens), Counts(tokens), Counts(tokens), Counts(tokens), Counts(tokens)};
  for (int layer = 0; layer < file.layers(); ++layer) {
    const Ledger ledger = file.ledger_of_layer(r, layer);
    const Timeline part = compute_metrics(ledger, file.accounting()).timeline;
    for (Counts Timeline::*rows :
         {&Timeline::resident_entries, &Timeline::resident_bytes, &Timeline::overhead_bytes,
          &Timeline::host_bytes, &Timeline::active_entries}) {
      add(sum.*rows, part.*rows);
    }
    for (int head = 0; head < ledger.heads; ++head) {
      run.heads_over_time.push_back(Polygon::of(change_points(ledger.deaths(0, head))));
    }
  }
  Counts model = file.state(r);
  model.resize(tokens);
  for (std::int64_t& bytes : model) bytes += file.runs()[static_cast<std::size_t>(r)].charge.once;
  add(sum.overhead_bytes, model);
  add(sum.resident_bytes, model);
  if (file.runs()[static_cast<std::size_t>(r)].has_selected) sum.active_entries = file.selected(r);
  run.entries = series_of_values(sum.resident_entries);
  run.bytes = series_of_values(sum.resident_bytes);
  run.overhead = series_of_values(sum.overhead_bytes);
  run.host = series_of_values(sum.host_bytes);
  run.active = series_of_values(sum.active_entries);
}

}  // namespace kvspan::gui
