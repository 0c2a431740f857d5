// SPDX-License-Identifier: Apache-2.0
// Quantized pruning: more tokens at lower precision in the same bytes. A pruner keeps 16 / bits
// times the budget after the prompt, and what it keeps is quantised once. Generated entries stay in
// full precision. Alone the pruner is SnapKV with the authors' window of 8; another one is
// composed, as in qpruningkv+h2o.
// Source: Zhang et al., arXiv 2412.12706; code zhzihao/QPruningKV (pyramidkv/quantcache.py).
//
// The budget counts codes only, as the paper does: scales and zeros come on top (1/16 to 1/4), but
// for a budget in bytes, which counts both. The authors quantise keys with HQQ along the channels
// of a token, values along tokens (the library's default axis); here both run along a vector, and
// HQQ's half-quadratic search for the zero is left out. Where their answer reaches its last token
// they quantise the whole cache again; here nothing is quantised twice. Their pruners do not evict
// in decode; a composed one that does goes on doing so.
// "H2O" of their tables is not H2O: column sums of the prompt whose rows read the future outside
// the last 8 x 8 block, with a window of 8, nothing in decode. (ThinK's H2O is SnapKV's sums of 32
// rows without pooling; KVCache-Factory's, causal column sums with a window of 8, acts once, too.)
#include <algorithm>
#include <string>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/quantise.h"

namespace kvspan::policies {
namespace {

class QuantiseOnce final : public Store {
 public:
  QuantiseOnce(int bits, std::int64_t group) : bits_(bits), group_(group) {}

  void age(const View& view, Decision& out) override {
    if (!view.pass().is_evict_point()) return;
    for (int head = 0; head < view.shape().heads; ++head) {
      const Alive alive(view, head, out);
      for (const TokenIndex t : alive.tokens()) {
        out.changes.push_back({view.pass().end, head, t, 1});
        if (!view.measures_output()) continue;
        Rewrite rewrite{head, t, view.key(head, t), view.value(head, t)};
        round_trip_groups(rewrite.k, bits_, group_);
        round_trip_groups(rewrite.v, bits_, group_);
        out.rewrites.push_back(std::move(rewrite));
      }
    }
  }

 private:
  int bits_;
  std::int64_t group_;
};

// The group as it is used: at most the channels of the longer vector; a shorter one is one group.
std::int64_t read_group(Arguments& arguments, const Geometry& geometry) {
  const std::int64_t wanted = arguments.count("q_group");
  const std::int64_t longest = std::max(geometry.k_dim, geometry.v_dim);
  const auto fits = [&geometry](std::int64_t group) {
    return geometry.k_dim % std::min<std::int64_t>(group, geometry.k_dim) == 0 &&
           geometry.v_dim % std::min<std::int64_t>(group, geometry.v_dim) == 0;
  };
  std::int64_t group = std::min(wanted, longest);
  while (!fits(group)) --group;
  if (group != std::min(wanted, longest) && arguments.given("q_group")) {
    throw ConfigError(fmt::format(
        "qpruningkv(q_group): found {}, expected a number that divides head_dim={}{}; "
        "nearest: {}",
        wanted, geometry.k_dim,
        geometry.v_dim == geometry.k_dim ? std::string()
                                         : fmt::format(" and v_head_dim={}", geometry.v_dim),
        group));
  }
  arguments.set("q_group", std::to_string(group));
  return group;
}

}  // namespace

PolicyEntry qpruningkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "qpruningkv";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "a pruner that keeps 16 / bits times the tokens, quantised, in the same bytes";
  entry.source = "Zhang et al. 2024, arXiv 2412.12706; code zhzihao/QPruningKV";
  entry.evidence = "code read";
  entry.differs =
      "the paper counts no scales, the bytes here do; the code groups keys along a vector and "
      "values along tokens, here both run along a vector; the \"H2O\" of its tables reads future "
      "rows and acts once, +h2o is the real one; the code stores per query head";
  entry.needs = "what the pruner needs; k and v for the error of the output";
  entry.parameters = votes_parameters(8, 7);
  entry.parameters.insert(
      entry.parameters.begin(),
      {{.name = "bits",
        .kind = Kind::word,
        .fallback = "4",
        .unit = "bits",
        .help = "of the kept prompt entries",
        .choices = {"4", "8", "2", "16"}},
       budget_parameter("20%", "entries of 16 bits whose bytes are kept, per layer and KV head"),
       {.name = "q_group",
        .fallback = "64",
        .unit = "channels",
        .help = "that share a scale and a zero; a head of fewer channels is one group",
        .range = {1, 1e6}}});
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const int bits = std::stoi(arguments.text("bits"));
    const std::int64_t group = read_group(arguments, geometry);
    Recipe recipe = budgeted(arguments, geometry, by_default(votes_scoring(arguments)));
    recipe.size_factor = 16.0 / bits;
    recipe.protect = by_default(protect_recent(arguments.count("window")));
    if (bits == 16) return recipe;  // its pruner
    Storing store;
    const std::int64_t full = geometry.entry_bytes();
    const std::int64_t packed =
        packed_bytes(geometry.k_dim, bits, group) + packed_bytes(geometry.v_dim, bits, group);
    store.make = [bits, group](const LayerShape&) {
      return std::make_unique<QuantiseOnce>(bits, group);
    };
    store.representations = {{fmt::format("int{}", bits), packed, 0}};
    store.payload = [full, packed](TokenCount entries, const Pass& pass) {
      const TokenCount generated =
          pass.end < pass.evict_point ? entries : pass.end - pass.evict_point;
      return (entries - generated) * packed + generated * full;
    };
    store.exact = Storing::Exact::without_decode_evictions;
    store.alters_vectors = true;
    store.entry_bytes = packed;
    recipe.store = own(std::move(store));
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
