// SPDX-License-Identifier: Apache-2.0
// CaM: what another policy evicts in decode may be merged into the entries behind it. Of a victim
// with attention a, and the next `merge` entries that stay, of mean attention b: with probability
// min(1, a / b), drawn by the seed, its value, divided by their number, is added to each of theirs.
//   attention=row   that of the row just gone;  sums   that of all rows so far (4 bytes an entry)
// mean over the query heads of the group. Keys, bytes and lifetimes stay as they are, and only
// outputs change; what leaves a prompt is lost.
// Source: Zhang et al., ICML 2024; code zyxxmu/cam (behind StreamingLLM's cache: 32 entries and the
// row's attention in utils_hh/modify_llama_cam.py, with the mean over the whole window; 16 and sums
// in streaming_llm/kv_cache_cam.py), NVIDIA/kvpress CAMPress (sums over decode rows, 32).
#include <algorithm>

#include "sim/base/random.h"
#include "sim/policies/shared/held_values.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

struct CamSettings {
  TokenCount merge = 0;
  bool sums = false;
  std::uint64_t seed = 0;
};

class MergingBehind final : public Store {
 public:
  MergingBehind(const CamSettings& settings, int heads) : settings_(settings), held_(heads) {}
  Needs needs() const override {
    return {.last_rows = settings_.sums ? 0 : 1, .column_sums = settings_.sums};
  }

  void age(const View& view, Decision& out) override {
    if (!view.measures_output()) return;
    const Pass& pass = view.pass();
    const bool in_decode = !pass.is_prompt_chunk() && !pass.is_evict_point();
    for (int h = 0; h < view.shape().heads; ++h) {
      const std::vector<TokenIndex> victims = victims_of(h, out);
      if (victims.empty()) continue;
      const std::vector<TokenIndex> stay = survivors(view, h, out);
      for (const TokenIndex t : victims) {
        if (in_decode) merge_behind(view, h, t, stay, out);
        held_.forget(h, t);
      }
    }
  }

 private:
  void merge_behind(const View& view, int head, TokenIndex victim,
                    const std::vector<TokenIndex>& stay, Decision& out) {
    const auto first = std::upper_bound(stay.begin(), stay.end(), victim);
    const auto count = std::min<TokenCount>(settings_.merge, stay.end() - first);
    if (count < 1) return;
    std::vector<TokenIndex> entries{victim};
    entries.insert(entries.end(), first, first + count);
    std::vector<double> attention(entries.size());
    (void)reduce_group(
        view.shape(), head, Group::mean, attention, [&](int q, std::span<double> row) {
          return settings_.sums ? view.column_sum(q, entries, row) : view.votes(q, 1, entries, row);
        });
    double mean = 0;
    for (std::size_t i = 1; i < attention.size(); ++i)
      mean += attention[i] / static_cast<double>(count);
    const double u =
        uniform(settings_.seed, {view.shape().model_layer, head, victim, view.pass().end});
    if (attention[0] <= 0 || u * mean >= attention[0]) return;
    const std::vector<float> gone = held_.of(view, head, victim);
    for (std::size_t i = 1; i < entries.size(); ++i) {
      std::vector<float> v = held_.of(view, head, entries[i]);
      for (std::size_t d = 0; d < v.size(); ++d) v[d] += gone[d] / static_cast<float>(count);
      held_.change(view, head, entries[i], std::move(v), out);
    }
  }

  CamSettings settings_;
  HeldValues held_;
};

}  // namespace

PolicyEntry cam() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "cam";
  entry.kind = MethodKind::merging;
  entry.summary = "adds what another policy evicts in decode to the entries behind it, by a draw";
  entry.source = "Zhang et al. 2024, ICML, CaM; code zyxxmu/cam, NVIDIA/kvpress";
  entry.evidence = "code read";
  entry.differs =
      "the code's LLaMA variant compares with the mean of the whole recent window; kvpress sums "
      "over decode rows only and merges at most as many victims as there were rows";
  entry.needs =
      "q and k, or probabilities of all decode rows (sums: of all rows); v for the error of the "
      "output";
  entry.alone =
      "it merges what another policy evicts; combine it, as in streaming_llm(budget=20%)+cam";
  entry.parameters = {{.name = "merge",
                       .fallback = "32",
                       .unit = "entries",
                       .help = "behind a victim, that its value is spread over",
                       .range = {1, 1e6}},
                      {.name = "attention",
                       .kind = Kind::word,
                       .fallback = "row",
                       .help = "that decides: of the row, or of all rows so far",
                       .choices = {"row", "sums"}},
                      seed_parameter("of the draws")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const CamSettings settings{arguments.count("merge"), arguments.is("attention", "sums"),
                               seed_of(arguments, geometry)};
    Storing store;
    store.make = [settings](const LayerShape& shape) {
      return std::make_unique<MergingBehind>(settings, shape.heads);
    };
    store.alters_vectors = true;
    Recipe recipe;
    recipe.store = own(std::move(store));
    if (settings.sums) recipe.charge.entry = 4;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
