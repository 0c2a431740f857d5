// SPDX-License-Identifier: Apache-2.0
// From a Hugging Face config.json to the sizes of a model. Each family is a row of kFamilies: what
// its modelling code fixes beyond the fields. Layers are then counted by what they mix tokens with
// (attention, a recurrence, a convolution) and by what follows (a dense block, experts, nothing).
#include "sim/models/model_config.h"

#include <array>

#include "sim/models/known_models.h"
#include "sim/policy/spec.h"

namespace kvspan::config {
namespace {

constexpr bool kTied = true;
constexpr bool kQkNorm = true;

// As in the configuration and modelling classes of Hugging Face transformers.
constexpr std::array<Family, 23> kFamilies{{
    {"llama", "LlamaForCausalLM", false, 2, Bias::by_field, false, Windows::none, Experts::none,
     Mixing::attention},
    {"mistral", "MistralForCausalLM", false, 2, Bias::none, false, Windows::required, Experts::none,
     Mixing::attention},
    {"mixtral", "MixtralForCausalLM", false, 2, Bias::none, false, Windows::all, Experts::mixtral,
     Mixing::attention},
    {"qwen2", "Qwen2ForCausalLM", false, 2, Bias::qkv, false, Windows::from_layer, Experts::none,
     Mixing::attention},
    {"qwen2_moe", "Qwen2MoeForCausalLM", false, 2, Bias::qkv, false, Windows::from_layer,
     Experts::qwen_shared, Mixing::attention},
    {"qwen3", "Qwen3ForCausalLM", false, 2, Bias::by_field, kQkNorm, Windows::from_layer,
     Experts::none, Mixing::attention},
    {"qwen3_moe", "Qwen3MoeForCausalLM", false, 2, Bias::by_field, kQkNorm, Windows::from_layer,
     Experts::qwen, Mixing::attention},
    {"qwen3_next", "Qwen3NextForCausalLM", false, 2, Bias::by_field, kQkNorm, Windows::none,
     Experts::qwen_shared, Mixing::delta},
    {"gemma", "GemmaForCausalLM", kTied, 2, Bias::by_field, false, Windows::none, Experts::none,
     Mixing::attention},
    {"gemma2", "Gemma2ForCausalLM", kTied, 4, Bias::by_field, false, Windows::every_other,
     Experts::none, Mixing::attention},
    {"gemma3_text", "Gemma3ForCausalLM", kTied, 4, Bias::by_field, kQkNorm, Windows::five_to_one,
     Experts::none, Mixing::attention},
    // Its fields are those of text_config, or, in text-only files, its own.
    {"gemma3", "Gemma3ForConditionalGeneration", kTied, 4, Bias::by_field, kQkNorm,
     Windows::five_to_one, Experts::none, Mixing::attention},
    {"phi3", "Phi3ForCausalLM", false, 2, Bias::none, false, Windows::all, Experts::none,
     Mixing::attention},
    {"deepseek_v2", "DeepseekV2ForCausalLM", false, 2, Bias::by_field, false, Windows::none,
     Experts::deepseek_v2, Mixing::latent},
    {"deepseek_v3", "DeepseekV3ForCausalLM", false, 2, Bias::by_field, false, Windows::none,
     Experts::deepseek_v3, Mixing::latent},
    {"kimi_k2", "DeepseekV3ForCausalLM", false, 2, Bias::by_field, false, Windows::none,
     Experts::deepseek_v3, Mixing::latent},
    {"gpt_oss", "GptOssForCausalLM", false, 2, Bias::by_field, false, Windows::every_other,
     Experts::gpt_oss, Mixing::attention},
    {"jamba", "JambaForCausalLM", false, 2, Bias::none, false, Windows::none, Experts::jamba,
     Mixing::jamba},
    {"granitemoehybrid", "GraniteMoeHybridForCausalLM", false, 2, Bias::by_field, false,
     Windows::none, Experts::granite, Mixing::granite},
    {"nemotron_h", "NemotronHForCausalLM", false, 1, Bias::by_field, false, Windows::none,
     Experts::nemotron, Mixing::nemotron},
    {"lfm2", "Lfm2ForCausalLM", kTied, 2, Bias::none, kQkNorm, Windows::none, Experts::none,
     Mixing::lfm2},
    {"granite", "GraniteForCausalLM", false, 2, Bias::by_field, false, Windows::none, Experts::none,
     Mixing::attention},
    {"", "", false, 2, Bias::by_field, false, Windows::all, Experts::none, Mixing::unknown},
}};
constexpr const Family& kUnknownHybrid = kFamilies.back();

}  // namespace

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const Family& f : kFamilies) {
    if (*f.model_type != '\0') names.emplace_back(f.model_type);
  }
  return names;
}

// What was found, short enough for a line.
std::string shown(const nlohmann::json& value) {
  return shorten_middle(
      one_line(value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace)), 60);
}

// The models of the built-in list of a family, for those whose files leave fields out.
std::string built_in(const std::string& model_type) {
  std::string names;
  for (const KnownModel& m : known_model_configs()) {
    if (m.config.find(fmt::format("\"model_type\": \"{}\"", model_type)) != std::string_view::npos)
      names += fmt::format("{}{}", names.empty() ? "" : ", ", m.name);
  }
  return names;
}

namespace {

// ---- Layers -------------------------------------------------------------------------------------

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

// ---- Reading ------------------------------------------------------------------------------------

const Family* by_type(const std::string& model_type) {
  const auto* found = std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& f) {
    return *f.model_type != '\0' && model_type == f.model_type;
  });
  return found == kFamilies.end() ? nullptr : found;
}

const Family* by_architecture(const nlohmann::json& config) {
  if (!config.contains("architectures") || !config["architectures"].is_array()) return nullptr;
  for (const nlohmann::json& name : config["architectures"]) {
    for (const Family& f : kFamilies) {
      if (*f.architecture != '\0' && name == f.architecture) return &f;
    }
  }
  return nullptr;
}

std::string type_of(const nlohmann::json& config) {
  return config.contains("model_type") && config["model_type"].is_string()
             ? config["model_type"].get<std::string>()
             : std::string();
}

bool names_recurrent_layers(const nlohmann::json& config) {
  if (!config.contains("layer_types") || !config["layer_types"].is_array()) return false;
  const nlohmann::json& types = config["layer_types"];
  return std::any_of(types.begin(), types.end(), [](const nlohmann::json& word) {
    return word == "linear_attention" || word == "mamba" || word == "mamba2" || word == "conv";
  });
}

// The part about text of a model with other parts; what it leaves out is the whole's.
nlohmann::json text_part(const nlohmann::json& config) {
  nlohmann::json text = config["text_config"];
  for (const char* key :
       {"dtype", "torch_dtype", "quantization_config", "tie_word_embeddings", "_name_or_path"}) {
    if (!text.contains(key) && config.contains(key)) text[key] = config[key];
  }
  return text;
}

void read_heads(const Fields& c, const Family& family, ModelGeometry& m) {
  constexpr int kMostHeads = 65536;
  m.query_heads = c.small("num_attention_heads", "query heads of a layer", kMostHeads);
  if (family.mixing == Mixing::latent) {
    m.latent = true;
    m.kv_heads = 1;
    m.head_dim = c.small("kv_lora_rank", "width of the latent", kMostHeads) +
                 c.small("qk_rope_head_dim", "rotary width of a key", kMostHeads);
    m.v_head_dim = 0;
    return;
  }
  m.kv_heads = c.small("num_key_value_heads", "KV heads of a layer", kMostHeads);
  const char* dim_key =
      c.has("head_dim") || !c.has("attention_head_dim") ? "head_dim" : "attention_head_dim";
  if (c.has(dim_key)) {
    m.head_dim = c.small(dim_key, "width of a head", kMostHeads);
  } else {  // the rule of the configuration classes
    const Count hidden = c.count("hidden_size", "width of the model; or 'head_dim'");
    if (hidden % m.query_heads != 0) {
      c.fail(
          fmt::format("'hidden_size' {} is no multiple of 'num_attention_heads' {}, and there is "
                      "no field 'head_dim'",
                      hidden, m.query_heads));
    }
    m.head_dim = static_cast<int>(hidden / m.query_heads);
  }
  if (m.query_heads % m.kv_heads != 0) {
    c.fail(
        fmt::format("'num_attention_heads' is {}, expected a multiple of 'num_key_value_heads' {}",
                    m.query_heads, m.kv_heads));
  }
  m.v_head_dim = m.head_dim;
}

ModelGeometry read(const std::string& text, const std::string& where) {
  nlohmann::json config;
  try {
    config = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    throw ConfigError(fmt::format("'{}' is not JSON: {}", one_line(where),
                                  shorten_middle(one_line(valid_utf8(e.what())), 160)));
  }
  if (!config.is_object()) {
    throw ConfigError(
        fmt::format("'{}' is {}, expected a JSON object with the fields of a "
                    "config.json",
                    one_line(where), shown(config)));
  }
  ModelGeometry model;
  if (config.contains("text_config") && config["text_config"].is_object()) {
    config = text_part(config);
    model.notes.emplace_back("text part only: the weights of the other parts are not counted");
  }
  const std::string type = type_of(config);
  const Family* family = by_type(type);
  if (family == nullptr) family = by_architecture(config);
  const bool hybrid = names_recurrent_layers(config);
  if (family == nullptr && hybrid && !type.empty()) family = &kUnknownHybrid;
  Fields c(config, where);
  if (family == nullptr) {
    if (type.empty()) {
      c.fail(fmt::format("there is no field 'model_type' that names the family; known: {}",
                         fmt::join(family_names(), ", ")));
    }
    c.fail(fmt::format("model_type '{}' is not known; {}", shorten_middle(one_line(type), 40),
                       nearest_hint(type, family_names())));
  }
  model.family = type.empty() ? family->model_type : type;
  c.name_family(shorten_middle(one_line(model.family), 40));
  model.name = c.text("_name_or_path");
  model.layers = c.small("num_hidden_layers", "layers", 4096);
  read_heads(c, *family, model);
  if (c.has("max_position_embeddings"))
    model.max_context = c.count("max_position_embeddings", "most tokens", kMostTokens);

  const auto n = static_cast<std::size_t>(model.layers);
  Layers layers{std::vector(n, Mixer::attention), std::vector(n, Block::dense),
                std::vector<Count>(n, 0)};
  read_mixers(c, *family, layers);
  std::vector<Count> windows;
  for (std::size_t l = 0; l < n; ++l) {
    if (layers.mixers[l] != Mixer::attention) continue;
    model.layer_ids.push_back(static_cast<int>(l));
    windows.push_back(layers.windows[l]);
  }
  if (model.layer_ids.empty()) c.fail("no layer is attention: there is no KV cache to size");
  if (std::any_of(windows.begin(), windows.end(), [](Count w) { return w > 0; }))
    model.sliding_window = windows;
  model.state_bytes = state_bytes(c, *family, layers);
  if (family->experts == Experts::gpt_oss) {
    model.notes.emplace_back("attention sinks are one learned logit a query head: they hold no KV");
  }
  // The KV cache does not depend on these: they are refused where they are asked for.
  try {
    model.weights.dtype = checkpoint_dtype(c);
    read_blocks(c, *family, layers);
    count_weights(c, *family, layers, model, model.weights);
  } catch (const ConfigError& e) {
    model.weights.groups.clear();
    model.weights.refusal = e.what();
  }
  return model;
}

}  // namespace
}  // namespace kvspan::config

namespace kvspan {

ModelGeometry read_model_config(const std::string& text, const std::string& where) {
  return config::read(text, where);
}

}  // namespace kvspan
