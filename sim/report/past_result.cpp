// SPDX-License-Identifier: Apache-2.0
#include "sim/report/past_result.h"

#include <exception>
#include <limits>
#include <stdexcept>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"

namespace kvspan {
namespace {

using nlohmann::json;

constexpr JsonLimits kLimits{std::size_t{1} << 30U, 12};

double retained_of(const json& fidelity) {
  if (!fidelity.is_null()) {
    for (const char* phase : {"decode", "all"}) {
      const json& figures = fidelity.at(phase);
      if (!figures.is_null()) return figures.at("retained_mass").at("mean");
    }
  }
  return std::numeric_limits<double>::quiet_NaN();
}

PastResult result_of(const json& root) {
  PastResult out;
  const json& trace = root.at("trace");
  out.trace_path = trace.at("path");
  out.trace_sha256 = trace.at("sha256");
  out.prompt = trace.at("prompt_tokens");
  out.chunk = root.at("chunk");
  out.evict_point = root.at("evict_at").is_null() ? 0 : root.at("evict_at").get<RowIndex>();
  out.kv_bytes = root.at("accounting").at("kv_bytes");
  for (const json& run : root.at("runs")) {
    out.runs.push_back(
        {run.at("policy"), run.at("label"), run.at("notes"), retained_of(run.at("fidelity"))});
  }
  if (out.runs.empty()) throw std::invalid_argument("found no run in it");
  return out;
}

const json& chosen_document(const json& root, std::size_t place) {
  if (!root.is_object()) throw std::invalid_argument("found no object");
  if (!root.contains("results")) {
    if (place > 1)
      throw std::invalid_argument(
          fmt::format("found 1 result, expected a place up to 1: {}", place));
    return root;
  }
  const json& all = root.at("results");
  if (place == 0 && all.size() > 1) {
    throw std::invalid_argument(
        fmt::format("found {} results, expected the place of one of them: --place 1 to {}",
                    all.size(), all.size()));
  }
  if (place > all.size()) {
    throw std::invalid_argument(
        fmt::format("found {} results, expected a place up to that: {}", all.size(), place));
  }
  return all.at(place == 0 ? 0 : place - 1);
}

}  // namespace

PastResult read_result(const std::filesystem::path& path, std::size_t place) {
  const MappedFile file = map_file(path);
  try {
    const json root = parse_json_strict(
        {reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()}, kLimits);
    return result_of(chosen_document(root, place));
  } catch (const std::exception& error) {
    throw TraceError(fmt::format("{}: no result of `kvspan run --out`: {}", path_text(path),
                                 one_line(error.what())));
  }
}

}  // namespace kvspan
