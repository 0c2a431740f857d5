// SPDX-License-Identifier: Apache-2.0
#include "sim/models/model_geometry.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/models/known_models.h"
#include "sim/models/model_config.h"
#include "sim/policy/passes.h"
#include "sim/trace/trace.h"

namespace kvspan {
namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// A name without the owner that a hub puts before it, and without how the model was tuned:
// "meta-llama/Meta-Llama-3.1-8B-Instruct" is Llama-3.1-8B.
std::string plain_name(const std::string& name) {
  std::string out;
  std::string word;
  for (const char c : name.substr(name.rfind('/') + 1) + "-") {
    if (c != '-' && c != '_' && c != ' ') {
      word += c;
      continue;
    }
    bool tuning = word.empty();
    for (const char* known : {"instruct", "it", "chat", "hf", "meta", "pt"})
      tuning = tuning || lower(word) == known;
    if (!tuning) out += (out.empty() ? "" : "-") + word;
    word.clear();
  }
  return out;
}

// The same without a version at its end; the name itself if there is none.
std::string without_version(const std::string& name) {
  const std::size_t dash = name.rfind('-');
  if (dash == std::string::npos || dash + 2 >= name.size() || name[dash + 1] != 'v') return name;
  const bool is_version = name.find_first_not_of("0123456789.", dash + 2) == std::string::npos;
  return is_version ? name.substr(0, dash) : name;
}

// The entry of the built-in list that a name means: by its own name, by the hub's, and, where one
// of the two leaves the version out ("Mistral-7B"), the first of the versions.
const KnownModel* find_known(const std::string& name) {
  const auto first = [](const auto& same) -> const KnownModel* {
    for (const KnownModel& m : known_model_configs()) {
      if (same(std::string(m.name))) return &m;
    }
    return nullptr;
  };
  const auto* own = first([&](const std::string& known) { return lower(known) == lower(name); });
  if (own != nullptr) return own;
  const std::string plain = lower(plain_name(name));
  const auto* hub =
      first([&](const std::string& known) { return lower(plain_name(known)) == plain; });
  if (hub != nullptr) return hub;
  return first([&](const std::string& given) {
    const std::string known = lower(plain_name(given));
    return without_version(known) == plain || known == without_version(plain);
  });
}

ModelGeometry from_config(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::error_code ignored;
  if (!in || std::filesystem::is_directory(path, ignored))
    throw ConfigError(fmt::format("cannot read model configuration '{}'", path.string()));
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  ModelGeometry model = read_model_config(text, path.string());
  // Of a folder with several, the file tells them apart.
  if (model.name.empty() && path.filename() != "config.json") model.name = path.filename().string();
  if (model.name.empty()) model.name = path.parent_path().filename().string();
  if (model.name.empty() || model.name == "." || model.name == "..") model.name = path.string();
  return model;
}

ModelGeometry from_trace(const std::string& path) {
  const TraceMeta meta = Trace::open(path).meta();
  ModelGeometry model;
  model.name = meta.model.empty() ? path : meta.model;
  model.layers = meta.model_layers;
  model.query_heads = meta.query_heads;
  model.kv_heads = meta.kv_heads;
  model.head_dim = meta.head_dim;
  model.v_head_dim = meta.v_head_dim;
  model.layer_ids = meta.layer_ids;
  model.sliding_window = meta.sliding_window;
  model.weights.refusal = fmt::format(
      "'{}' is a trace and says nothing of the model's weights; give --model a config.json, or one "
      "of the built-in names",
      path);
  return model;
}

}  // namespace

std::int64_t ModelWeights::parameters() const {
  std::int64_t sum = 0;
  for (const WeightGroup& g : groups) sum += g.name == "buffers" ? 0 : g.parameters;
  return sum;
}

std::vector<std::string> known_models() {
  std::vector<std::string> names;
  for (const KnownModel& m : known_model_configs()) names.emplace_back(m.name);
  return names;
}

ModelGeometry load_model(const std::string& name_or_path) {
  const std::filesystem::path path(name_or_path);
  std::error_code ignored;
  const KnownModel* known = find_known(name_or_path);
  if (known != nullptr && (lower(std::string(known->name)) == lower(name_or_path) ||
                           !std::filesystem::exists(path, ignored))) {
    ModelGeometry model = read_model_config(std::string(known->config), std::string(known->name));
    model.name = known->name;
    return model;
  }
  if (std::filesystem::is_directory(path)) return from_config(path / "config.json");
  if (name_or_path.ends_with(".safetensors") || name_or_path.ends_with(".safetensors.index.json"))
    return from_trace(name_or_path);
  if (std::filesystem::exists(path) || name_or_path.ends_with(".json")) return from_config(path);
  throw ConfigError(
      fmt::format("unknown model '{}', and no such file; {} (or a config.json, or a trace)",
                  name_or_path, nearest_hint(plain_name(name_or_path), known_models())));
}

Geometry geometry_of(const ModelGeometry& model, std::int64_t prompt, std::int64_t generated,
                     std::int64_t chunk, std::int64_t kv_bytes) {
  Geometry g;
  g.model_layers = model.layers;
  g.layer_ids = model.layer_ids;
  g.query_heads = model.query_heads;
  g.kv_heads = model.kv_heads;
  g.k_dim = model.head_dim;
  g.v_dim = model.v_head_dim;
  g.tokens = prompt + generated;
  g.prompt = prompt;
  g.evict_point = prompt;
  g.chunk = chunk;
  g.kv_bytes = kv_bytes;
  g.sliding_window = model.sliding_window;
  if (generated < 0)
    throw ConfigError(fmt::format("gen: found {}, expected 0 or more tokens", generated));
  (void)make_passes(g.tokens, g.prompt, g.evict_point, g.chunk);
  return g;
}

std::string describe_windows(const ModelGeometry& model) {
  std::map<std::int64_t, std::vector<int>> layers;
  for (std::size_t i = 0; i < model.sliding_window.size(); ++i) {
    if (model.sliding_window[i] > 0) layers[model.sliding_window[i]].push_back(model.layer_ids[i]);
  }
  std::string out;
  for (const auto& [window, ids] : layers) {
    std::string list;
    for (std::size_t i = 0; i < ids.size();) {
      std::size_t end = i + 1;
      while (end < ids.size() && ids[end] == ids[end - 1] + 1) ++end;
      list += fmt::format("{}{}", list.empty() ? "" : ",", ids[i]);
      if (end - i > 1) list += fmt::format("-{}", ids[end - 1]);
      i = end;
    }
    out += fmt::format("{}{} tokens in layers {} ({} of {})", out.empty() ? "" : "; ", window, list,
                       ids.size(), model.layers);
  }
  return out;
}

}  // namespace kvspan
