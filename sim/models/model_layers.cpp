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

// One word of layer_types.
Mixer mixer_of(const Fields& c, const Family& family, const std::string& word) {
  if (word == "full_attention" || word == "sliding_attention" || word == "attention")
    return Mixer::attention;
  if (word == "linear_attention") return Mixer::delta;
  if (word == "conv") return Mixer::convolution;
  if (word == "mamba" || word == "mamba2") {
    const bool second = family.mixing == Mixing::granite || word == "mamba2" ||
                        c.has("mamba_n_heads") || c.has("mamba_d_head");
    return second ? Mixer::mamba2 : Mixer::mamba1;
  }
  c.fail(fmt::format("'layer_types' names '{}'; {}", shorten_middle(one_line(word), 40),
                     nearest_hint(word, {"full_attention", "sliding_attention", "attention",
                                         "linear_attention", "mamba", "mamba2", "conv"})));
}

void read_layer_types(const Fields& c, const Family& family, Layers& layers) {
  const nlohmann::json& types = c.at("layer_types");
  if (!types.is_array() || types.size() != layers.mixers.size()) {
    c.fail(fmt::format("'layer_types' is {}, expected a list of {} words, one a layer",
                       types.is_array() ? fmt::format("a list of {}", types.size()) : shown(types),
                       layers.mixers.size()));
  }
  for (std::size_t l = 0; l < types.size(); ++l) {
    if (!types[l].is_string()) {
      c.fail(fmt::format("'layer_types' holds {}, expected words such as 'full_attention'",
                         shown(types[l])));
    }
    const auto word = types[l].get<std::string>();
    layers.mixers[l] = mixer_of(c, family, word);
    layers.windows[l] = word == "sliding_attention" ? window_field(c) : 0;
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
  }
}

// The letters of Nemotron-H: M mixes by Mamba 2, * by attention, - is a dense block, E experts.
void read_pattern(const Fields& c, Layers& layers) {
  c.require("hybrid_override_pattern", "one letter a layer, of M, *, - and E");
  const std::string pattern = c.text("hybrid_override_pattern");
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

}  // namespace

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
}

void read_blocks(const Fields& c, const Family& family, Layers& layers) {
  const auto where = [&](const auto& has_experts) {
    for (std::size_t l = 0; l < layers.blocks.size(); ++l)
      layers.blocks[l] = has_experts(static_cast<Count>(l)) ? Block::experts : Block::dense;
  };
  const auto at_least = [&](const char* key, const char* meaning, Count lowest) {
    return c.count(key, meaning, 1000000, lowest);
  };
  switch (family.experts) {
    case Experts::nemotron:
      return;  // by the pattern
    case Experts::none:
      return where([](Count) { return false; });
    case Experts::mixtral:
    case Experts::gpt_oss:
      return where([](Count) { return true; });
    case Experts::granite: {
      const bool any = at_least("num_local_experts", "experts of a layer", 0) > 0;
      return where([&](Count) { return any; });
    }
    case Experts::jamba: {
      const bool any = at_least("num_experts", "experts of a layer", 1) > 1;
      const Count period = any ? at_least("expert_layer_period", "layers between experts", 1) : 1;
      const Count offset = any ? at_least("expert_layer_offset", "first layer of experts", 0) : 0;
      return where([&](Count l) { return any && l % period == offset % period; });
    }
    case Experts::qwen:
    case Experts::qwen_shared: {
      const bool any = at_least("num_experts", "experts of a layer", 0) > 0;
      const Count step = c.has("decoder_sparse_step")
                             ? at_least("decoder_sparse_step", "layers between experts", 1)
                             : 1;
      std::vector<Count> dense;
      if (c.has("mlp_only_layers")) {
        if (!c.at("mlp_only_layers").is_array()) c.wrong("mlp_only_layers", "a list of layers");
        for (const nlohmann::json& index : c.at("mlp_only_layers")) {
          if (!index.is_number_integer()) c.wrong("mlp_only_layers", "a list of layers");
          dense.push_back(index.get<Count>());
        }
      }
      return where([&](Count l) {
        return any && (l + 1) % step == 0 &&
               std::find(dense.begin(), dense.end(), l) == dense.end();
      });
    }
    case Experts::deepseek_v2:
    case Experts::deepseek_v3: {
      c.require("n_routed_experts", "experts of a layer; null for none");
      if (!c.has("n_routed_experts")) return where([](Count) { return false; });
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
