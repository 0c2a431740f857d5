// SPDX-License-Identifier: Apache-2.0
#include "sim/models/model_layers.h"

#include <string>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"

namespace kvspan::config {
namespace {

constexpr const char* kWindowMeaning = "tokens that a sliding layer sees";

Count window_field(const Fields& c) {
  return c.count("sliding_window", kWindowMeaning, kMostTokens);
}

Count chunk_field(const Fields& c) {
  return c.count("attention_chunk_size", "tokens that attend to each other", kMostTokens);
}

// What "linear_attention" is follows from the family, or from the fields beside it.
Mixer linear_mixer(const Fields& c, const Family& family) {
  switch (family.mixing) {
    case Mixing::kimi:
      return Mixer::kimi;
    case Mixing::jamba:
      return Mixer::mamba1;
    case Mixing::granite:
    case Mixing::nemotron:
      return Mixer::mamba2;
    case Mixing::lfm2:
      return Mixer::convolution;
    case Mixing::delta:
      return Mixer::delta;
    default:
      break;
  }
  for (const char* key : {"mamba_n_heads", "mamba_d_head", "mamba_num_heads"}) {
    if (c.has(key)) return Mixer::mamba2;
  }
  return c.has("mamba_d_state") ? Mixer::mamba1 : Mixer::delta;
}

// One word of layer_types.
Mixer mixer_of(const Fields& c, const Family& family, const std::string& word) {
  for (const char* attention : {"full_attention", "sliding_attention", "attention",
                                "chunked_attention", "indexed_attention"}) {
    if (word == attention) return Mixer::attention;
  }
  if (word == "linear_attention") return linear_mixer(c, family);
  if (word == "conv") return Mixer::convolution;
  if (word == "mamba" || word == "mamba2") {
    const bool second = family.mixing == Mixing::granite || word == "mamba2" ||
                        c.has("mamba_n_heads") || c.has("mamba_d_head");
    return second ? Mixer::mamba2 : Mixer::mamba1;
  }
  c.fail(fmt::format(
      "'layer_types' names '{}'; {}", shorten_middle(one_line(word), 40),
      nearest_hint(word, {"full_attention", "sliding_attention", "attention", "chunked_attention",
                          "indexed_attention", "linear_attention", "mamba", "mamba2", "conv"})));
}

// A list of one word a layer.
std::vector<std::string> words(const Fields& c, const char* key, std::size_t layers) {
  const nlohmann::json& found = c.at(key);
  if (!found.is_array() || found.size() != layers) {
    c.fail(fmt::format("'{}' is {}, expected a list of {} words, one a layer", key,
                       found.is_array() ? fmt::format("a list of {}", found.size()) : shown(found),
                       layers));
  }
  std::vector<std::string> out;
  for (const nlohmann::json& word : found) {
    if (!word.is_string()) {
      c.fail(
          fmt::format("'{}' holds {}, expected words such as 'full_attention'", key, shown(word)));
    }
    out.push_back(word.get<std::string>());
  }
  return out;
}

void read_layer_types(const Fields& c, const Family& family, Layers& layers) {
  const std::vector<std::string> types = words(c, "layer_types", layers.mixers.size());
  for (std::size_t l = 0; l < types.size(); ++l) {
    layers.mixers[l] = mixer_of(c, family, types[l]);
    layers.windows[l] = types[l] == "sliding_attention"   ? window_field(c)
                        : types[l] == "chunked_attention" ? chunk_field(c)
                                                          : 0;
  }
}

// Llama 4: layers without rotary embedding see everything, the others their chunk. Older files
// leave out which those are, or list none: every fourth.
void read_chunks(const Fields& c, Layers& layers) {
  const Count chunk = chunk_field(c);
  const nlohmann::json* listed = c.find("no_rope_layers");
  const bool by_list = listed != nullptr && listed->is_array() && !listed->empty();
  if (by_list && listed->size() != layers.windows.size())
    c.wrong("no_rope_layers", fmt::format("{} numbers, one a layer", layers.windows.size()));
  const Count interval = c.has("no_rope_layer_interval")
                             ? c.count("no_rope_layer_interval",
                                       "layers from one without rotary embedding to the next")
                             : 4;
  for (std::size_t l = 0; l < layers.windows.size(); ++l) {
    const bool rotates = by_list ? (*listed)[l] != 0 : (static_cast<Count>(l) + 1) % interval != 0;
    layers.windows[l] = rotates ? chunk : 0;
  }
}

void read_windows(const Fields& c, const Family& family, Layers& layers) {
  const auto slide = [&](const auto& slides) {
    const Count window = window_field(c);
    for (std::size_t l = 0; l < layers.windows.size(); ++l) {
      if (slides(l)) layers.windows[l] = window;
    }
  };
  const auto all = [](std::size_t) { return true; };
  switch (family.windows) {
    case Windows::none:
      return;
    case Windows::required:
      c.require("sliding_window", fmt::format("{}; null for none", kWindowMeaning));
      [[fallthrough]];
    case Windows::all:
      if (c.has("sliding_window")) slide(all);
      return;
    case Windows::from_layer: {
      if (!c.flag("use_sliding_window", false) || !c.has("sliding_window")) return;
      const Count first =
          c.count("max_window_layers", "the first layer with a sliding window", 1000000, 0);
      slide([&](std::size_t l) { return static_cast<Count>(l) >= first; });
      return;
    }
    case Windows::every_other:
      c.require("sliding_window", kWindowMeaning);
      slide([](std::size_t l) { return l % 2 == 0; });
      return;
    case Windows::five_to_one: {
      c.require("sliding_window", kWindowMeaning);
      const char* key =
          c.has("_sliding_window_pattern") ? "_sliding_window_pattern" : "sliding_window_pattern";
      const auto pattern = static_cast<std::size_t>(
          c.has(key) ? c.count(key, "layers from one full layer to the next") : 6);
      slide([&](std::size_t l) { return (l + 1) % pattern != 0; });
      return;
    }
    case Windows::by_flag:
      if (!c.flag("use_sliding_window", false)) return;
      [[fallthrough]];
    case Windows::by_types:
      c.require("layer_types", "what each layer is, one word a layer");
      return c.wrong("layer_types", "a list of words, one a layer");
    case Windows::chunked:
      return read_chunks(c, layers);
  }
}

// The layers of Nemotron-H: a mixer or a block each, as words (transformers 5) or as letters, of
// which M mixes by Mamba 2, * by attention, - is a dense block, E experts.
void read_pattern(const Fields& c, Layers& layers) {
  std::string pattern;
  if (c.has("layers_block_type")) {
    for (const std::string& word : words(c, "layers_block_type", layers.mixers.size())) {
      const char letter = word == "mamba" || word == "linear_attention"     ? 'M'
                          : word == "attention" || word == "full_attention" ? '*'
                          : word == "mlp"                                   ? '-'
                          : word == "moe"                                   ? 'E'
                                                                            : '?';
      if (letter == '?') {
        c.fail(fmt::format("'layers_block_type' names '{}'; {}", shorten_middle(one_line(word), 40),
                           nearest_hint(word, {"linear_attention", "full_attention", "mamba",
                                               "attention", "mlp", "moe"})));
      }
      pattern += letter;
    }
  } else {
    c.require("hybrid_override_pattern", "one letter a layer, of M, *, - and E");
    pattern = c.text("hybrid_override_pattern");
  }
  if (pattern.size() != layers.mixers.size()) {
    c.fail(fmt::format("'hybrid_override_pattern' has {} letters, expected {}, one a layer",
                       pattern.size(), layers.mixers.size()));
  }
  for (std::size_t l = 0; l < pattern.size(); ++l) {
    const char letter = pattern[l];
    if (std::string_view("M*-E").find(letter) == std::string_view::npos)
      c.wrong("hybrid_override_pattern", "letters of M, *, - and E");
    layers.mixers[l] = letter == 'M'   ? Mixer::mamba2
                       : letter == '*' ? Mixer::attention
                                       : Mixer::none;
    layers.blocks[l] = letter == '-' ? Block::dense : letter == 'E' ? Block::experts : Block::none;
  }
}

// Kimi Linear as published: lists of layers, counted from 1.
void read_kimi(const Fields& c, Layers& layers) {
  if (!c.has("linear_attn_config"))
    c.require("layer_types", "one word a layer; or 'linear_attn_config'");
  const Fields linear = c.part(c.at("linear_attn_config"));
  std::fill(layers.mixers.begin(), layers.mixers.end(), Mixer::kimi);
  linear.require("full_attn_layers", "the layers of full attention, counted from 1");
  for (const nlohmann::json& index : linear.at("full_attn_layers")) {
    if (!index.is_number_integer() || index < 1 || index > layers.mixers.size())
      linear.wrong("full_attn_layers", "a list of layers, counted from 1");
    layers.mixers[index.get<std::size_t>() - 1] = Mixer::attention;
  }
}

// The last layers of Gemma 3n and 4 attend to what earlier layers keep.
void read_reuse(const Fields& c, Layers& layers) {
  const Count shared = c.count("num_kv_shared_layers", "last layers that reuse KV",
                               static_cast<Count>(layers.mixers.size()) - 1, 0);
  std::fill(layers.mixers.end() - shared, layers.mixers.end(), Mixer::reuse);
}

// Nothing but words of layers that have experts ("sparse") and of those that have none.
void read_block_words(const Fields& c, Layers& layers) {
  const std::vector<std::string> types = words(c, "mlp_layer_types", layers.blocks.size());
  for (std::size_t l = 0; l < types.size(); ++l) {
    if (types[l] != "sparse" && types[l] != "dense")
      c.wrong("mlp_layer_types", "words of 'dense' and 'sparse'");
    layers.blocks[l] = types[l] == "sparse" ? Block::experts : Block::dense;
  }
}

// Whether a list of layers, counted from 0, names this one.
bool lists(const Fields& c, const char* key, Count layer) {
  if (!c.at(key).is_array()) c.wrong(key, "a list of layers");
  bool found = false;
  for (const nlohmann::json& index : c.at(key)) {
    if (!index.is_number_integer()) c.wrong(key, "a list of layers");
    found = found || index == layer;
  }
  return found;
}

}  // namespace

std::vector<int> Layers::with(Mixer mixer) const {
  std::vector<int> out;
  for (std::size_t l = 0; l < mixers.size(); ++l) {
    if (mixers[l] == mixer || (mamba_beside && mixer == Mixer::mamba2))
      out.push_back(static_cast<int>(l));
  }
  return out;
}

std::vector<int> Layers::with(Block block) const {
  std::vector<int> out;
  for (std::size_t l = 0; l < blocks.size(); ++l) {
    if (blocks[l] == block) out.push_back(static_cast<int>(l));
  }
  return out;
}

void read_mixers(const Fields& c, const Family& family, Layers& layers) {
  const auto every = [&](const char* period_key, Count offset, Mixer other) {
    const Count period = c.count(period_key, "layers from one attention layer to the next");
    for (std::size_t l = 0; l < layers.mixers.size(); ++l) {
      if (static_cast<Count>(l) % period != offset % period) layers.mixers[l] = other;
    }
  };
  if (family.mixing == Mixing::nemotron) {
    read_pattern(c, layers);
  } else if (c.has("layer_types")) {
    read_layer_types(c, family, layers);
  } else if (family.mixing == Mixing::kimi) {
    read_kimi(c, layers);
  } else if (family.mixing == Mixing::jamba) {
    const Count offset = c.count("attn_layer_offset", "the first attention layer", 1000000, 0);
    every("attn_layer_period", offset, Mixer::mamba1);
  } else if (family.mixing == Mixing::delta) {
    if (!c.has("full_attention_interval"))
      c.require("layer_types", "one word a layer; or 'full_attention_interval'");
    const Count period = c.count("full_attention_interval", "layers from one to the next");
    every("full_attention_interval", period - 1, Mixer::delta);
  } else if (family.mixing == Mixing::lfm2 && c.has("full_attn_idxs")) {
    std::fill(layers.mixers.begin(), layers.mixers.end(), Mixer::convolution);
    for (const nlohmann::json& index : c.at("full_attn_idxs")) {
      if (!index.is_number_integer() || index < 0 || index >= layers.mixers.size())
        c.wrong("full_attn_idxs", "a list of layers");
      layers.mixers[index.get<std::size_t>()] = Mixer::attention;
    }
  } else if (family.mixing == Mixing::granite || family.mixing == Mixing::lfm2) {
    c.require("layer_types", "what each layer is, one word a layer");
    c.wrong("layer_types", "a list of words, one a layer");
  } else {
    read_windows(c, family, layers);
  }
  layers.mamba_beside = family.mixing == Mixing::falcon_h1;
  if (family.mixing == Mixing::gemma3n || family.mixing == Mixing::gemma4) read_reuse(c, layers);
}

void read_blocks(const Fields& c, const Family& family, Layers& layers) {
  const auto where = [&](const auto& has_experts) {
    for (std::size_t l = 0; l < layers.blocks.size(); ++l)
      layers.blocks[l] = has_experts(static_cast<Count>(l)) ? Block::experts : Block::dense;
  };
  const auto at_least = [&](const char* key, const char* meaning, Count lowest) {
    return c.count(key, meaning, 1000000, lowest);
  };
  if (family.experts != Experts::none && c.has("mlp_layer_types"))
    return read_block_words(c, layers);
  switch (family.experts) {
    case Experts::nemotron:
      return;  // by the pattern
    case Experts::none:
      return where([](Count) { return false; });
    case Experts::mixtral:
    case Experts::minimax:
    case Experts::hunyuan:
    case Experts::gpt_oss:
      return where([](Count) { return true; });
    case Experts::granite: {
      const bool any =
          at_least(c.one_of({"num_local_experts", "num_experts"}), "experts of a layer", 0) > 0;
      return where([&](Count) { return any; });
    }
    case Experts::jamba: {
      const char* experts = c.one_of({"num_experts", "num_local_experts"});
      const bool any = at_least(experts, "experts of a layer", 1) > 1;
      const Count period = any ? at_least("expert_layer_period", "layers between experts", 1) : 1;
      const Count offset = any ? at_least("expert_layer_offset", "first layer of experts", 0) : 0;
      return where([&](Count l) { return any && l % period == offset % period; });
    }
    case Experts::qwen:
    case Experts::qwen_shared: {
      const bool any =
          at_least(c.one_of({"num_experts", "num_local_experts"}), "experts of a layer", 0) > 0;
      const Count step = c.has("decoder_sparse_step")
                             ? at_least("decoder_sparse_step", "layers between experts", 1)
                             : 1;
      return where([&](Count l) {
        return any && (l + 1) % step == 0 &&
               !(c.has("mlp_only_layers") && lists(c, "mlp_only_layers", l));
      });
    }
    case Experts::llama4: {
      const Count step = c.has("interleave_moe_layer_step")
                             ? at_least("interleave_moe_layer_step", "layers between experts", 1)
                             : 1;
      return where([&](Count l) {
        return c.has("moe_layers") ? lists(c, "moe_layers", l) : (l + 1) % step == 0;
      });
    }
    case Experts::deepseek_v2:
    case Experts::deepseek_v3: {
      const char* experts = c.one_of({"n_routed_experts", "num_experts", "num_local_experts"});
      c.require(experts, "experts of a layer; null for none");
      if (!c.has(experts)) return where([](Count) { return false; });
      const Count dense = at_least("first_k_dense_replace", "layers before the first experts", 0);
      const Count step =
          c.has("moe_layer_freq") ? at_least("moe_layer_freq", "layers between experts", 1) : 1;
      return where([&](Count l) { return l >= dense && l % step == 0; });
    }
  }
}

bool names_recurrent_layers(const nlohmann::json& config) {
  if (!config.contains("layer_types") || !config["layer_types"].is_array()) return false;
  const nlohmann::json& types = config["layer_types"];
  return std::any_of(types.begin(), types.end(), [](const nlohmann::json& word) {
    return word == "linear_attention" || word == "mamba" || word == "mamba2" || word == "conv";
  });
}

}  // namespace kvspan::config
