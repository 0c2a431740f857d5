// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/resume.h"

#include <cstdint>
#include <fstream>
#include <limits>
#include <span>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/build_info.h"
#include "sim/base/text.h"
#include "tracegen/capture/trace_parts.h"
#include "tracegen/capture/trace_writer.h"

namespace kvspan::tracegen {

using nlohmann::json;

namespace {

// FNV-1a: names the tokens in the journal; nobody attacks it.
std::uint64_t hash_of(std::span<const std::int32_t> ids) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::byte byte : std::as_bytes(ids))
    hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001b3U;
  return hash;
}

bool is_number(const json& found, const char* key, std::int64_t least, std::int64_t most) {
  if (!found.contains(key) || !found[key].is_number_integer()) return false;
  const auto value = found[key].get<std::int64_t>();
  return least <= value && value <= most;
}
bool is_seconds(const json& found, const char* key) {
  return found.contains(key) && found[key].is_number() && found[key] >= 0;
}

}  // namespace

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id;
}

json identity_of(const ModelSpec& model, const CaptureOptions& o) {
  const BuildInfo info = build_info();
  json out = json::parse(o.identity);
  out["program"] = fmt::format("{} ({})", info.version, info.git);
  out["token_ids"] = fmt::format("{} {:016x}", known_tokens(o), hash_of(o.token_ids));
  out["--generate"] = {o.generate,       o.sampling.temperature, o.sampling.top_p,
                       o.sampling.top_k, o.sampling.seed,        o.stop.value_or(-1)};
  out["--chunk"] = o.chunk;
  out["--dtype"] = dtype_name(o.dtype);
  out["--emit"] = {o.qkv, o.scores.has_value(), static_cast<bool>(o.wo),
                   valid_utf8(o.scores_out.string())};
  if (o.scores) {
    out["--rows"] = {o.scores->rows.last, o.scores->rows.every};
    out["--keys"] = o.scores->top_k;
    out["--column-mass"] = o.scores->column_mass;
  }
  if (o.replay) {
    const std::vector<std::int32_t> asked = o.replay->ids();
    out["--replay"] = {fmt::format("{} {:016x}", asked.size(), hash_of(asked)),
                       static_cast<bool>(o.replay->norms)};
  }
  out["--shards"] = static_cast<int>(o.shards);
  for (const auto& [key, value] : make_metadata(model, o, most_tokens(o), false)) out[key] = value;
  return out;
}

std::string hidden_name(int layer) { return fmt::format("hidden.{}", layer % 2); }

std::string Leftovers::obstacle(const json& found, const json& mine) const {
  if (!found.contains("identity") || !found["identity"].is_object())
    return "its journal is damaged";
  std::string changed;
  for (const auto& [key, value] : mine.items()) {
    if (!found["identity"].contains(key) || found["identity"][key] != value)
      changed += (changed.empty() ? "" : ", ") + key;
  }
  if (!changed.empty()) return "these changed: " + changed;
  // NOLINTNEXTLINE(readability-container-size-empty): a text of JSON is never `empty`
  if (!found.contains("boot") || (found["boot"] != "" && found["boot"] != boot_id()))
    return "the machine has been started since";
  const bool whole = found.contains("tokens");
  if (!is_number(found, "layers", 0, model_.layers) || !is_seconds(found, "prefill_seconds") ||
      !is_seconds(found, "decode_seconds") ||
      (whole && (!is_number(found, "tokens", known_tokens(options_), most_tokens(options_)) ||
                 !is_number(found, "text_bytes", -1, std::numeric_limits<std::int64_t>::max()) ||
                 (found["text_bytes"] >= 0) != static_cast<bool>(options_.piece)))) {
    return "its journal is damaged";
  }
  const std::string missing = whole ? missing_of_traces(found) : missing_of_layers(found);
  return missing.empty() ? "" : missing + " is missing";
}

std::string Leftovers::missing_of_layers(const json& found) const {
  const int layers = found["layers"];
  for (int l = 0; l < layers; ++l) {
    if (std::string name = recorder_.missing(l); !name.empty()) return name;
  }
  const std::int64_t hidden_bytes = hidden_rows(options_) * model_.hidden * 4;
  if (layers > 0 && work_.bytes(hidden_name(layers)) < hidden_bytes) return hidden_name(layers);
  return "";
}

std::string Leftovers::missing_of_traces(const json& found) const {
  for (const char* name : {"token_ids", "nll"}) {
    if (work_.bytes(name) < found["tokens"].get<std::int64_t>() * 4) return name;
  }
  for (const Product& product : products(model_, options_, found)) {
    std::string name = missing_part(work_, product.parts, options_.shards, product.path);
    if (!name.empty()) return name;
  }
  return "";
}

}  // namespace kvspan::tracegen
