// SPDX-License-Identifier: Apache-2.0
// KIVI: keys in a few bits per channel, values in a few bits per token, the newest in full
// precision.
// Keys: groups of `group` consecutive entries in every channel; they wait in full precision until
// `residual` of them have come together, and then go all at once. Values: groups of `group`
// channels of one token; beyond the newest `residual` one leaves full precision per row. The rows
// of a pass attend before anything of the pass is rounded: the whole prompt, unless it comes in
// chunks.
// Source: Liu et al., arXiv 2402.02750; code jy-yuan/KIVI (models/llama_kivi.py,
// quant/new_pack.py).
//
// Composed with eviction, "consecutive" is the order of the survivors at the time of the flush, and
// an entry that leaves frees its share of its group at once (a packed group would wait for the
// last).
#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/quantise.h"

namespace kvspan::policies {
namespace {

struct KiviSettings {
  int bits = 2;
  std::int64_t group = 32;
  std::int64_t residual = 128;
};

// representations 1, 2, 3: keys, values, both are quantised
class KiviStore final : public Store {
 public:
  KiviStore(const KiviSettings& settings, const LayerShape& shape)
      : settings_(settings),
        keys_below_(index(shape.heads), 0),
        values_below_(index(shape.heads), 0) {}

  void age(const View& view, Decision& out) override {
    for (int head = 0; head < view.shape().heads; ++head) age_head(view, head, out);
  }

 private:
  void age_head(const View& view, int head, Decision& out) {
    TokenIndex& keys_below = keys_below_[index(head)];
    TokenIndex& values_below = values_below_[index(head)];
    const TokenIndex old_keys = keys_below;
    const TokenIndex old_values = values_below;
    const Alive alive(view, head, out);
    const auto keys = alive.from(keys_below);
    const auto count = static_cast<std::int64_t>(keys.size());
    const auto flushed = keys.first(index(count / settings_.residual * settings_.residual));
    const auto values = alive.from(values_below);
    const auto left =
        values.first(index(std::max<std::int64_t>(0, std::ssize(values) - settings_.residual)));
    if (!flushed.empty()) keys_below = flushed.back() + 1;
    if (!left.empty()) values_below = left.back() + 1;
    const auto held = [](TokenIndex t, TokenIndex k, TokenIndex v) {
      return (t < k ? 1 : 0) + (t < v ? 2 : 0);
    };
    for (const TokenIndex t : alive.from(std::min(old_keys, old_values))) {
      const int now = held(t, keys_below, values_below);
      if (now == 0) break;
      if (now != held(t, old_keys, old_values))
        out.changes.push_back({view.pass().end, head, t, now});
    }
    if (!view.measures_output()) return;
    for (std::size_t i = 0; i < flushed.size(); i += index(settings_.group))
      rewrite_keys(view, head, flushed.subspan(i, index(settings_.group)), out);
    for (const TokenIndex t : left) {
      Rewrite rewrite{head, t, {}, view.value(head, t)};
      round_trip_groups(rewrite.v, settings_.bits, settings_.group);
      out.rewrites.push_back(std::move(rewrite));
    }
  }

  void rewrite_keys(const View& view, int head, std::span<const TokenIndex> group,
                    Decision& out) const {
    const std::size_t first = out.rewrites.size();
    for (const TokenIndex t : group) out.rewrites.push_back({head, t, view.key(head, t), {}});
    std::vector<float> channel(group.size());
    for (std::size_t c = 0; c < index(view.shape().k_dim); ++c) {
      for (std::size_t i = 0; i < group.size(); ++i) channel[i] = out.rewrites[first + i].k[c];
      round_trip(channel, settings_.bits);
      for (std::size_t i = 0; i < group.size(); ++i) out.rewrites[first + i].k[c] = channel[i];
    }
  }

  KiviSettings settings_;
  std::vector<TokenIndex> keys_below_, values_below_;  // [heads] older survivors are quantised
};

// A group must divide the value's channels, and give every entry whole bytes of key scales.
bool fits(std::int64_t group, std::int64_t residual, const Geometry& g) {
  return residual % group == 0 && 4 * g.k_dim % group == 0 &&
         (g.v_dim <= group || g.v_dim % group == 0);
}

KiviSettings read_settings(Arguments& arguments, const Geometry& geometry, Recipe& recipe) {
  KiviSettings s{arguments.is("bits", "2") ? 2 : 4, arguments.count("group"),
                 arguments.count("residual")};
  const bool keep_group = arguments.given("group") || arguments.given("residual");
  if (keep_group && s.residual % s.group != 0) {
    throw ConfigError(fmt::format(
        "kivi(residual): found {}, expected a multiple of group={}; nearest: {}", s.residual,
        s.group, std::max(s.group, (s.residual + s.group / 2) / s.group * s.group)));
  }
  std::int64_t group = s.group;
  while (group > 1 && !fits(group, s.residual, geometry)) --group;
  if (group == s.group) return s;
  if (arguments.given("group")) {
    throw ConfigError(
        fmt::format("kivi(group): found {}, expected a number that divides head_dim={} and "
                    "4 x head_dim (whole bytes an entry); nearest: {}",
                    s.group, geometry.v_dim, group));
  }
  recipe.notes.push_back(
      fmt::format("group={} in place of {}: head_dim is {}", group, s.group, geometry.k_dim));
  s.group = group;
  arguments.set("group", std::to_string(group));
  return s;
}

}  // namespace

PolicyEntry kivi() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "kivi";
  entry.kind = MethodKind::quantisation;
  entry.summary = "keys per channel and values per token in 2 or 4 bits, the newest in full";
  entry.source = "Liu et al. 2024, arXiv 2402.02750; code jy-yuan/KIVI";
  entry.evidence = "code read";
  entry.differs =
      "2 bits are recommended for MHA, 4 for GQA; scale and zero are fp16, as in the code";
  entry.needs = "nothing; k and v for the error of the output";
  entry.parameters = {
      {.name = "bits",
       .kind = Kind::word,
       .fallback = "2",
       .unit = "bits",
       .help = "of keys and values",
       .choices = {"2", "4"}},
      {.name = "group",
       .fallback = "32",
       .unit = "entries or channels",
       .help = "that share a scale and a zero; a head of fewer channels is one group",
       .range = {1, 1e6}},
      {.name = "residual",
       .fallback = "128",
       .unit = "tokens",
       .help = "newest, in full precision",
       .range = {1, 1e9}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    const KiviSettings s = read_settings(arguments, geometry, recipe);
    // Keys: codes, and per `group` entries a scale and a zero (2 + 2 B) of every channel.
    const std::int64_t key = geometry.k_dim * geometry.kv_bytes;
    const std::int64_t value = geometry.v_dim * geometry.kv_bytes;
    const std::int64_t key_packed =
        (geometry.k_dim * s.bits + 7) / 8 + geometry.k_dim * 4 / s.group;
    const std::int64_t value_packed = packed_bytes(geometry.v_dim, s.bits, s.group);
    Storing store;
    store.make = [s](const LayerShape& shape) { return std::make_unique<KiviStore>(s, shape); };
    store.representations = {{fmt::format("int{} keys", s.bits), key_packed + value, 0},
                             {fmt::format("int{} values", s.bits), key + value_packed, 0},
                             {fmt::format("int{}", s.bits), key_packed + value_packed, 0}};
    // T entries: R floor(T / R) keys and max(0, T - R) values are quantised.
    const auto bytes = [=](TokenCount entries, TokenCount full_keys) {
      const TokenCount full_values = std::min(entries, s.residual);
      return full_keys * key + (entries - full_keys) * key_packed + full_values * value +
             (entries - full_values) * value_packed;
    };
    store.payload = [=](TokenCount entries, const Pass&) {
      return bytes(entries, entries % s.residual);
    };
    // Under eviction fewer than R keys wait, but how many of them are left, content decides.
    if (key_packed <= key && value_packed <= value) {
      store.bound = [=](TokenCount entries, const Pass&) {
        return bytes(entries, std::min(entries, s.residual - 1));
      };
    }
    store.exact = Storing::Exact::without_evictions;
    store.alters_vectors = true;
    store.entry_bytes = key_packed + value_packed;
    recipe.store = own(std::move(store));
    // The saw-tooth of the keys is not monotone in the residual.
    recipe.knob = Knob{"residual", 1, std::max<TokenCount>(1, geometry.tokens / s.group), false,
                       [s](TokenCount groups) { return std::to_string(groups * s.group); }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
