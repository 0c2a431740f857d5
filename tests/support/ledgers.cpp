// SPDX-License-Identifier: Apache-2.0
#include "tests/support/ledgers.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>
#include <utility>

namespace kvspan::test {

Ledger drawn(RowIndex prompt, RowIndex chunk, const std::vector<std::vector<Picture>>& pictures) {
  const RowIndex tokens = static_cast<RowIndex>(pictures[0][0].size());
  Ledger ledger;
  ledger.plan = make_passes(tokens, prompt, prompt, chunk);
  ledger.layers = ledger.model_layers = static_cast<int>(pictures.size());
  ledger.heads = ledger.query_heads = static_cast<int>(pictures[0].size());
  ledger.representations = {
      {"entry", 10, 0}, {"quantised", 4, 0}, {"host", 0, 10}, {"copy", 10, 10}};
  for (const std::vector<Picture>& layer : pictures) {
    std::vector<Change>& changes = ledger.changes.emplace_back();
    for (std::size_t head = 0; head < layer.size(); ++head) {
      for (std::size_t token = 0; token < layer[head].size(); ++token) {
        const std::string& line = layer[head][token];
        if (line.find_first_not_of('.') != token || line.size() != layer[head].size())
          throw std::logic_error("a token is born in its own row: " + line);
        const std::size_t last = line.find_last_not_of('.');
        ledger.death.push_back(static_cast<std::uint32_t>(last + 1));
        for (std::size_t row = token + 1; row <= last; ++row) {
          if (line[row] == line[row - 1]) continue;
          changes.push_back({static_cast<RowIndex>(row), static_cast<int>(head),
                             static_cast<TokenIndex>(token), line[row] - '0'});
        }
      }
    }
    std::stable_sort(changes.begin(), changes.end(),
                     [](const Change& a, const Change& b) { return a.row < b.row; });
  }
  return ledger;
}

Picture full_head(std::size_t tokens) {
  Picture picture;
  for (std::size_t t = 0; t < tokens; ++t) {
    picture.push_back(std::string(t, '.') + std::string(tokens - t, '0'));
  }
  return picture;
}

Ledger paper_ledger(RowIndex n, RowIndex m, RowIndex chunk) {
  Ledger ledger;
  ledger.plan = make_passes(n + m, n, n, chunk);
  ledger.layers = ledger.model_layers = 1;
  ledger.representations = {{"entry", 1, 0}};
  return ledger;
}

void add_head(Ledger& ledger, const std::vector<std::uint32_t>& deaths) {
  ledger.death.insert(ledger.death.end(), deaths.begin(), deaths.end());
  ledger.query_heads = ++ledger.heads;
}

std::vector<std::uint32_t> streaming_deaths(const std::vector<RowIndex>& ends, RowIndex sinks,
                                            RowIndex window) {
  const RowIndex tokens = ends.back();
  std::vector<std::uint32_t> deaths(at(tokens), static_cast<std::uint32_t>(tokens));
  for (RowIndex token = sinks; token < tokens; ++token) {
    // The first end of a pass that leaves `window` newer tokens behind it.
    const auto end = std::lower_bound(ends.begin(), ends.end(), token + window + 1);
    if (end != ends.end()) deaths[at(token)] = static_cast<std::uint32_t>(*end);
  }
  return deaths;
}

std::vector<std::uint32_t> evicting_deaths(const std::vector<RowIndex>& ends, RowIndex prompt,
                                           double s, RowIndex w) {
  const RowIndex tokens = ends.back();
  std::vector<std::uint32_t> deaths(at(tokens), static_cast<std::uint32_t>(tokens));
  RowIndex begin = 0;
  for (const RowIndex end : ends) {
    if (end > prompt) break;
    const RowIndex c = end - begin;
    const RowIndex share =
        static_cast<RowIndex>(std::nearbyint((1.0 - s) * static_cast<double>(c)));
    for (RowIndex token = begin; token < end - std::min(share + w, c); ++token) {
      deaths[at(token)] = static_cast<std::uint32_t>(end);
    }
    begin = end;
  }
  return deaths;
}

Ledger random_ledger(LedgerRandom& random, RowIndex most_tokens) {
  Ledger ledger;
  const RowIndex tokens = random.between(1, most_tokens);
  const RowIndex prompt = random.between(1, tokens);
  const RowIndex evict_point = random.chance(30) ? random.between(1, prompt) : prompt;
  ledger.plan = make_passes(tokens, prompt, evict_point, random.between(0, 6));
  ledger.layers = ledger.model_layers = static_cast<int>(random.between(1, 3));
  ledger.heads = static_cast<int>(random.between(1, 3));
  ledger.query_heads = ledger.heads * static_cast<int>(random.between(1, 3));
  ledger.representations = {{"entry", 2 * random.between(1, 20), 0}};
  ledger.charge = {random.between(0, 3), random.chance(50) ? 0 : random.between(1, 40)};
  const int eviction = static_cast<int>(random.between(0, 100));
  for (int head = 0; head < ledger.layers * ledger.heads; ++head) {
    for (RowIndex token = 0; token < tokens; ++token) {
      std::vector<RowIndex> choices;
      for (const RowIndex end : ledger.plan.ends) {
        if (end > token) choices.push_back(end);
      }
      const std::int64_t last = static_cast<std::int64_t>(choices.size()) - 1;
      // Most deaths soon after birth: whole blocks die, and heads differ in length.
      const std::int64_t choice =
          random.between(0, random.chance(60) ? std::min<std::int64_t>(2, last) : last);
      ledger.death.push_back(
          static_cast<std::uint32_t>(random.chance(eviction) ? choices[at(choice)] : tokens));
    }
  }
  return ledger;
}

void add_windows(LedgerRandom& random, Ledger& ledger) {
  for (int l = 0; l < ledger.layers; ++l) {
    ledger.sliding_window.push_back(random.chance(30) ? 0 : random.between(1, 8));
  }
}

void add_changes(LedgerRandom& random, Ledger& ledger) {
  const std::int64_t entry = ledger.representations[0].device_bytes;
  ledger.representations.push_back({"quantised", entry / 2, 0});
  ledger.representations.push_back({"host", 0, entry});
  ledger.representations.push_back({"copy", entry, entry});
  if (random.chance(10)) std::swap(ledger.representations[0], ledger.representations[2]);
  for (int l = 0; l < ledger.layers; ++l) {
    std::vector<Change>& changes = ledger.changes.emplace_back();
    for (const RowIndex end : ledger.plan.ends) {
      std::set<std::pair<int, RowIndex>> changed;
      for (std::int64_t i = random.between(0, 4); i > 0; --i) {
        const int head = static_cast<int>(random.between(0, ledger.heads - 1));
        const RowIndex token = random.between(0, end - 1);
        if (!changed.insert({head, token}).second) continue;
        changes.push_back(
            {end, head, static_cast<TokenIndex>(token), static_cast<int>(random.between(0, 3))});
      }
    }
  }
}

}  // namespace kvspan::test
