// SPDX-License-Identifier: Apache-2.0
// From a Hugging Face config.json to the sizes of a model. Each family is a row of kFamilies: what
// its modelling code fixes beyond the fields. Layers are then counted by what they mix tokens with
// (attention, a recurrence, a convolution) and by what follows (a dense block, experts, nothing).
#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/error.h"
#include "sim/known_models.h"
#include "sim/model_geometry.h"
#include "sim/spec.h"
#include "sim/terminal_chart.h"

namespace kvspan {
namespace {

using Count = std::int64_t;
using Split = WeightGroup::Split;
using Kind = WeightGroup::Kind;

// ---- Families -----------------------------------------------------------------------------------

enum class Windows : std::uint8_t {
  none,
  all,         // sliding_window, null for none
  required,    // the same, and an absent field does not mean null
  from_layer,  // use_sliding_window, from layer max_window_layers on
  every_other,
  five_to_one  // sliding_window_pattern - 1 sliding layers, then a full one
};
enum class Bias : std::uint8_t { none, qkv, by_field };
enum class Experts : std::uint8_t {
  none,
  mixtral,
  qwen,
  qwen_shared,
  deepseek_v2,
  deepseek_v3,
  gpt_oss,
  jamba,
  granite,
  nemotron
};
enum class Mixing : std::uint8_t {
  attention,
  latent,
  jamba,
  delta,     // gated delta net beside gated attention
  granite,   // Mamba 2
  nemotron,  // Mamba 2, one mixer or one feed-forward block a layer
  lfm2,      // short convolutions
  unknown    // layer_types tells what holds KV; nobody tells how large the weights are
};

struct Family {
  const char* model_type;
  const char* architecture;
  bool tied;  // what an absent tie_word_embeddings means
  int norms;  // vectors of hidden_size in a layer
  Bias bias;
  bool qk_norm;
  Windows windows;
  Experts experts;
  Mixing mixing;
};

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

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const Family& f : kFamilies) {
    if (*f.model_type != '\0') names.emplace_back(f.model_type);
  }
  return names;
}

// ---- Fields -------------------------------------------------------------------------------------

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

class Fields {
 public:
  Fields(nlohmann::json object, std::string where)
      : object_(std::move(object)), where_(std::move(where)) {}

  void name_family(const std::string& model_type) { family_ = model_type; }
  [[nodiscard]] bool has(const char* key) const {
    return object_.contains(key) && !object_[key].is_null();
  }
  [[nodiscard]] const nlohmann::json& at(const char* key) const { return object_[key]; }

  [[noreturn]] void fail(const std::string& what) const {
    throw ConfigError(fmt::format("'{}'{}: {}", one_line(where_),
                                  family_.empty() ? "" : fmt::format(" ({})", family_), what));
  }
  [[noreturn]] void wrong(const char* key, const std::string& expected) const {
    fail(fmt::format("'{}' is {}, expected {}", key, shown(object_[key]), expected));
  }
  void require(const char* key, const std::string& meaning) const {
    if (!object_.contains(key)) {
      const std::string known = built_in(family_);
      fail(fmt::format("there is no field '{}' ({}), and it is not guessed{}", key, meaning,
                       known.empty() ? "" : fmt::format("; built in: {}", known)));
    }
  }

  [[nodiscard]] Count count(const char* key, const char* meaning, Count highest = 1000000,
                            Count lowest = 1) const {
    require(key, fmt::format("{}, a whole number", meaning));
    const nlohmann::json& value = object_[key];
    const std::string expected = fmt::format("{}, {} to {}", meaning, lowest, highest);
    if (!value.is_number_integer()) wrong(key, expected);
    // Beyond 2^63 a number is unsigned, and would wrap.
    if (value.is_number_unsigned() &&
        value.get<std::uint64_t>() > static_cast<std::uint64_t>(highest))
      wrong(key, expected);
    const Count found = value.get<Count>();
    if (found < lowest || found > highest) wrong(key, expected);
    return found;
  }
  [[nodiscard]] int small(const char* key, const char* meaning, int highest) const {
    return static_cast<int>(count(key, meaning, highest));
  }
  // What products of several are formed of.
  [[nodiscard]] Count width(const char* key, const char* meaning) const {
    return count(key, meaning, 65536);
  }
  [[nodiscard]] bool flag(const char* key, bool absent) const {
    if (!has(key)) return absent;
    if (!object_[key].is_boolean()) wrong(key, "true or false");
    return object_[key].get<bool>();
  }
  [[nodiscard]] double real(const char* key, const char* meaning) const {
    require(key, meaning);
    if (!object_[key].is_number()) wrong(key, meaning);
    const double found = object_[key].get<double>();
    const bool in_range = found > 0 && found < 1000;
    if (!in_range) wrong(key, fmt::format("{}, above 0", meaning));
    return found;
  }
  // Empty where the field is absent.
  [[nodiscard]] std::string text(const char* key) const {
    if (!has(key)) return "";
    if (!object_[key].is_string()) wrong(key, "a text");
    return object_[key].get<std::string>();
  }

 private:
  nlohmann::json object_;
  std::string where_;
  std::string family_;
};

// ---- Layers -------------------------------------------------------------------------------------

enum class Mixer : std::uint8_t { none, attention, mamba1, mamba2, delta, convolution };
enum class Block : std::uint8_t { none, dense, experts };

struct Layers {
  std::vector<Mixer> mixers;
  std::vector<Block> blocks;
  std::vector<Count> windows;  // 0: none
  [[nodiscard]] Count of(Mixer m) const { return std::count(mixers.begin(), mixers.end(), m); }
  [[nodiscard]] Count of(Block b) const { return std::count(blocks.begin(), blocks.end(), b); }
};

constexpr const char* kWindowMeaning = "tokens that a sliding layer sees";
constexpr Count kMostTokens = Count{1} << 40;

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

// ---- Recurrent states and mixers without KV -----------------------------------------------------

// All of them are a projection in, a short convolution, and a projection out; `state` is what a
// request keeps between tokens.
struct Recurrence {
  Count projected = 0;            // columns of the projection in
  Count convolved = 0, taps = 1;  // channels and taps of the convolution
  bool convolution_bias = false;
  bool projection_bias = false;
  Count out = 0;    // rows of the projection out
  Count small = 0;  // decays, norms and the like
  Count state = 0;  // elements of the recurrence
};

Recurrence mamba2(const Fields& c, const Family& family) {
  const bool nemotron = family.mixing == Mixing::nemotron;
  const char* heads_key = nemotron ? "mamba_num_heads" : "mamba_n_heads";
  const char* width_key = nemotron ? "mamba_head_dim" : "mamba_d_head";
  const Count heads = c.width(heads_key, "heads of a Mamba layer");
  Count width = 0;
  if (c.text(c.has(width_key) && c.at(width_key).is_string() ? width_key : "") == "auto") {
    width = c.count("mamba_expand", "inner width / hidden_size", 1000) *
            c.count("hidden_size", "width of the model") / heads;
  } else {
    width = c.width(width_key, "width of a Mamba head");
  }
  const Count inner = heads * width;
  const Count groups = c.width(nemotron ? "n_groups" : "mamba_n_groups", "groups of B and C");
  const Count state = c.width(nemotron ? "ssm_state_size" : "mamba_d_state", "states a channel");
  Recurrence r;
  r.convolved = inner + 2 * groups * state;
  r.projected = inner + r.convolved + heads;
  r.taps = c.width(nemotron ? "conv_kernel" : "mamba_d_conv", "taps of the convolution");
  r.convolution_bias = c.flag(nemotron ? "use_conv_bias" : "mamba_conv_bias", true);
  r.projection_bias = c.flag(nemotron ? "use_bias" : "mamba_proj_bias", false);
  r.out = inner;
  r.small = 3 * heads + inner;  // dt_bias, A, D; the norm
  r.state = inner * state;
  return r;
}

Recurrence recurrence_of(const Fields& c, const Family& family, Mixer mixer) {
  Recurrence r;
  const auto hidden = [&] { return c.count("hidden_size", "width of the model"); };
  if (mixer == Mixer::mamba2) return mamba2(c, family);
  if (mixer == Mixer::mamba1) {
    const Count inner = c.count("mamba_expand", "inner width / hidden_size", 1000) * hidden();
    const Count state = c.width("mamba_d_state", "states a channel");
    const Count rank = c.width("mamba_dt_rank", "rank of the step's projection");
    r.projected = 2 * inner;
    r.convolved = inner;
    r.taps = c.width("mamba_d_conv", "taps of the convolution");
    r.convolution_bias = c.flag("mamba_conv_bias", true);
    r.projection_bias = c.flag("mamba_proj_bias", false);
    r.out = inner;
    // x_proj, dt_proj and its bias, A, D, and the norms of dt, B and C
    r.small = inner * (rank + 2 * state) + rank * inner + inner + inner * state + inner + rank +
              2 * state;
    r.state = inner * state;
  } else if (mixer == Mixer::delta) {
    const Count key_heads = c.width("linear_num_key_heads", "key heads of a linear layer");
    const Count value_heads = c.width("linear_num_value_heads", "value heads of a linear layer");
    const Count key = c.width("linear_key_head_dim", "width of a key head");
    const Count value = c.width("linear_value_head_dim", "width of a value head");
    r.convolved = 2 * key_heads * key + value_heads * value;
    r.projected = r.convolved + value_heads * value + 2 * value_heads;
    r.taps = c.width("linear_conv_kernel_dim", "taps of the convolution");
    r.out = value_heads * value;
    r.small = 2 * value_heads + value;  // dt_bias, A; the norm
    r.state = value_heads * key * value;
  } else {
    r.convolved = hidden();
    r.projected = 3 * hidden();
    r.taps = c.width("conv_L_cache", "taps of the convolution");
    r.convolution_bias = r.projection_bias = c.flag("conv_bias", false);
    r.out = hidden();
  }
  return r;
}

constexpr std::array<Mixer, 4> kRecurrent{Mixer::mamba1, Mixer::mamba2, Mixer::delta,
                                          Mixer::convolution};

Count state_bytes(const Fields& c, const Family& family, const Layers& layers) {
  Count bytes = 4;
  for (const char* key : {"mamba_ssm_cache_dtype", "mamba_ssm_dtype"}) {
    const std::string dtype = c.text(key);
    if (dtype == "bfloat16" || dtype == "float16") bytes = 2;
  }
  Count sum = 0;
  for (const Mixer mixer : kRecurrent) {
    if (layers.of(mixer) == 0) continue;
    const Recurrence r = recurrence_of(c, family, mixer);
    sum += layers.of(mixer) * (r.convolved * (r.taps - 1) * 2 + r.state * bytes);
  }
  return sum;
}

// ---- Weights ------------------------------------------------------------------------------------

class Weights {
 public:
  Weights(const Fields& fields, ModelWeights& out) : fields_(fields), out_(out) {}

  // Adds the product of `factors` to a group.
  void add(const char* group, Split split, Kind kind, std::initializer_list<Count> factors) {
    Count product = 1;
    bool overflow = false;
    for (const Count f : factors) overflow |= __builtin_mul_overflow(product, f, &product);
    total_ += static_cast<double>(product);
    if (overflow || total_ > 1e15) fields_.fail("more than 10^15 parameters: no such model");
    for (WeightGroup& g : out_.groups) {
      if (g.name == group && g.split == split && g.kind == kind) {
        g.parameters += product;
        return;
      }
    }
    if (product > 0) out_.groups.push_back({group, product, split, kind});
  }
  void widen(Count inner) { out_.inner = std::max(out_.inner, inner); }

 private:
  const Fields& fields_;
  ModelWeights& out_;
  double total_ = 0;
};

void count_attention(const Fields& c, const Family& family, const ModelGeometry& m, Count layers,
                     Weights& w) {
  const Count hidden = c.count("hidden_size", "width of the model");
  const Count q = Count{m.query_heads} * m.head_dim;
  const Count kv = Count{m.kv_heads} * m.head_dim;
  const Count gated = family.mixing == Mixing::delta ? 2 : 1;  // Qwen3-Next gates its output
  const bool by_field = family.bias == Bias::by_field && c.flag("attention_bias", false);
  w.add("attention", Split::sharded, Kind::matrix, {layers, hidden, q, gated + 1});
  w.add("attention", Split::kv_heads, Kind::matrix, {layers, hidden, kv, 2});
  if (by_field || family.bias == Bias::qkv) {
    w.add("attention", Split::sharded, Kind::kept, {layers, q, gated});
    w.add("attention", Split::kv_heads, Kind::kept, {layers, kv, 2});
  }
  if (by_field) w.add("attention", Split::replicated, Kind::kept, {layers, hidden});
  if (family.qk_norm) w.add("norms", Split::replicated, Kind::kept, {layers, m.head_dim, 2});
  if (family.experts == Experts::gpt_oss)  // a learned sink logit a head
    w.add("attention", Split::sharded, Kind::kept, {layers, m.query_heads});
  w.widen((gated + 1) * q + 2 * kv);
}

void count_latent(const Fields& c, const ModelGeometry& m, Count layers, Weights& w) {
  const Count hidden = c.count("hidden_size", "width of the model");
  const Count heads = m.query_heads;
  const Count rank = c.count("kv_lora_rank", "width of the latent");
  const Count rope = c.count("qk_rope_head_dim", "rotary width of a key");
  const Count nope = c.count("qk_nope_head_dim", "width of a key without rotation");
  const Count value = c.count("v_head_dim", "width of a value head");
  const bool bias = c.flag("attention_bias", false);
  c.require("q_lora_rank", "rank of the query projection; null for none");
  if (c.has("q_lora_rank")) {
    const Count q_rank = c.count("q_lora_rank", "rank of the query projection");
    w.add("attention", Split::replicated, Kind::matrix, {layers, hidden, q_rank});
    w.add("attention", Split::sharded, Kind::matrix, {layers, q_rank, heads, nope + rope});
    w.add("norms", Split::replicated, Kind::kept, {layers, q_rank});
    if (bias) w.add("attention", Split::replicated, Kind::kept, {layers, q_rank});
  } else {
    w.add("attention", Split::sharded, Kind::matrix, {layers, hidden, heads, nope + rope});
  }
  w.add("attention", Split::replicated, Kind::matrix, {layers, hidden, rank + rope});
  w.add("attention", Split::sharded, Kind::matrix, {layers, rank, heads, nope + value});
  w.add("attention", Split::sharded, Kind::matrix, {layers, heads, value, hidden});
  w.add("norms", Split::replicated, Kind::kept, {layers, rank});
  if (bias) w.add("attention", Split::replicated, Kind::kept, {layers, rank + rope + hidden});
  w.widen(heads * (2 * (nope + rope) + 2 * value));
}

void count_recurrences(const Fields& c, const Family& family, const Layers& layers, Weights& w) {
  for (const Mixer mixer : kRecurrent) {
    const Count n = layers.of(mixer);
    if (n == 0) continue;
    const Count hidden = c.count("hidden_size", "width of the model");
    const Recurrence r = recurrence_of(c, family, mixer);
    w.add("recurrent", Split::sharded, Kind::matrix, {n, hidden, r.projected + r.out});
    w.add("recurrent", Split::sharded, Kind::kept,
          {n, r.convolved, r.taps + (r.convolution_bias ? 1 : 0)});
    w.add("recurrent", Split::sharded, Kind::kept, {n, r.small});
    if (r.projection_bias)
      w.add("recurrent", Split::sharded, Kind::kept, {n, r.projected + hidden});
    w.widen(r.projected + r.out);
  }
}

// LFM2 states a width that its code then changes.
Count lfm2_width(const Fields& c) {
  const char* key = c.has("block_ff_dim") ? "block_ff_dim" : "intermediate_size";
  Count width = c.count(key, "width of the feed-forward block");
  if (!c.flag("block_auto_adjust_ff_dim", true)) return width;
  width = 2 * width / 3;
  const double factor = c.real("block_ffn_dim_multiplier", "factor of the feed-forward width");
  const Count multiple = c.count("block_multiple_of", "what the width is rounded up to");
  width = static_cast<Count>(factor * static_cast<double>(width));
  return (width + multiple - 1) / multiple * multiple;
}

void count_dense(const Fields& c, const Family& family, Count layers, Weights& w) {
  const Count hidden = c.count("hidden_size", "width of the model");
  const Count width = family.mixing == Mixing::lfm2 ? lfm2_width(c)
                      : family.experts == Experts::granite
                          ? c.count("shared_intermediate_size", "width of the feed-forward block")
                          : c.count("intermediate_size", "width of the feed-forward block");
  const Count matrices = family.mixing == Mixing::nemotron ? 2 : 3;  // no gate
  w.add("feed-forward", Split::sharded, Kind::matrix, {layers, hidden, width, matrices});
  if (c.flag("mlp_bias", false)) {
    w.add("feed-forward", Split::sharded, Kind::kept, {layers, width, matrices - 1});
    w.add("feed-forward", Split::replicated, Kind::kept, {layers, hidden});
  }
  w.widen(matrices * width);  // gate, up, and their product
}

void count_experts(const Fields& c, const Family& family, Count layers, Weights& w) {
  const Experts e = family.experts;
  const Count hidden = c.count("hidden_size", "width of the model");
  const bool deepseek = e == Experts::deepseek_v2 || e == Experts::deepseek_v3;
  const bool qwen = e == Experts::qwen || e == Experts::qwen_shared;
  const Count experts = c.count(deepseek || e == Experts::nemotron ? "n_routed_experts"
                                : qwen || e == Experts::jamba      ? "num_experts"
                                                                   : "num_local_experts",
                                "experts of a layer");
  const Count width = c.count(
      deepseek || qwen || e == Experts::nemotron ? "moe_intermediate_size" : "intermediate_size",
      "width of an expert");
  const Count active = c.count("num_experts_per_tok", "experts that a token uses");
  const Count matrices = e == Experts::nemotron ? 2 : 3;
  w.add("experts", Split::sharded, Kind::experts, {layers, experts, hidden, width, matrices});
  w.add("router", Split::replicated, Kind::kept, {layers, experts, hidden});
  Count shared = 0;
  if (e == Experts::qwen_shared) {
    shared = c.count("shared_expert_intermediate_size", "width of the shared expert");
    w.add("router", Split::replicated, Kind::kept, {layers, hidden});  // the shared expert's gate
  } else if (deepseek && c.has("n_shared_experts")) {
    shared = width * c.count("n_shared_experts", "shared experts", 1000000, 0);
  } else if (e == Experts::granite) {
    shared = c.count("shared_intermediate_size", "width of the shared expert");
  } else if (e == Experts::nemotron) {
    shared = c.count("n_shared_experts", "shared experts", 1000000, 0) *
             c.count("moe_shared_expert_intermediate_size", "width of a shared expert");
  }
  w.add("shared experts", Split::sharded, Kind::matrix, {layers, hidden, shared, matrices});
  if (e == Experts::deepseek_v3 || e == Experts::nemotron)  // the correction that balances load
    w.add("router", Split::replicated, Kind::kept, {layers, experts});
  if (e == Experts::gpt_oss) {
    w.add("experts", Split::sharded, Kind::kept, {layers, experts, 2 * width + hidden});
    w.add("router", Split::replicated, Kind::kept, {layers, experts});
  }
  w.widen(matrices * (active * width + shared));
}

// The dtype that the checkpoint's matrices are stored in; empty where the config leaves it open.
std::string checkpoint_dtype(const Fields& c) {
  if (c.has("quantization_config")) {
    const nlohmann::json& q = c.at("quantization_config");
    const auto word = [&](const char* key) {
      return q.is_object() && q.contains(key) && q[key].is_string() ? q[key].get<std::string>()
                                                                    : std::string();
    };
    const auto is_true = [&](const char* key) {
      return q.is_object() && q.contains(key) && q[key] == true;
    };
    const std::string method = word("quant_method");
    if (method == "fp8" || method == "fbgemm_fp8") return "fp8";
    if (method == "mxfp4") return "mxfp4";
    if ((method == "awq" || method == "gptq") && q.contains("bits"))
      return q["bits"] == 4 ? "int4" : q["bits"] == 8 ? "int8" : "";
    if (method == "bitsandbytes")
      return is_true("load_in_4bit") ? "int4" : is_true("load_in_8bit") ? "int8" : "";
    return "";
  }
  const std::string dtype = c.text(c.has("dtype") ? "dtype" : "torch_dtype");
  if (dtype == "bfloat16") return "bf16";
  if (dtype == "float16") return "fp16";
  if (dtype == "float32") return "fp32";
  return "";
}

void count_weights(const Fields& c, const Family& family, const Layers& layers,
                   const ModelGeometry& model, ModelWeights& out) {
  if (family.mixing == Mixing::unknown)
    c.fail(fmt::format("the weights of this model_type are not known; {}",
                       nearest_hint("", family_names())));
  Weights w(c, out);
  out.hidden = c.count("hidden_size", "width of the model");
  out.vocabulary = c.count("vocab_size", "tokens of the vocabulary", 100000000);
  const Count attention = layers.of(Mixer::attention);
  w.add("embedding", Split::sharded, Kind::kept, {out.vocabulary, out.hidden});
  if (!c.flag("tie_word_embeddings", family.tied))
    w.add("output head", Split::sharded, Kind::kept, {out.vocabulary, out.hidden});
  if (attention > 0 && model.latent) count_latent(c, model, attention, w);
  if (attention > 0 && !model.latent) count_attention(c, family, model, attention, w);
  count_recurrences(c, family, layers, w);
  if (layers.of(Block::dense) > 0) count_dense(c, family, layers.of(Block::dense), w);
  if (layers.of(Block::experts) > 0) count_experts(c, family, layers.of(Block::experts), w);
  w.add("norms", Split::replicated, Kind::kept,
        {Count{model.layers} * family.norms + 1, out.hidden});
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

}  // namespace

Count ModelWeights::parameters() const {
  Count sum = 0;
  for (const WeightGroup& g : groups) sum += g.parameters;
  return sum;
}

ModelGeometry read_model_config(const std::string& text, const std::string& where) {
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

}  // namespace kvspan
