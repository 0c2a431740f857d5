// SPDX-License-Identifier: Apache-2.0
#include "gui/model/result.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/numbers.h"
#include "gui/model/result_node.h"
#include "gui/model/result_parts.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_reader.h"
#include "sim/report/listing.h"

namespace kvspan::gui {

using nlohmann::json;

namespace {

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
      read_json(path, parse_json(path), *result);
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

std::optional<double> retained_mass_upper(const Run& run) {
  const bool decode = figure(run, "fidelity.decode.retained_mass.mean").has_value();
  return figure(run, decode ? "fidelity.decode.retained_mass.upper.mean"
                            : "fidelity.all.retained_mass.upper.mean");
}

QString retained_text(const Run& run) {
  QString least = percent_text(retained_mass(run), 2);
  const auto upper = retained_mass_upper(run);
  const QString most = percent_text(upper, 2);
  if (!upper || most == least) return least;
  return QString("%1 to %2").arg(least.chopped(2), most);
}

std::string label_of(const Run& run) {
  return label_with_amount(run.label, chunked_amount(run.policy));
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
