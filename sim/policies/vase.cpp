// SPDX-License-Identifier: Apache-2.0
// VaSE: for long reasoning: keeps the entries whose values are largest, and draws the rest. In
// decode, when more than the budget is held and `buffer` divides how many entries are held, a head
// is cut to the budget: the newest `buffer` stay, and of those before them
//   form=attnv  the first `sinks` and the `large` largest values (max - min over the channels), and
//               then a draw without replacement, weighed by the attention of the last `buffer`
//               rows to these entries alone (mean over rows, average pooling, mean of the group)
//   form=dkv    the first `sinks`, and the largest |k G|^2 |v G|^2 (CurDKV), with `sketch` columns
//               of normal numbers G drawn anew for each cut and layer
// Neighbours in the pooling, and the first, go by place in the cache, which the code lays anew: the
// largest values first, then what was drawn, in the order of the draw, then the buffer.
// Source: Chang et al., arXiv 2606.03928; code terarachang/VaSE (modified/transformers/
// cache_utils.py: range_sink_sample_attn with smooth, and cur_resample_gauss; buffer 64; 1,024 of
// 4,096 are large, 200 as the default of the class; size=variance and l2 are its var_ and l2_).
// The paper's throughput is of a cache allocated for max(prompt, budget) + buffer entries.
#include "sim/policies/vase_rule.h"

namespace kvspan::policies {
namespace {

// The budget, once a number of entries that `buffer` divides, more than the budget, is held.
class WhenDivided final : public Budget {
 public:
  explicit WhenDivided(RowIndex buffer) : buffer_(buffer) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return sizing.rows > sizing.tokens && sizing.rows % buffer_ == 0 ? sizing.tokens : kAll;
  }

 private:
  RowIndex buffer_;
};

std::vector<Parameter> vase_parameters() {
  using Kind = Parameter::Kind;
  return {budget_parameter("20%", "entries after a cut, per layer and KV head"),
          {.name = "form",
           .kind = Kind::word,
           .fallback = "attnv",
           .help = "votes and values, or norms under a random projection",
           .choices = {"attnv", "dkv"}},
          {.name = "buffer",
           .fallback = "64",
           .unit = "entries",
           .help = "newest, which stay and vote; a cut is due when it divides what is held",
           .range = {1, 1e6}},
          {.name = "large",
           .fallback = "auto",
           .unit = "entries",
           .help = "with the largest values, kept (attnv); auto: a quarter of the budget"},
          {.name = "size",
           .kind = Kind::word,
           .fallback = "range",
           .help = "of a value (attnv)",
           .choices = {"range", "variance", "l2"}},
          {.name = "sinks", .fallback = "4", .unit = "entries", .help = "first, kept"},
          {.name = "kernel",
           .fallback = "5",
           .unit = "entries",
           .help = "average pooling of the votes, odd (attnv)",
           .range = {1, 1e6}},
          {.name = "sketch",
           .fallback = "20",
           .unit = "columns",
           .help = "of the random projection (dkv)",
           .range = {1, 4096}},
          seed_parameter("of the draws")};
}

}  // namespace

PolicyEntry vase() {
  PolicyEntry entry;
  entry.name = "vase";
  entry.kind = MethodKind::eviction;
  entry.summary = "in decode, every 64 entries: keeps large values, draws the rest by attention";
  entry.source = "Chang et al. 2026, arXiv 2606.03928; code terarachang/VaSE";
  entry.evidence = "code read";
  entry.differs =
      "the code keeps 200 large values unless told, its scripts 1,024 of 4,096; it holds a cache "
      "allocated for max(prompt, budget) + buffer entries; its draws are torch's";
  entry.needs = "q, k and v (form=dkv: k and v)";
  entry.parameters = vase_parameters();
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    VaseSettings settings;
    settings.buffer = arguments.count("buffer");
    settings.sinks = static_cast<std::size_t>(arguments.count("sinks"));
    const TokenCount tokens = entries_of(arguments, "budget", geometry);
    settings.large =
        static_cast<std::size_t>(arguments.has("large") ? arguments.count("large") : tokens / 4);
    settings.size = arguments.text("size");
    settings.kernel = odd_count(arguments, "kernel");
    settings.sketch = static_cast<int>(arguments.count("sketch"));
    settings.seed = seed_of(arguments, geometry);
    const bool votes = arguments.is("form", "attnv");
    Scoring scoring;
    scoring.make = [settings, votes](const LayerShape&) -> std::unique_ptr<Scorer> {
      if (votes) return std::make_unique<SampledVotes>(settings);
      return std::make_unique<SketchedNorms>(settings);
    };
    scoring.evicts_in_decode = true;
    scoring.by_place = true;
    scoring.order = {.by_score = true};
    Recipe recipe = budgeted(arguments, geometry, own(scoring), own(Schedule::each_decode_row()));
    recipe.shape = own(std::make_shared<WhenDivided>(settings.buffer));
    recipe.competing = true;
    recipe.protect = own(protect_recent(settings.buffer));
    recipe.knob->monotone = false;  // when cuts are due changes with the budget
    // Queries of the last `buffer` rows.
    if (votes) {
      recipe.charge.once = settings.buffer * geometry.layers() * geometry.query_heads *
                           geometry.k_dim * geometry.kv_bytes;
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
