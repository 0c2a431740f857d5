// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json (model_config.cpp, model_weights.cpp): families, typed
// access to the fields, and the layers that they describe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/models/model_geometry.h"

namespace kvspan::config {

using Count = std::int64_t;

constexpr Count kMostTokens = Count{1} << 40;

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

[[nodiscard]] std::vector<std::string> family_names();

// ---- Fields -------------------------------------------------------------------------------------

// What was found, short enough for a line.
[[nodiscard]] std::string shown(const nlohmann::json& value);

// The models of the built-in list of a family, for those whose files leave fields out.
[[nodiscard]] std::string built_in(const std::string& model_type);

// Errors: ConfigError naming the file and the field.
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

// ---- Of model_weights.cpp -----------------------------------------------------------------------

// Bytes of the recurrent states of one request, in all layers without KV.
[[nodiscard]] Count state_bytes(const Fields& c, const Family& family, const Layers& layers);
// The dtype that the checkpoint's matrices are stored in; empty where the file leaves it open.
[[nodiscard]] std::string checkpoint_dtype(const Fields& c);
void count_weights(const Fields& c, const Family& family, const Layers& layers,
                   const ModelGeometry& model, ModelWeights& out);

}  // namespace kvspan::config
