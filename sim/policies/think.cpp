// SPDX-License-Identifier: Apache-2.0
// ThinK: channels of the keys are pruned once, after the prompt. Per KV head the channels are
// ranked by mean(q^2) over the prompt's last `window` rows and the group, times mean(k^2) over the
// entries that are left; the int(ratio d) lowest go, for every prompt entry but the newest `recent`
// and for no generated one. Values stay whole.
// Source: Xu et al., arXiv 2407.21018; code SalesforceAIResearch/ThinK (one mask per query head, of
// repeated keys); kvpress (presses/think_press.py) has the form for GQA that is used here.
// preset=kvpress prunes all prompt entries. Left out: the variant for values, and ThinK under KIVI.
#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/quantise.h"

namespace kvspan::policies {
namespace {

class PruneChannels final : public Store {
 public:
  PruneChannels(int pruned, RowIndex window, std::int64_t recent)
      : pruned_(pruned), window_(window), recent_(recent) {}

  void age(const View& view, Decision& out) override {
    if (!view.pass().is_evict_point() || pruned_ == 0) return;
    for (int head = 0; head < view.shape().heads; ++head) {
      const Alive alive(view, head, out);
      const auto older = alive.tokens().first(
          index(std::max<std::int64_t>(0, std::ssize(alive.tokens()) - recent_)));
      for (const TokenIndex t : older) out.changes.push_back({view.pass().end, head, t, 1});
      if (!view.measures_output() || older.empty()) continue;
      const std::vector<char> gone = lowest_channels(view, head, alive.tokens());
      for (const TokenIndex t : older) {
        Rewrite rewrite{head, t, view.key(head, t), {}};
        for (std::size_t c = 0; c < gone.size(); ++c) {
          if (gone[c] != 0) rewrite.k[c] = 0;
        }
        out.rewrites.push_back(std::move(rewrite));
      }
    }
  }

 private:
  static void add_squares(const std::vector<float>& x, std::vector<double>& sums) {
    for (std::size_t c = 0; c < x.size(); ++c)
      sums[c] += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  }

  // Sums stand for means: all channels have the same counts.
  std::vector<char> lowest_channels(const View& view, int head,
                                    std::span<const TokenIndex> entries) const {
    const LayerShape& shape = view.shape();
    const RowIndex end = view.pass().end;
    std::vector<double> q(index(shape.k_dim), 0.0);
    std::vector<double> k = q;
    for (int g = 0; g < shape.group(); ++g) {
      for (RowIndex row = end - std::min(window_, end); row < end; ++row)
        add_squares(view.query(head * shape.group() + g, row), q);
    }
    for (const TokenIndex t : entries) add_squares(view.key(head, t), k);
    for (std::size_t c = 0; c < q.size(); ++c) q[c] *= k[c];
    round_sums(q);
    std::vector<std::size_t> order(q.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return q[a] > q[b]; });
    std::vector<char> gone(q.size(), 0);
    for (std::size_t i = q.size() - index(pruned_); i < q.size(); ++i) gone[order[i]] = 1;
    return gone;
  }

  int pruned_;
  RowIndex window_;
  std::int64_t recent_;
};

}  // namespace

PolicyEntry think() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "think";
  entry.kind = MethodKind::channel_pruning;
  entry.summary = "prunes the key channels that matter least to the prompt's last rows";
  entry.source = "Xu et al. 2024, arXiv 2407.21018; code SalesforceAIResearch/ThinK";
  entry.evidence = "code read";
  entry.differs =
      "the reference has one mask per query head, kvpress one per KV head, as here; kvpress "
      "zeroes channels of the newest keys too and saves no byte (preset=kvpress)";
  entry.needs = "nothing; q, k and v for the error of the output";
  entry.parameters = {{.name = "ratio",
                       .kind = Kind::amount,
                       .fallback = "40%",
                       .unit = "% of the channels",
                       .help = "pruned"},
                      {.name = "window",
                       .fallback = "32",
                       .unit = "rows",
                       .help = "last prompt rows whose queries rank",
                       .range = {1, 1e6}},
                      {.name = "recent",
                       .fallback = "32",
                       .unit = "entries",
                       .help = "newest prompt entries, left whole"},
                      {.name = "preset",
                       .kind = Kind::word,
                       .fallback = "paper",
                       .help = "kvpress: every prompt entry is pruned (recent=0)",
                       .choices = {"paper", "kvpress"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    if (arguments.is("preset", "kvpress")) {
      if (arguments.given("recent") && arguments.count("recent") != 0) {
        throw ConfigError("think(recent): preset=kvpress prunes all prompt entries, recent=0");
      }
      arguments.set("recent", "0");
    }
    (void)share_argument(arguments, "ratio");
    const std::int64_t pruned = floor_share(arguments.amount("ratio"), geometry.k_dim);
    if (pruned >= geometry.k_dim) {
      throw ConfigError(fmt::format(
          "think(ratio): {} prunes all {} channels; at least one must stay: at most {:.3g}%",
          arguments.text("ratio"), geometry.k_dim, 100.0 - 100.0 / geometry.k_dim));
    }
    const RowIndex window = arguments.count("window");
    const std::int64_t recent = arguments.count("recent");
    const std::int64_t full = geometry.entry_bytes();
    const std::int64_t less = full - pruned * geometry.kv_bytes;
    Recipe recipe;
    Storing store;
    store.make = [pruned, window, recent](const LayerShape&) {
      return std::make_unique<PruneChannels>(static_cast<int>(pruned), window, recent);
    };
    store.representations = {{"pruned", less, 0}};
    store.payload = [=](TokenCount entries, const Pass& pass) {
      if (pass.end < pass.evict_point) return entries * full;
      const TokenCount kept = entries - (pass.end - pass.evict_point);  // of the prompt
      const TokenCount older = std::max<TokenCount>(0, kept - recent);
      return older * less + (entries - older) * full;
    };
    store.exact = Storing::Exact::without_decode_evictions;
    store.alters_vectors = true;
    store.entry_bytes = less;
    recipe.store = own(std::move(store));
    // The mask, from the prompt's end on: a bool a channel as in the authors' code (an eighth of it
    // if packed).
    const std::int64_t mask = std::int64_t{geometry.layers()} * geometry.kv_heads * geometry.k_dim;
    recipe.charge.during = [mask, at = geometry.evict_point](RowIndex row) {
      return row >= at ? mask : 0;
    };
    recipe.knob =
        Knob{"ratio", 1, 99, true, [](TokenCount kept) { return fmt::format("{}%", 100 - kept); }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
