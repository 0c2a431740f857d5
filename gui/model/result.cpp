// SPDX-License-Identifier: Apache-2.0
#include "gui/model/result.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <functional>
#include <limits>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/report/lifetimes_file.h"

namespace kvspan::gui {

using nlohmann::json;

namespace {

constexpr int kSchemaVersion = 1;
constexpr std::int64_t kMostTokens = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostEntryBytes = 1 << 30;

// ---- Reading JSON with the path of what is missing ----------------------------------------------

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw TraceError(fmt::format("{}: {}", one_line(path.string()), what));
}

// A value somewhere in a file, and the words to complain with.
class Node {
 public:
  Node(const std::filesystem::path& file, const json& value, std::string where)
      : file_(&file), value_(&value), where_(std::move(where)) {}

  [[nodiscard]] Node operator[](const char* key) const {
    if (!value_->is_object() || !value_->contains(key)) wrong(fmt::format("'{}' is missing", key));
    return {*file_, (*value_)[key], where_.empty() ? key : fmt::format("{}.{}", where_, key)};
  }
  // REQUIRES: i < size().
  [[nodiscard]] Node item(std::size_t i) const {
    return {*file_, (*value_)[i], fmt::format("{}.{}", where_, i)};
  }
  [[nodiscard]] std::size_t size() const {
    if (!value_->is_array()) wrong("found " + kind() + ", expected a list");
    return value_->size();
  }
  [[nodiscard]] std::string text() const {
    if (!value_->is_string()) wrong("found " + kind() + ", expected text");
    return value_->get<std::string>();
  }
  [[nodiscard]] std::int64_t integer(std::int64_t low, std::int64_t high) const {
    if (!value_->is_number_integer()) wrong("found " + kind() + ", expected a whole number");
    const bool huge = value_->is_number_unsigned() &&
                      value_->get<std::uint64_t>() > static_cast<std::uint64_t>(high);
    if (huge || value_->get<std::int64_t>() < low || value_->get<std::int64_t>() > high) {
      wrong(fmt::format("found {}, expected {} to {}", value_->dump(), low, high));
    }
    return value_->get<std::int64_t>();
  }
  // NaN for null.
  [[nodiscard]] double number_or_null() const {
    if (value_->is_null()) return std::numeric_limits<double>::quiet_NaN();
    if (!value_->is_number()) wrong("found " + kind() + ", expected a number or null");
    return value_->get<double>();
  }
  // Of item i; its path is only put together to complain: a timeline has millions of them.
  [[nodiscard]] double number_or_null(std::size_t i) const {
    const json& found = (*value_)[i];
    return found.is_number() ? found.get<double>() : item(i).number_or_null();
  }
  [[nodiscard]] bool truth() const {
    if (!value_->is_boolean()) wrong("found " + kind() + ", expected true or false");
    return value_->get<bool>();
  }
  [[nodiscard]] const json& value() const { return *value_; }
  [[noreturn]] void wrong(const std::string& what) const {
    fail(*file_, where_.empty() ? what : fmt::format("{}: {}", where_, what));
  }

 private:
  [[nodiscard]] std::string kind() const { return value_->type_name(); }
  const std::filesystem::path* file_;
  const json* value_;
  std::string where_;
};

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

// ---- Result JSON --------------------------------------------------------------------------------

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

void read_timeline(const Node& timeline, RowIndex tokens, Run& run) {
  const Node rows = timeline["row"];
  std::vector<RowIndex> at;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    at.push_back(rows.item(i).integer(at.empty() ? 0 : at.back() + 1, tokens - 1));
  }
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
  read_timeline(node["timeline"], trace.tokens, run);
  return run;
}

void read_json(const std::filesystem::path& path, Result& result) {
  const auto whole = std::make_shared<json>(parse_json(path));
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

// ---- Timeline files -----------------------------------------------------------------------------

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

// The series and polygons of one run.
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
  trace.tokens = metadata_integer(file, path, "tokens", 1, kMostTokens);
  trace.prompt = metadata_integer(file, path, "prompt_tokens", 1, trace.tokens);
  trace.model_layers = static_cast<int>(metadata_integer(file, path, "model_layers", 1, 1 << 20));
  const json ids = metadata_json(file, path, "layer_ids");
  const Node list(path, ids, "layer_ids");
  for (std::size_t l = 0; l < list.size(); ++l) {
    trace.layer_ids.push_back(static_cast<int>(list.item(l).integer(0, trace.model_layers - 1)));
  }
  if (trace.layer_ids.empty()) list.wrong("found no layer");
  result.chunk = metadata_integer(file, path, "chunk", 0, kMostTokens);
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

// All but the series.
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

// The series and polygons of run r. Memory: one layer, and what is kept: the points where slopes
// change.
void read_lives(const LifetimesFile& file, int r, Run& run) {
  using Rows = std::vector<std::int64_t>;
  const auto add = [](Rows& sum, const Rows& part) {
    std::transform(part.begin(), part.end(), sum.begin(), sum.begin(), std::plus<>());
  };
  const auto tokens = static_cast<std::size_t>(file.tokens());
  Timeline sum{Rows(tokens), Rows(tokens), Rows(tokens), Rows(tokens), Rows(tokens)};
  for (int layer = 0; layer < file.layers(); ++layer) {
    const Ledger ledger = file.ledger_of_layer(r, layer);
    const Timeline part = compute_metrics(ledger, file.accounting()).timeline;
    for (Rows Timeline::*rows :
         {&Timeline::resident_entries, &Timeline::resident_bytes, &Timeline::overhead_bytes,
          &Timeline::host_bytes, &Timeline::active_entries}) {
      add(sum.*rows, part.*rows);
    }
    for (int head = 0; head < ledger.heads; ++head) {
      run.heads_over_time.push_back(Polygon::of(change_points(ledger.deaths(0, head))));
    }
  }
  Rows model = file.state(r);
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

// ---- Companions ---------------------------------------------------------------------------------

// Errors: TraceError when a file that begins with `head` is of another trace or of other runs.
void check_belongs(const Result& head, const std::filesystem::path& path, const Result& result) {
  const auto policies = [](const Result& r) {
    std::vector<std::string> list;
    for (const Run& run : r.runs) list.push_back(run.policy);
    return list;
  };
  if (head.trace.sha256 != result.trace.sha256 || head.trace.tokens != result.trace.tokens ||
      head.trace.layer_ids != result.trace.layer_ids || policies(head) != policies(result)) {
    fail(path, "is of another run than the result that names it");
  }
}

template <class Attach>
void attach(const char* which, Result& result, const Attach& attach_file) {
  const json& files = result.json->value("files", json());
  const json named = files.is_object() ? files.value(which, json()) : json();
  if (!named.is_string()) return;
  const std::filesystem::path path = companion_path(result.path, named.get<std::string>());
  try {
    attach_file(path);
  } catch (const Error& error) {
    result.warnings.push_back(fmt::format("without its {} file: {}", which, error.what()));
  }
}

void attach_timeline(const std::filesystem::path& path, Result& result) {
  const auto file = std::make_shared<const TensorSet>(TensorSet::open(path));
  Result head;
  read_head(*file, path, head);
  check_belongs(head, path, result);
  std::vector<Run> runs = result.runs;
  for (std::size_t r = 0; r < runs.size(); ++r) read_levels(file, path, r, result.trace, runs[r]);
  result.runs = std::move(runs);
}

void attach_lifetimes(const std::filesystem::path& path, Result& result) {
  const auto file = std::make_shared<const LifetimesFile>(LifetimesFile::open(path));
  Result head;
  read_head(*file, head);
  check_belongs(head, path, result);
  for (std::size_t r = 0; r < result.runs.size(); ++r) {
    if (head.runs[r].heads == result.runs[r].heads) continue;
    fail(path, fmt::format("holds {} heads of {}, the result that names it {}", head.runs[r].heads,
                           result.runs[r].policy, result.runs[r].heads));
  }
  for (std::size_t r = 0; r < result.runs.size(); ++r) {
    result.runs[r].newborn_bytes = head.runs[r].newborn_bytes;
    result.runs[r].one_representation = head.runs[r].one_representation;
  }
  result.lifetimes = file;
}

std::string format_of(const TensorSet& file) {
  const auto found = file.metadata().find("format");
  return found == file.metadata().end() ? "" : found->second;
}

bool begins_like_json(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) fail(path, "is a folder, expected a file");
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(path, "cannot be read");
  in >> std::ws;
  return in.peek() == '{' || in.peek() == '[';
}

}  // namespace

std::filesystem::path companion_path(const std::filesystem::path& result,
                                     const std::string& named) {
  std::error_code ignored;
  const std::filesystem::path beside =
      result.parent_path() / std::filesystem::path(named).filename();
  return std::filesystem::exists(beside, ignored) ? beside : std::filesystem::path(named);
}

FileKind kind_of(const std::filesystem::path& path) {
  // A sharded trace is opened by its index, which is JSON.
  if (path.string().ends_with(".safetensors.index.json")) return FileKind::trace;
  if (begins_like_json(path)) return FileKind::result;
  const std::string format = format_of(TensorSet::open(path));
  if (format == "kvspan.timeline") return FileKind::timeline;
  if (format == "kvspan.lifetimes") return FileKind::lifetimes;
  return FileKind::trace;
}

ResultPtr open_result(const std::filesystem::path& path) {
  auto result = std::make_shared<Result>();
  result->path = path;
  switch (kind_of(path)) {
    case FileKind::result:
      read_json(path, *result);
      attach("timeline", *result, [&](const auto& file) { attach_timeline(file, *result); });
      attach("lifetimes", *result, [&](const auto& file) { attach_lifetimes(file, *result); });
      break;
    case FileKind::timeline: {
      const auto file = std::make_shared<const TensorSet>(TensorSet::open(path));
      read_head(*file, path, *result);
      for (std::size_t r = 0; r < result->runs.size(); ++r) {
        read_levels(file, path, r, result->trace, result->runs[r]);
      }
      break;
    }
    case FileKind::lifetimes: {
      const auto file = std::make_shared<const LifetimesFile>(LifetimesFile::open(path));
      read_head(*file, *result);
      for (std::size_t r = 0; r < result->runs.size(); ++r) {
        read_lives(*file, static_cast<int>(r), result->runs[r]);
      }
      result->lifetimes = file;
      break;
    }
    case FileKind::trace:
      fail(path, "is a trace, not a result");
  }
  return result;
}

std::optional<double> figure(const Run& run, std::string_view path) {
  const json* value = run.figures;
  while (value != nullptr && !path.empty()) {
    const auto dot = path.find('.');
    const std::string key(path.substr(0, dot));
    path = dot == path.npos ? std::string_view() : path.substr(dot + 1);
    if (value->is_array()) {
      std::size_t i = 0;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), i);
      const bool there =
          error == std::errc() && end == key.data() + key.size() && i < value->size();
      value = there ? &(*value)[i] : nullptr;
    } else {
      value = value->is_object() && value->contains(key) ? &(*value)[key] : nullptr;
    }
  }
  if (value == nullptr || !value->is_number()) return std::nullopt;
  return value->get<double>();
}

std::optional<double> retained_mass(const Run& run) {
  const auto decode = figure(run, "fidelity.decode.retained_mass.mean");
  return decode ? decode : figure(run, "fidelity.all.retained_mass.mean");
}

std::vector<RowIndex> pass_ends(const Result& result, RowIndex begin, RowIndex end, double least) {
  std::vector<RowIndex> ends;
  const RowIndex chunk = result.chunk;
  const RowIndex prompt = result.trace.prompt;
  if (chunk > 0 && static_cast<double>(chunk) >= least) {
    const RowIndex first = std::max<RowIndex>(1, (begin + chunk - 1) / chunk) * chunk;
    for (RowIndex at = first; at < prompt && at <= end; at += chunk) ends.push_back(at);
  }
  if (begin <= prompt && prompt <= end) ends.push_back(prompt);
  return ends;
}

double full_entries(const Result& result, const Run& run) {
  return static_cast<double>(result.trace.tokens) * result.trace.layers() * run.heads;
}

}  // namespace kvspan::gui
