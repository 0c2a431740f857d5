// SPDX-License-Identifier: Apache-2.0
// Profiles of synthetic traces: JSON in and out, and the built-in ones.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "sim/policy/spec.h"
#include "tracegen/synth/synth.h"

namespace kvspan::tracegen {
namespace {

using nlohmann::json;

// Shares of head kinds and ranges are rounded readings of `kvspan trace stats` on small trained
// models; they stand for no particular one. `kvspan synth fit` follows one trace.
constexpr const char* kBuiltIn[] = {
    R"({"name": "llama-like",
  "description": "a mix of sink, local, heavy-hitter and retrieval heads; important keys are short",
  "key_common": 3,
  "kinds": [
    {"name": "sink", "share": 4, "sink": [0.5, 0.9], "needle": [0, 0.1], "decay": [0.6, 1.4],
     "hitters": [0.5, 1.5], "content": [0.5, 1.5], "topics": [0, 0.5], "spread": [0.5, 1.5]},
    {"name": "local", "share": 2, "sink": [0.02, 0.3], "needle": [0, 0.05], "decay": [1.5, 3],
     "hitters": [0.3, 1], "content": [0.5, 1.5], "topics": [0, 0.5], "spread": [0.5, 1]},
    {"name": "heavy hitter", "share": 2, "sink": [0.2, 0.5], "needle": [0, 0.2], "decay": [0.2, 0.8],
     "hitters": [1.5, 2.5], "content": [0.5, 1.5], "topics": [0, 1], "spread": [0.5, 1]},
    {"name": "broad", "share": 1, "sink": [0.02, 0.2], "needle": [0, 0.05], "decay": [0, 0.5],
     "hitters": [0.2, 0.8], "content": [0.3, 1], "topics": [0, 1], "spread": [0.2, 0.5]},
    {"name": "retrieval", "share": 1, "sink": [0.3, 0.6], "needle": [0.7, 0.95],
     "decay": [0.5, 1], "hitters": [0.5, 1], "content": [1.5, 2.5], "topics": [0, 1],
     "spread": [0.5, 1]}]})",
    R"({"name": "retrieval",
  "description": "half of the heads look for needles, the others are sinks",
  "key_common": 3,
  "kinds": [
    {"name": "retrieval", "share": 1, "sink": [0.2, 0.5], "needle": [0.8, 0.98],
     "decay": [0.3, 1], "hitters": [0.3, 1], "content": [1.5, 2.5], "topics": [0, 1],
     "spread": [0.5, 1]},
    {"name": "sink", "share": 1, "sink": [0.5, 0.9], "needle": [0, 0.1], "decay": [0.6, 1.4],
     "hitters": [0.5, 1.5], "content": [0.5, 1.5], "spread": [0.5, 1.5]}]})",
    R"({"name": "streaming",
  "description": "sinks and a steep decay, and little else: what StreamingLLM keeps is all there is",
  "key_common": 3,
  "kinds": [
    {"name": "streaming", "share": 1, "sink": [0.4, 0.8], "needle": 0, "decay": [2, 3],
     "hitters": [0, 0.3], "content": [0, 0.5], "spread": [0.3, 0.8]}]})",
    R"({"name": "heavy-hitter",
  "description": "a few keys matter to all rows, wherever they are: what H2O assumes",
  "key_common": 3,
  "kinds": [
    {"name": "heavy hitter", "share": 1, "sink": [0.05, 0.3], "needle": [0, 0.1],
     "decay": [0, 0.4], "hitters": [2, 3], "content": [0, 0.8], "spread": [0.3, 0.8]}]})",
    R"({"name": "uniform",
  "description": "every row reads all of its keys alike: no policy can be better than another",
  "key_common": 0,
  "kinds": [{"name": "uniform", "share": 1}]})"};

// Reads the values of one JSON object; says which key is wrong, and refuses unknown ones.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) fail("", "a JSON object");
  }

  const json* find(const std::string& key) {
    known_.push_back(key);
    const auto at = object_.find(key);
    return at == object_.end() ? nullptr : &*at;
  }
  void number(const std::string& key, double low, double high, double& out) {
    if (const json* value = find(key)) out = checked_number(*value, key, low, high);
  }
  // A number, or [least, most].
  void range(const std::string& key, double low, double high, HeadKind::Range& out) {
    const json* value = find(key);
    if (value == nullptr) return;
    if (value->is_array() && value->size() == 2) {
      out = {checked_number((*value)[0], key, low, high),
             checked_number((*value)[1], key, low, high)};
      if (out.first > out.second) fail(key, "the smaller number first");
      return;
    }
    out.first = out.second = checked_number(*value, key, low, high);
  }
  void text(const std::string& key, std::string& out) {
    const json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_string()) fail(key, "a text");
    out = value->get<std::string>();
  }
  [[nodiscard]] double checked_number(const json& value, const std::string& key, double low,
                                      double high) const {
    const double x = value.is_number() ? value.get<double>() : NAN;
    if (std::isnan(x) || x < low || x > high) {
      fail(key, fmt::format("a number from {} to {}, not {}", low, high, in_quotes(value.dump())));
    }
    return x;
  }
  const json& list(const json& value, const std::string& key, std::size_t most) const {
    if (!value.is_array() || value.empty() || value.size() > most)
      fail(key, fmt::format("a list of 1 to {}", most));
    return value;
  }
  void finish() const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
        throw ConfigError(fmt::format("{}: unknown key {}; {}", where_, in_quotes(key),
                                      nearest_hint(key, known_)));
      }
    }
  }
  [[noreturn]] void fail(const std::string& key, const std::string& expected) const {
    throw ConfigError(
        fmt::format("{}: {}expected {}", where_, key.empty() ? "" : "'" + key + "': ", expected));
  }

 private:
  const json& object_;
  std::string where_;
  std::vector<std::string> known_;
};

constexpr double kMost = 50;  // nats

HeadKind parse_kind(const json& value, const std::string& where) {
  Reader in(value, where);
  HeadKind kind;
  in.text("name", kind.name);
  in.number("share", 1e-6, 1e6, kind.share);
  const auto optional = [&](const char* key, std::optional<HeadKind::Range>& out) {
    if (!value.contains(key)) return;
    in.range(key, 0, 1, out.emplace());
  };
  (void)in.find("sink");
  (void)in.find("needle");
  optional("sink", kind.sink);
  optional("needle", kind.needle);
  in.range("decay", -5, 10, kind.decay);
  in.range("hitters", 0, kMost, kind.hitters);
  in.range("content", 0, kMost, kind.content);
  in.range("topics", -kMost, kMost, kind.topics);
  in.range("spread", 0, kMost, kind.spread);
  in.finish();
  return kind;
}

HeadProfile parse_head(const json& value, const std::string& where) {
  Reader in(value, where);
  HeadProfile head;
  const auto optional = [&](const char* key, std::optional<double>& out) {
    const json* found = in.find(key);
    if (found != nullptr && !found->is_null()) out = in.checked_number(*found, key, 0, 1);
  };
  optional("sink", head.sink);
  optional("needle", head.needle);
  in.number("hitters", 0, kMost, head.hitters);
  in.number("content", 0, kMost, head.content);
  in.number("topics", -kMost, kMost, head.topics);
  in.number("spread", 0, kMost, head.spread);
  if (const json* curve = in.find("locality")) {
    if (!curve->is_array() || curve->size() > 64) in.fail("locality", "a list of at most 64");
    for (const json& x : *curve)
      head.locality.push_back(in.checked_number(x, "locality", -kMost, kMost));
  }
  in.finish();
  return head;
}

json to_json(const HeadProfile& head) {
  const auto optional = [](const std::optional<double>& x) { return x ? json(*x) : json(nullptr); };
  return {{"sink", optional(head.sink)}, {"needle", optional(head.needle)},
          {"locality", head.locality},   {"hitters", head.hitters},
          {"content", head.content},     {"topics", head.topics},
          {"spread", head.spread}};
}

json to_json(const HeadKind& kind) {
  const auto range = [](const HeadKind::Range& r) { return json::array({r.first, r.second}); };
  json out = {{"name", kind.name},
              {"share", kind.share},
              {"decay", range(kind.decay)},
              {"hitters", range(kind.hitters)},
              {"content", range(kind.content)},
              {"topics", range(kind.topics)},
              {"spread", range(kind.spread)}};
  if (kind.sink) out["sink"] = range(*kind.sink);
  if (kind.needle) out["needle"] = range(*kind.needle);
  return out;
}

}  // namespace

SynthProfile parse_profile(std::string_view text, const std::string& name) {
  json document;
  try {
    document = parse_json_strict(text);
  } catch (const std::invalid_argument& error) {
    throw ConfigError(fmt::format("{} {}; expected a profile", name, valid_utf8(error.what())));
  }
  Reader in(document, name);
  SynthProfile profile;
  in.text("name", profile.name);
  if (profile.name.empty()) profile.name = "unnamed";
  in.text("description", profile.description);
  in.number("key_common", -kMost, kMost, profile.key_common);
  const json* kinds = in.find("kinds");
  const json* layers = in.find("layers");
  in.finish();
  if ((kinds != nullptr) == (layers != nullptr))
    in.fail("", "either 'kinds' (drawn heads) or 'layers' (every head)");
  if (kinds != nullptr) {
    for (std::size_t i = 0; i < in.list(*kinds, "kinds", 64).size(); ++i)
      profile.kinds.push_back(parse_kind((*kinds)[i], fmt::format("{}: kinds[{}]", name, i)));
    return profile;
  }
  for (std::size_t l = 0; l < in.list(*layers, "layers", 1024).size(); ++l) {
    const std::string where = fmt::format("{}: layers[{}]", name, l);
    Reader layer((*layers)[l], where);
    LayerProfile& out = profile.layers.emplace_back();
    layer.number("key_common", -kMost, kMost, out.key_common);
    const json* heads = layer.find("heads");
    layer.finish();
    if (heads == nullptr) layer.fail("heads", "a list");
    for (std::size_t h = 0; h < layer.list(*heads, "heads", 1024).size(); ++h)
      out.heads.push_back(parse_head((*heads)[h], fmt::format("{}.heads[{}]", where, h)));
  }
  return profile;
}

json to_json(const SynthProfile& profile) {
  json out = {{"name", profile.name}, {"description", profile.description}};
  if (profile.layers.empty()) {
    out["key_common"] = profile.key_common;
    for (const HeadKind& kind : profile.kinds) out["kinds"].push_back(to_json(kind));
    return out;
  }
  for (const LayerProfile& layer : profile.layers) {
    json heads = json::array();
    for (const HeadProfile& head : layer.heads) heads.push_back(to_json(head));
    out["layers"].push_back({{"key_common", layer.key_common}, {"heads", std::move(heads)}});
  }
  return out;
}

const std::vector<SynthProfile>& built_in_profiles() {
  static const std::vector<SynthProfile> profiles = [] {
    std::vector<SynthProfile> out;
    for (const char* text : kBuiltIn) out.push_back(parse_profile(text, "built-in profile"));
    return out;
  }();
  return profiles;
}

SynthProfile find_profile(const std::string& name_or_path) {
  if (name_or_path.ends_with(".json")) {
    std::ifstream in(name_or_path, std::ios::binary);
    std::ostringstream text;
    if (in) text << in.rdbuf();
    if (!in) throw ConfigError(fmt::format("--profile: cannot read '{}'", name_or_path));
    return parse_profile(text.str(), name_or_path);
  }
  std::vector<std::string> names;
  for (const SynthProfile& profile : built_in_profiles()) {
    if (profile.name == name_or_path) return profile;
    names.push_back(profile.name);
  }
  throw ConfigError(fmt::format("--profile: unknown profile '{}'; {} (or a FILE.json)",
                                name_or_path, nearest_hint(name_or_path, names)));
}

}  // namespace kvspan::tracegen
