// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/replay/steps.h"

#include <algorithm>
#include <tuple>

#include "sim/ledger/lives.h"

namespace kvspan::gpu_replay {
namespace {

struct Dated {
  RowIndex row = 0;
  Step step;
};

void add_deaths(const Ledger& ledger, int layer, int head, std::vector<Dated>& out) {
  const auto deaths = ledger.deaths(layer, head);
  for (std::size_t t = 0; t < deaths.size(); ++t) {
    if (deaths[t] < ledger.plan.tokens)
      out.push_back({deaths[t], {head, static_cast<TokenIndex>(t), Step::kEvicted, false}});
  }
}

// gone [heads][tokens]: see HeadRows. Changes of the unborn and the dead change nothing.
void add_changes(const Ledger& ledger, int layer, const std::vector<std::vector<RowIndex>>& gone,
                 std::vector<Dated>& out) {
  if (ledger.changes.empty()) return;
  for (const Change& change : ledger.changes[index(layer)]) {
    const RowIndex from = std::max<RowIndex>(change.row, change.token + 1);
    if (from >= ledger.deaths(layer, change.head)[index(change.token)]) continue;
    const bool returns = gone[index(change.head)][index(change.token)] > from;
    out.push_back({from, {change.head, change.token, change.representation, returns}});
  }
}

// By row; of an entry that changes twice in one the last; who leaves the device before who comes,
// so that a place which becomes free is taken.
void order(const Ledger& ledger, std::vector<Dated>& dated) {
  const auto name = [](const Dated& d) { return std::tuple(d.row, d.step.head, d.step.token); };
  std::stable_sort(dated.begin(), dated.end(),
                   [&](const Dated& a, const Dated& b) { return name(a) < name(b); });
  const auto last = std::unique(dated.rbegin(), dated.rend(),
                                [&](const Dated& a, const Dated& b) { return name(a) == name(b); });
  dated.erase(dated.begin(), last.base());
  const auto comes = [&](const Step& step) {
    return step.representation != Step::kEvicted &&
           ledger.representations[index(step.representation)].device_bytes > 0;
  };
  std::stable_sort(dated.begin(), dated.end(), [&](const Dated& a, const Dated& b) {
    return std::tuple(a.row, comes(a.step)) < std::tuple(b.row, comes(b.step));
  });
}

}  // namespace

std::span<const Step> LayerSteps::at(RowIndex row) const {
  return std::span(steps_).subspan(first_[index(row)], first_[index(row) + 1] - first_[index(row)]);
}

std::vector<LayerSteps> steps_of(const Ledger& ledger) {
  const RowIndex tokens = ledger.plan.tokens;
  std::vector<LayerSteps> out(index(ledger.layers));
  Lives lives(ledger);
  for (int layer = 0; layer < ledger.layers; ++layer) {
    LayerSteps& of = out[index(layer)];
    std::vector<std::vector<RowIndex>> gone;
    std::vector<Dated> dated;
    lives.begin_layer(layer);
    for (int head = 0; head < ledger.heads; ++head) {
      const HeadRows rows = lives.head(head);
      gone.emplace_back(rows.gone.begin(), rows.gone.end());
      add_deaths(ledger, layer, head, dated);
    }
    add_changes(ledger, layer, gone, dated);
    order(ledger, dated);
    of.first_.assign(index(tokens) + 1, 0);
    for (const Dated& d : dated) {
      ++of.first_[index(d.row) + 1];
      of.steps_.push_back(d.step);
    }
    for (std::size_t row = 0; row < index(tokens); ++row) of.first_[row + 1] += of.first_[row];
    for (RowIndex row = 0; row < tokens; ++row) of.leaves_.push_back(lives.evicts_at(row) ? 1 : 0);
  }
  return out;
}

}  // namespace kvspan::gpu_replay
