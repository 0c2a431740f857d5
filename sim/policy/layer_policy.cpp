// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/layer_policy.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan {

// The domain of a rule, split into what may leave and what may not. When more is protected than the
// head may keep, the newest protected entries stay.
struct DomainParts {
  std::span<const TokenIndex> sinks, evictable, recent;
  // Places for protected positions of the domain, whether or not they are still resident.
  TokenCount reserved = 0;
  [[nodiscard]] TokenCount protected_count() const {
    return static_cast<TokenCount>(sinks.size() + recent.size());
  }
  [[nodiscard]] TokenCount size() const {
    return protected_count() + static_cast<TokenCount>(evictable.size());
  }
};

namespace {

// Entries before it are not in the domain.
RowIndex first_of(const Rule& rule, const Pass& pass) {
  return std::max<RowIndex>(rule.first, rule.domain == Domain::newborn ? pass.begin : 0);
}

// `storage` is used when an earlier rule of the same pass has victims in the domain, or entries of
// it compete no more.
std::span<const TokenIndex> domain_of(const Rule& rule, const View& view, int head,
                                      const std::vector<Eviction>& gone,
                                      const std::vector<char>& demoted,
                                      std::vector<TokenIndex>& storage) {
  std::span<const TokenIndex> all = rule.order.by_score ? view.cached(head) : view.resident(head);
  const RowIndex from = first_of(rule, view.pass());
  if (from > 0) {  // newborns lie last in either order
    const auto first = std::lower_bound(all.begin(), all.end(), from);
    all = all.subspan(static_cast<std::size_t>(first - all.begin()));
  }
  if (gone.empty() && demoted.empty()) return all;
  std::vector<TokenIndex> dead;
  for (const Eviction& e : gone) {
    if (e.head == head) dead.push_back(e.token);
  }
  std::sort(dead.begin(), dead.end());
  for (const TokenIndex t : all) {
    const bool out =
        static_cast<std::size_t>(t) < demoted.size() && demoted[static_cast<std::size_t>(t)] != 0;
    if (!out && !std::binary_search(dead.begin(), dead.end(), t)) storage.push_back(t);
  }
  return storage;
}

// In cache order the last places are the recent ones, whoever lies there.
DomainParts split_places(const Protect& protect, std::span<const TokenIndex> domain,
                         std::vector<TokenIndex>& arranged) {
  arranged.assign(domain.begin(), domain.end());
  const auto rest = std::stable_partition(arranged.begin(), arranged.end(),
                                          [&](TokenIndex t) { return t < protect.sinks; });
  const auto sinks = static_cast<std::size_t>(rest - arranged.begin());
  const std::size_t recent =
      std::min(arranged.size() - sinks, static_cast<std::size_t>(protect.recent));
  const std::span<const TokenIndex> all = arranged;
  DomainParts out;
  out.sinks = all.first(sinks);
  out.evictable = all.subspan(sinks, all.size() - sinks - recent);
  out.recent = all.last(recent);
  out.reserved = out.protected_count();
  return out;
}

// `arranged` is used in cache order.
DomainParts split(const Rule& rule, const Pass& pass, std::span<const TokenIndex> domain,
                  TokenCount tokens, std::vector<TokenIndex>& arranged) {
  const Protect protect = rule.protect ? rule.protect(pass, tokens) : Protect{};
  if (rule.order.by_score) return split_places(protect, domain, arranged);
  const RowIndex first_recent = pass.end - std::min<TokenCount>(protect.recent, pass.end);
  const auto begin = domain.begin();
  const auto sinks_end = std::lower_bound(begin, domain.end(), protect.sinks);
  const auto recent_begin = std::lower_bound(sinks_end, domain.end(), first_recent);
  DomainParts out;
  out.sinks = {begin, sinks_end};
  out.evictable = {sinks_end, recent_begin};
  out.recent = {recent_begin, domain.end()};
  const RowIndex from = std::min(first_of(rule, pass), pass.end);
  out.reserved = std::max<TokenCount>(0, std::min<TokenCount>(protect.sinks, pass.end) - from) +
                 std::min<TokenCount>(protect.recent, pass.end - from);
  return out;
}

struct Outcome {
  std::vector<Eviction> evictions;
  bool decided = false;
  bool undecided = false;
};

void rank_victims(const View& view, int head, std::span<const TokenIndex> entries,
                  std::span<const double> scores, const std::vector<char>& leaves, Outcome& out) {
  std::vector<std::size_t> order;  // places of the victims, the first to go in front
  order.reserve(static_cast<std::size_t>(std::count(leaves.begin(), leaves.end(), 1)));
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (leaves[i] != 0) order.push_back(i);
  }
  if (view.keeps_ranks()) {
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return scores[a] != scores[b] ? scores[a] < scores[b] : a > b;
    });
  }
  out.evictions.reserve(order.size());
  for (const std::size_t i : order) {
    const auto rank = static_cast<std::int32_t>(out.evictions.size());
    out.evictions.push_back({head, entries[i], static_cast<float>(scores[i]), rank});
  }
  const auto older = [](const Eviction& a, const Eviction& b) { return a.token < b.token; };
  if (!std::is_sorted(out.evictions.begin(), out.evictions.end(), older))
    std::sort(out.evictions.begin(), out.evictions.end(), older);
}

// True if a decision among `size` entries puts those that stay into a new order.
bool lies_anew(const Rule& rule, TokenCount size, TokenCount keep) {
  return rule.order.by_score && (size > keep || (rule.order.when_full && size == keep));
}

// How the survivors of a decision come to lie in the cache.
Arrangement arrangement(const Rule& rule, int head, const DomainParts& entries,
                        std::span<const double> scores, const std::vector<Eviction>& gone) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < entries.evictable.size(); ++i) {
    const TokenIndex token = entries.evictable[i];
    const auto at = std::partition_point(gone.begin(), gone.end(),
                                         [&](const Eviction& e) { return e.token < token; });
    if (at == gone.end() || at->token != token) order.push_back(i);
  }
  const auto rank = [&](std::size_t i) { return std::min(scores[i], rule.order.ties_from); };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return rank(a) > rank(b); });
  Arrangement out{head, {entries.sinks.begin(), entries.sinks.end()}};
  const auto add_recent = [&] {
    out.tokens.insert(out.tokens.end(), entries.recent.begin(), entries.recent.end());
  };
  if (rule.order.protected_first) add_recent();
  for (const std::size_t i : order) out.tokens.push_back(entries.evictable[i]);
  if (!rule.order.protected_first) add_recent();
  return out;
}

// Whoever scores at most the threshold leaves.
Outcome admit(double threshold, const View& view, int head, std::span<const TokenIndex> entries,
              std::span<const double> scores, double slack) {
  Outcome out;
  std::vector<char> leaves(entries.size(), 0);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    leaves[i] = scores[i] <= threshold ? 1 : 0;
    out.decided = out.decided || leaves[i] != 0;
    out.undecided = out.undecided || (slack > 0 && std::abs(scores[i] - threshold) <= slack);
  }
  rank_victims(view, head, entries, scores, leaves, out);
  return out;
}

Outcome choose(const Rule& rule, const View& view, int head, const DomainParts& entries,
               std::span<const double> scores, double slack, TokenCount keep) {
  Outcome out;
  const TokenCount protected_count = entries.protected_count();
  if (entries.size() <= keep) return out;
  out.decided = true;
  const float none = std::numeric_limits<float>::quiet_NaN();
  if (protected_count >= keep) {
    for (const TokenIndex t : entries.evictable) out.evictions.push_back({head, t, none, 0});
    std::vector<TokenIndex> protected_entries(entries.sinks.begin(), entries.sinks.end());
    protected_entries.insert(protected_entries.end(), entries.recent.begin(), entries.recent.end());
    protected_entries.resize(static_cast<std::size_t>(protected_count - keep));
    for (const TokenIndex t : protected_entries) out.evictions.push_back({head, t, none, 0});
    std::sort(out.evictions.begin(), out.evictions.end(),
              [](const Eviction& a, const Eviction& b) { return a.token < b.token; });
    return out;
  }
  std::vector<char> leaves(entries.evictable.size(), 0);
  const TokenCount places = keep - std::max(protected_count, std::min(entries.reserved, keep));
  rule.pick(view, head, entries.evictable, scores, places, leaves);
  double lowest_kept = std::numeric_limits<double>::infinity();
  double highest_gone = -lowest_kept;
  for (std::size_t i = 0; slack > 0 && i < leaves.size(); ++i) {
    if (leaves[i] == 0) {
      lowest_kept = std::min(lowest_kept, scores[i]);
    } else {
      highest_gone = std::max(highest_gone, scores[i]);
    }
  }
  rank_victims(view, head, entries.evictable, scores, leaves, out);
  out.undecided = slack > 0 && lowest_kept - highest_gone <= 2 * slack;
  return out;
}

}  // namespace

std::string at(const Policy& policy, const LayerShape& shape, const Pass& pass) {
  return fmt::format("{}, layer {}, rows [{}, {})", policy.spec, shape.layer, pass.begin, pass.end);
}

LayerPolicy::LayerPolicy(const Policy& policy, const LayerShape& shape)
    : policy_(&policy), shape_(shape), demoted_(static_cast<std::size_t>(shape.heads)) {
  if (shape.model_layer < policy.full_layers) return;
  for (const Rule& rule : policy.rules) scorers_.push_back(rule.scorer(shape));
  if (policy.prefill_reads) prefill_reads_ = policy.prefill_reads(shape);
  if (policy.selector) selector_ = policy.selector(shape);
  if (policy.store) store_ = policy.store(shape);
}

Needs LayerPolicy::needs() const {
  Needs out;
  for (const auto& scorer : scorers_) out.merge(scorer->needs());
  if (prefill_reads_) out.merge(prefill_reads_->needs());
  if (selector_) out.merge(selector_->needs());
  if (store_) out.merge(store_->needs());
  return out;
}

bool LayerPolicy::due(const Pass& pass, std::size_t rule) const {
  return rule < scorers_.size() && policy_->rules[rule].schedule.due(pass);
}

bool LayerPolicy::due(const Pass& pass) const {
  for (std::size_t r = 0; r < scorers_.size(); ++r) {
    if (due(pass, r)) return true;
  }
  return store_ != nullptr;
}

RowIndex LayerPolicy::rows_observed(const Pass& pass) const {
  RowIndex rows = 0;
  for (std::size_t r = 0; r < scorers_.size(); ++r) {
    if (due(pass, r)) rows = std::max(rows, scorers_[r]->needs().last_rows);
  }
  if (store_) rows = std::max(rows, store_->needs().last_rows);
  return rows;
}

Selector* LayerPolicy::selector(const Pass& pass) const {
  return pass.is_prompt_chunk() ? prefill_reads_.get() : selector_.get();
}

void LayerPolicy::observe(const View& view, RowIndex begin, RowIndex end) {
  const auto show = [&](Role* role) {
    if (role == nullptr) return;
    const Observe rows = role->needs().observe;
    if (rows == Observe::never) return;
    const RowIndex from =
        rows == Observe::always ? begin : std::max(begin, view.pass().evict_point - 1);
    if (from < end) role->observe(view, from, end);
  };
  for (const auto& scorer : scorers_) show(scorer.get());
  show(prefill_reads_.get());
  show(selector_.get());
  show(store_.get());
}

Decision LayerPolicy::end_pass(std::span<const View* const> views) {
  Decision out;
  for (std::size_t r = 0; r < scorers_.size(); ++r) {
    if (views[r] != nullptr) apply(r, *views[r], out);
  }
  if (scorers_.size() > 1) {
    std::sort(out.evictions.begin(), out.evictions.end(), [](const Eviction& a, const Eviction& b) {
      return a.head != b.head ? a.head < b.head : a.token < b.token;
    });
  }
  if (store_) store_->age(*views[policy_->rules.size()], out);
  return out;
}

// The entries of every head that a rule may choose from, and their scores.
struct LayerPolicy::Ranking {
  explicit Ranking(std::size_t heads) : entries(heads), storage(heads), arranged(heads) {
    scores.entries.resize(heads);
    scores.values.resize(heads);
    scores.slack.assign(heads, 0.0);
    scores.protected_.assign(heads, 0);
  }
  Sizing sizing;
  std::vector<TokenCount> keep;  // of a budget that does not look at scores
  std::vector<DomainParts> entries;
  Scores scores;
  std::vector<std::vector<TokenIndex>> storage, arranged;  // of entries
};

LayerShow LayerPolicy::show(std::span<const View* const> views) {
  LayerShow out;
  out.shape = shape_;
  if (scorers_.empty()) return out;
  const std::size_t r = *coupled_rule(*policy_);
  Decision before;
  for (std::size_t i = 0; i < r; ++i) {
    if (views[i] != nullptr) apply(i, *views[i], before);
  }
  Ranking ranking = rank(r, *views[r], before);
  for (const auto& entries : ranking.scores.entries)
    out.tokens.emplace_back(entries.begin(), entries.end());
  out.scores = std::move(ranking.scores.values);
  out.protected_ = std::move(ranking.scores.protected_);
  out.figures = policy_->rules[r].budget->over_layers()->figures(*views[r]);
  return out;
}

LayerPolicy::Ranking LayerPolicy::rank(std::size_t r, const View& view, const Decision& so_far) {
  const Rule& rule = policy_->rules[r];
  const auto heads = static_cast<std::size_t>(shape_.heads);
  const Pass& pass = view.pass();
  Ranking out(heads);
  out.sizing = rule.sizing ? rule.sizing(pass) : Sizing{kAll, pass.evict_point};
  const Sizing& sizing = out.sizing;
  std::vector<TokenCount>& keep = out.keep;
  std::vector<DomainParts>& entries = out.entries;
  Scores& scores = out.scores;

  // A budget that does not look at scores is asked first, so that heads in which nobody has to
  // leave are not scored at all.
  const bool content_free = !rule.threshold && rule.budget->content_free();
  keep.assign(heads, sizing.tokens);
  for (std::size_t h = 0; h < heads; ++h) {
    const int head = static_cast<int>(h);
    const std::span<const TokenIndex> domain =
        domain_of(rule, view, head, so_far.evictions, demoted_[h], out.storage[h]);
    if (content_free) {
      const Sizing own = sizing.among(static_cast<RowIndex>(domain.size()));
      keep[h] = rule.budget->kept(shape_, head, own);
      const auto size = static_cast<TokenCount>(domain.size());
      if (size <= keep[h] && !lies_anew(rule, size, keep[h])) continue;
    }
    entries[h] = split(rule, pass, domain, keep[h], out.arranged[h]);
    scores.protected_[h] = entries[h].protected_count();
    if (content_free && scores.protected_[h] >= keep[h]) continue;
    scores.entries[h] = entries[h].evictable;
    if (const KnownScores* known = view.known(head, entries[h].evictable)) {
      scores.values[h] = known->values;
      scores.slack[h] = known->slack;
      continue;
    }
    scores.values[h].resize(entries[h].evictable.size());
    if (rule.axis == Axis::layer && h > 0 &&
        std::ranges::equal(entries[h].evictable, entries[0].evictable)) {
      scores.values[h] = scores.values[0];
      scores.slack[h] = scores.slack[0];
      continue;
    }
    if (scores.values[h].empty()) continue;
    scores.slack[h] = scorers_[r]->score(view, head, entries[h].evictable, scores.values[h]);
    view.share(head, entries[h].evictable, scores.values[h], scores.slack[h]);
  }
  return out;
}

// One rule: whose turn it is, by head.
void LayerPolicy::apply(std::size_t r, const View& view, Decision& out) {
  const Rule& rule = policy_->rules[r];
  const Pass& pass = view.pass();
  Ranking ranking = rank(r, view, out);
  std::vector<TokenCount>& keep = ranking.keep;
  const std::vector<DomainParts>& entries = ranking.entries;
  const Scores& scores = ranking.scores;
  if (!rule.threshold && !rule.budget->content_free())
    rule.budget->counts(view, scores, ranking.sizing, keep);

  for (std::size_t h = 0; h < entries.size(); ++h) {
    const int head = static_cast<int>(h);
    const Outcome outcome =
        rule.threshold
            ? admit(*rule.threshold, view, head, entries[h].evictable, scores.values[h],
                    scores.slack[h])
            : choose(rule, view, head, entries[h], scores.values[h], scores.slack[h], keep[h]);
    const bool chosen = !scores.values[h].empty() && entries[h].protected_count() < keep[h];
    if (chosen && lies_anew(rule, entries[h].size(), keep[h])) {
      out.arrangements.push_back(
          arrangement(rule, head, entries[h], scores.values[h], outcome.evictions));
    }
    out.decided += outcome.decided ? 1 : 0;
    out.undecided += outcome.undecided ? 1 : 0;
    for (const Eviction& eviction : outcome.evictions) {
      const std::optional<int> kept_as =
          store_ ? store_->demote(eviction.head, eviction.token) : std::nullopt;
      if (!kept_as) {
        out.evictions.push_back(eviction);
        continue;
      }
      out.changes.push_back({pass.end, eviction.head, eviction.token, *kept_as});
      demoted_[h].resize(std::max(demoted_[h].size(), static_cast<std::size_t>(pass.end)), 0);
      demoted_[h][static_cast<std::size_t>(eviction.token)] = 1;
    }
  }
}

}  // namespace kvspan
