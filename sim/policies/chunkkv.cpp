// SPDX-License-Identifier: Apache-2.0
// ChunkKV: whole chunks of consecutive tokens stay or leave, one set for all heads of a layer,
// once, after the prompt.
//
//   preset=paper    chunks of 10 before the window; score: the attention of the last `window`
//                   rows, summed over rows, heads and the chunk's tokens; the best floor(budget /
//                   length) chunks stay, and the window on top of the budget
//   preset=entropy  chunks of 10, scored as kvpress does; exactly the budget stays: chunk by chunk,
//                   the best first, but of one whose mean is at least the median while the entropy
//                   of its scores is below the median only the best 4 (`spiky`); what is left over
//                   goes to the best entries. reuse has no meaning
//   preset=kvpress  chunks of 20 over the whole prompt; score: SnapKV's votes as kvpress takes
//                   them (mean of the last 64 rows, average pooling of 5 before the window, window
//                   tokens above all others), summed over KV heads, mean over the chunk; max(1,
//                   int(chunks * B / n)) chunks stay. A prompt shorter than a chunk is ranked by
//                   token.
//
// The tokens after the last whole chunk are a chunk of their own: where its score decides whether
// it stays, the closed form is an upper bound. Of equal chunks the lower one stays; of chunks
// inside kvpress's window, which are equal by construction (torch.topk picks any), the newest.
// reuse=R: of every R layers of the model the first decides, and the others copy its set; where a
// trace does not store it, the lowest that is stored. The lists are needed while a layer is
// compressed only, and are not charged.
// Source: Liu et al., arXiv 2502.00299 (read through secondary sources; window and order of the
// last tokens are not settled by them); code: NVIDIA/kvpress ChunkKVPress, by the first author, and
// EntropyGatedChunkKVPress.
#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/chunkkv_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

class Chunks final : public Budget {
 public:
  explicit Chunks(ChunkScores::Settings settings) : settings_(std::move(settings)) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    const TokenCount c = settings_.length;
    if (sizing.tokens == kAll || sizing.rows <= sizing.tokens) return kAll;
    const RowIndex window = std::min({settings_.window, sizing.window_rows, sizing.rows});
    if (!settings_.kvpress) return window + std::min(sizing.tokens / c * c, sizing.rows - window);
    if (sizing.rows < c) return std::max<TokenCount>(1, part_of(sizing.rows, sizing));
    const TokenCount tail = sizing.rows % c;
    const TokenCount chunks = sizing.rows / c + (tail > 0 ? 1 : 0);
    const auto stay = std::max<TokenCount>(1, part_of(chunks, sizing));
    // A tail inside the window is the newest of the best chunks, so it stays.
    return tail > 0 && tail <= window ? (stay - 1) * c + tail : std::min(stay * c, sizing.rows);
  }
  // True if no chunk's score decides how many entries stay.
  [[nodiscard]] bool exact(RowIndex rows) const {
    const RowIndex window = std::min(settings_.window, rows);
    if (settings_.kvpress) return rows < settings_.length || rows % settings_.length <= window;
    return (rows - window) % settings_.length == 0;
  }

 private:
  // The budget's part of `count`: as kvpress has it of a share, int(count * (1 - r)) in double;
  // exactly of a number of tokens.
  [[nodiscard]] TokenCount part_of(TokenCount count, const Sizing& sizing) const {
    const std::optional<Amount>& budget = settings_.budget;
    if (budget && budget->kind == Amount::Kind::share &&
        budget->share_of(sizing.rows) == sizing.tokens) {
      return static_cast<TokenCount>(static_cast<double>(count) *
                                     (1.0 - budget->one_minus_share()));
    }
    return count * sizing.tokens / sizing.rows;
  }
  ChunkScores::Settings settings_;
};

// Who decides in each stored layer. `lacking` counts those whose block's first layer is not stored.
std::vector<int> leaders(const Geometry& geometry, int reuse, int& lacking) {
  std::vector<int> out;
  for (int l = 0; l < geometry.layers(); ++l) {
    const int block = geometry.layer_ids[index(l)] / reuse;
    int leader = l;
    while (leader > 0 && geometry.layer_ids[index(leader - 1)] / reuse == block) --leader;
    if (geometry.layer_ids[index(leader)] % reuse != 0) ++lacking;
    out.push_back(leader);
  }
  return out;
}

}  // namespace

PolicyEntry chunkkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "chunkkv";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps whole chunks of tokens, one set per layer, once, after the prompt";
  entry.source = "Liu et al. 2025, arXiv 2502.00299";
  entry.evidence = "code read (kvpress), paper secondary";
  entry.differs =
      "the paper sums over 10 tokens and adds the window, kvpress averages 20 and quantises "
      "the budget (preset=)";
  entry.needs = "q and k, or probabilities of the last `window` prompt rows";
  entry.parameters = {
      budget_parameter(),
      {.name = "preset",
       .kind = Kind::word,
       .fallback = "paper",
       .help = "the paper's listing, the first author's code, or kvpress's gate by entropy",
       .choices = {"paper", "kvpress", "entropy"}},
      {.name = "length",
       .fallback = "auto",
       .unit = "tokens",
       .help = "of a chunk; auto: 10, kvpress 20",
       .range = {1, 1e6}},
      {.name = "window",
       .fallback = "auto",
       .unit = "rows",
       .help = "observation window; auto: 8 on top of the budget, kvpress 64 inside it",
       .range = {1, 1e6}},
      {.name = "spiky",
       .fallback = "4",
       .unit = "tokens",
       .help = "preset=entropy: kept of an important chunk of little entropy",
       .range = {1, 1e6}},
      {.name = "reuse",
       .fallback = "1",
       .unit = "layers",
       .help = "this many layers share one set",
       .range = {1, 1e6}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const bool gated = arguments.is("preset", "entropy");
    const bool kvpress = gated || arguments.is("preset", "kvpress");
    if (!arguments.has("length")) arguments.set("length", kvpress && !gated ? "20" : "10");
    if (!arguments.has("window")) arguments.set("window", kvpress ? "64" : "8");
    const int reuse = static_cast<int>(arguments.count("reuse"));
    if (gated && (reuse > 1 || arguments.count("length") <= arguments.count("spiky"))) {
      throw ConfigError(
          fmt::format("chunkkv(preset=entropy): found length={}, spiky={}, reuse={}; expected "
                      "chunks longer than "
                      "what stays of a spiky one, and no reuse",
                      arguments.count("length"), arguments.count("spiky"), reuse));
    }
    int lacking = 0;
    const ChunkScores::Settings settings{kvpress,
                                         arguments.count("spiky"),
                                         arguments.count("length"),
                                         arguments.count("window"),
                                         reuse,
                                         leaders(geometry, reuse, lacking),
                                         arguments.amount("budget")};
    Scoring scoring;
    scoring.make = [settings](const LayerShape&) {
      return std::make_unique<ChunkScores>(settings);
    };
    scoring.axis = Axis::layer;
    // kvpress's window competes with the rest, so chunked() adds nothing to a count.
    scoring.window = kvpress ? 0 : settings.window;
    const auto chunks = std::make_shared<Chunks>(settings);
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    if (lacking > 0) {
      recipe.notes.push_back(
          fmt::format("{} stored layers lack the first layer of their {}: the lowest stored one "
                      "decides for them",
                      lacking, reuse));
    }
    if (!gated) recipe.shape = own(chunks);
    recipe.protect = own(protect_recent(kvpress ? 0 : settings.window));
    recipe.pick =
        own(Pick([settings, gated](const View& view, int head, std::span<const TokenIndex> entries,
                                   std::span<const double> scores, TokenCount keep,
                                   std::vector<char>& leaves) {
          if (gated)
            pick_by_entropy(settings, entries, scores, keep, view.pass().end, leaves);
          else
            pick_chunks(settings, view, head, entries, scores, keep, leaves);
        }));
    recipe.reads_lower_layers = reuse > 1;
    recipe.closed_form = gated || (geometry.chunk == 0 && chunks->exact(geometry.evict_point));
    if (geometry.trace == nullptr && !recipe.closed_form) {
      recipe.notes.emplace_back(
          "an upper bound: the last chunk is short, and the prompt decides whether it stays");
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
