// SPDX-License-Identifier: Apache-2.0
// Synthetic qkv traces with named structure. The logit of row i and key j is a sum of channels,
// each in a subspace of its own (formulas and figures: synth/README.md):
//   z_ij = locality(i - j) + sink + hitters + content + topic + needle
// Every vector depends on (seed, profile, layer, token) only: it is computed alone, so that traces
// of any length stream with bounded memory, and its bits do not depend on threads or machine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/trace/trace.h"

namespace kvspan::tracegen {

inline constexpr std::int64_t kSynthSinks = 4;  // the first keys

// What one query head does. Strengths are standard deviations of a logit, in nats.
struct HeadProfile {
  std::optional<double> sink = {};  // mass on the first four keys; none: their logit is 0
  std::vector<double> locality =
      {};              // logit at distances 0, 1, 2, 4, 8, ...: linear in log2 between,
                       // constant beyond; empty: none
  double hitters = 0;  // of a key, for all rows
  double content = 0;  // of a (row, key) pair: what this row looks for
  double topics = 0;   // logit of a key of the row's own topic
  double spread = 0;   // of the sink's logit from row to row
  std::optional<double> needle =
      {};  // mass on a needle while it is asked for; none: not looked for
};

struct LayerProfile {
  std::vector<HeadProfile> heads;  // query head h is heads[h % size]
  // Keys share a component along the hitter channel: the more attended a key, the shorter
  // (> 0, as in trained models) or longer (< 0) it is; see synth/README.md.
  double key_common = 3;
};

// A kind of head for profiles that draw their heads: each number uniform in [first, second].
struct HeadKind {
  std::string name;
  double share = 1;  // of the heads, relative
  using Range = std::pair<double, double>;
  std::optional<Range> sink, needle;
  Range decay{}, hitters{}, content{}, topics{}, spread{};  // locality: -decay * ln(1 + distance)
};

struct SynthProfile {
  std::string name, description;
  double key_common = 3;             // of drawn layers
  std::vector<HeadKind> kinds;       // either these,
  std::vector<LayerProfile> layers;  // or these: layer l is layers[l % size]
};

// Errors: ConfigError naming the key, what was found and what was expected.
[[nodiscard]] SynthProfile parse_profile(std::string_view text, const std::string& name);
[[nodiscard]] nlohmann::json to_json(const SynthProfile& profile);
[[nodiscard]] const std::vector<SynthProfile>& built_in_profiles();
// A built-in name, or a path that ends in .json. Errors: ConfigError.
[[nodiscard]] SynthProfile find_profile(const std::string& name_or_path);

// Where things are in the sequence. Questions and answers: rows that look for needle k are the
// question span k, and the k-th of equal parts of the decode rows.
struct SynthPlan {
  struct Topic {
    std::int64_t begin = 0;  // of the segment, which ends where the next begins
    int id = 0;              // a topic may return
  };
  std::vector<Span> turns, needles, questions;
  std::vector<Topic> topics;
};

struct SynthOptions {
  std::int64_t tokens = 4096;
  std::int64_t prompt_tokens = 0;  // 0: 15/16 of the tokens
  int layers = 4;
  std::vector<int> layer_ids = {};  // default 0, 1, ...
  int model_layers = 0;             // 0: layers
  int query_heads = 8, kv_heads = 2, head_dim = 64;
  bool values = true;
  std::uint64_t seed = 1;
  int needles = 0, turns = 0, topics = 0;  // of a plan that is drawn
};

// The options complete. Errors: ConfigError on shapes without meaning.
[[nodiscard]] SynthOptions checked(SynthOptions options);
// Errors: ConfigError when the prompt is too short for what is asked.
[[nodiscard]] SynthPlan draw_plan(const SynthOptions& options);

// One layer: calibrated when it is made (gains of sinks and needles by bisection on sampled rows).
class SynthLayer {
 public:
  // `layer` counts stored layers; its random numbers are those of layer_ids[layer].
  SynthLayer(const SynthOptions& options, const SynthPlan& plan, const SynthProfile& profile,
             int layer);
  ~SynthLayer();
  SynthLayer(SynthLayer&&) noexcept;

  // Vectors of one token: q [query_heads, head_dim], k [kv_heads, head_dim], v like k.
  void token(std::int64_t token, std::span<float> q, std::span<float> k, std::span<float> v) const;
  [[nodiscard]] std::int32_t token_id(std::int64_t token) const;  // 0: first, 1: turn, else a word
  [[nodiscard]] const LayerProfile& profile() const;              // after the draw

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

// Writes a trace, F16, atomically, one layer and a block of tokens at a time. `tick` is told the
// share that is done and may throw. Memory: a block of 1,024 tokens, and some MiB of calibration.
void write_synth(const SynthOptions& options, const SynthPlan& plan, const SynthProfile& profile,
                 const std::filesystem::path& path, const std::function<void(double)>& tick = {});
// The same trace in memory, of the given stored layers.
[[nodiscard]] Trace synth_trace(const SynthOptions& options, const SynthPlan& plan,
                                const SynthProfile& profile);

}  // namespace kvspan::tracegen
