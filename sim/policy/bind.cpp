// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "sim/policy/recipe.h"
#include "sim/policy/whole_blocks.h"

namespace kvspan {
namespace {

class Uniform final : public Budget {
 public:
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return sizing.tokens;
  }
};

// What every layer may keep, shared out among its heads.
class HeadsOfLayers final : public Budget {
 public:
  HeadsOfLayers(std::shared_ptr<const Budget> layers, std::shared_ptr<const Budget> heads,
                RowIndex window)
      : layers_(std::move(layers)), heads_(std::move(heads)), window_(window) {}
  bool content_free() const override { return heads_->content_free(); }
  TokenCount capacity(const LayerShape& shape, int head, const Sizing& sizing) const override {
    return heads_->capacity(shape, head, of_layer(shape, sizing));
  }
  void counts(const View& view, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override {
    heads_->counts(view, scores, of_layer(view.shape(), sizing), keep);
  }

 private:
  Sizing of_layer(const LayerShape& shape, Sizing sizing) const {
    sizing.heads_window = window_;
    sizing.tokens = layers_->capacity(shape, 0, sizing);
    return sizing;
  }
  std::shared_ptr<const Budget> layers_, heads_;
  RowIndex window_;
};

std::shared_ptr<const Budget> budget_of(const Recipe& recipe) {
  if (!recipe.layers) return recipe.shape ? recipe.shape.value : uniform_budget();
  if (!recipe.shape.is_own()) return recipe.layers.value;
  return std::make_shared<HeadsOfLayers>(recipe.layers.value, recipe.shape.value,
                                         recipe.scorer.value.window);
}

// Entries kept of a chunk of `rows` rows. Source: the metric and the evaluation code of arXiv
// 2506.17121 (kv_footprint.py, snapkv.py); products are formed in double as there.
TokenCount chunk_count(const Recipe::Chunked& chunked, const Amount& share, RowIndex window,
                       RowIndex rows) {
  const double product = (1.0 - share.one_minus_share()) * static_cast<double>(rows);
  if (!chunked.metric_count) return static_cast<TokenCount>(product);
  return std::min<TokenCount>(std::llrint(product) + window, rows);  // llrint: half to even
}

// preset=prulong, of a prompt in one pass.
TokenCount rounded_up(const Recipe& recipe, const Geometry& geometry, TokenCount total) {
  const Amount& amount = recipe.size.value;
  const RowIndex window = recipe.scorer.value.window;
  if (amount.kind == Amount::Kind::share)
    total = chunk_count({.metric_count = false}, amount, window, geometry.evict_point);
  const TokenCount step = recipe.capacity_step;
  return (std::max<TokenCount>(total, window) + step - 1) / step * step;
}

// Entries of one head that the size of a recipe stands for. REQUIRES: recipe.size.
TokenCount total_of(const Recipe& recipe, const Geometry& geometry, int heads) {
  const Amount& amount = recipe.size.value;
  const std::int64_t held = recipe.store ? recipe.store.value.entry_bytes : 0;
  TokenCount total = budget_tokens(
      amount, geometry, heads, held > 0 ? held : geometry.entry_bytes(), recipe.name + ": budget");
  if (amount.kind != Amount::Kind::bytes && recipe.size_factor != 1)
    total = static_cast<TokenCount>(static_cast<double>(total) * recipe.size_factor);
  if (recipe.capacity_step > 0 && !recipe.chunked) return rounded_up(recipe, geometry, total);
  return total;
}

// The sizing of a rule: B of the prompt, or what a chunk (or all chunks so far) may keep.
std::function<Sizing(const Pass&)> sizing_rule(const Recipe& recipe, const Geometry& geometry,
                                               int heads) {
  const RowIndex prompt = geometry.evict_point - recipe.early;
  if (!recipe.size) return [prompt](const Pass&) { return Sizing{kAll, prompt}; };
  const Amount amount = recipe.size.value;
  const TokenCount total = total_of(recipe, geometry, heads);
  const Sizing whole = recipe.competing ? Sizing::of_competing(total) : Sizing(total, prompt);
  if (!recipe.chunked) return [whole](const Pass&) { return whole; };
  if (recipe.size_factor != 1) {
    throw ConfigError(fmt::format(
        "chunked({}): what a chunk keeps is a count of entries, and {} asks for more of "
        "them at lower precision; give both in one budget",
        recipe.name, recipe.store ? recipe.store.owner : recipe.name));
  }

  const Recipe::Chunked chunked = *recipe.chunked;
  const RowIndex window = recipe.scorer.value.window;
  const bool by_share = amount.kind == Amount::Kind::share;
  return [=](const Pass& pass) {
    if (!pass.is_prompt_chunk()) return whole;
    const RowIndex rows = pass.rows();
    // The authors append the prompt's last `window` tokens to a patched chunk, and drop them
    // afterwards.
    const bool patch = chunked.patched && !pass.is_evict_point();
    const TokenCount least =
        chunked.small_window && !patch ? std::min<TokenCount>(window, rows) : 0;
    if (chunked.compete_all) {
      TokenCount count = total;
      if (by_share) {
        count = 0;
        RowIndex begin = 0;
        for (const RowIndex end : pass.ends) {
          count += chunk_count(chunked, amount, window, end - begin);
          begin = end;
        }
      }
      Sizing sizing = Sizing::of_competing(std::max(count, least) + (patch ? window : 0));
      if (patch)
        sizing.discount = window;
      else
        sizing.window_rows = rows;
      return sizing;
    }
    const TokenCount count = std::max(chunk_count(chunked, amount, window, rows), least);
    Sizing sizing(patch ? count + window : count, patch ? rows + window : rows);
    if (patch) sizing.discount = window;
    return sizing;
  };
}

// What a size means that looks like a method and is none.
void note_sizes(const Recipe& recipe, const Geometry& geometry, int heads, Policy& policy) {
  if (!recipe.size.is_own() || recipe.chunked) return;
  const TokenCount total = total_of(recipe, geometry, heads);
  if (total > geometry.tokens) {
    policy.notes.push_back(
        fmt::format("its size of {} entries is beyond all {} tokens: nothing is evicted", total,
                    geometry.tokens));
    return;
  }
  const RowIndex window = recipe.scorer.value.window;
  if (window == 0 || !recipe.protect || !recipe.protect.value || total >= geometry.evict_point)
    return;
  if (recipe.protect.value(total).recent < total) return;
  policy.notes.push_back(fmt::format(
      "its window of {} takes the whole budget of {} entries: the newest stay, whatever they score",
      window, total));
}

// A closed form of bytes ends where other rules evict what it cannot follow.
void limit_payload(const Storing& store, Policy& policy) {
  const bool follows =
      store.exact == Storing::Exact::always ||
      std::none_of(policy.rules.begin(), policy.rules.end(), [&](const Rule& rule) {
        return store.exact == Storing::Exact::without_evictions || rule.schedule.decode_every > 0 ||
               rule.threshold;
      });
  if (follows) return;
  policy.payload = store.bound;
  policy.closed_form = false;
}

// True if the heads of a layer may keep different numbers of entries.
bool differs_by_head(const Budget& budget, const Rule& rule, const Geometry& geometry) {
  if (!budget.content_free()) return true;
  const RowIndex end = geometry.evict_point;
  const Sizing sizing = rule.sizing({0, end, end, geometry.prompt, {&end, 1}}).among(end);
  for (int l = 0; l < geometry.layers(); ++l) {
    const LayerShape shape = geometry.shape(l, false);
    for (int h = 1; h < shape.heads; ++h) {
      if (budget.capacity(shape, h, sizing) != budget.capacity(shape, 0, sizing)) return true;
    }
  }
  return false;
}

Rule admission_rule(const Admission& gate) {
  Rule rule;
  rule.schedule = Schedule::every_pass();
  rule.scorer = gate.make;
  rule.threshold = gate.threshold;
  rule.protect = [window = gate.window](const Pass&, TokenCount) { return Protect{0, window}; };
  return rule;
}

// The window counts the next row, which writes over its oldest entry.
Recipe::Paged paged_reads(const Recipe& recipe) {
  if (!recipe.admission || !recipe.admission.value.own_pages) return recipe.paged(std::nullopt);
  return recipe.paged(recipe.admission.value.window + 1);
}

// The rule of a recipe's scorer, as it is without chunked().
Rule ranking_rule(const Recipe& recipe, const Geometry& geometry) {
  const Scoring& scoring = recipe.scorer.value;
  const int heads = geometry.shape(0, scoring.per_query_head).heads;
  Rule rule;
  rule.axis = scoring.axis;
  rule.scorer = scoring.make;
  rule.budget = budget_of(recipe);
  rule.sizing = [rule_sizing = sizing_rule(recipe, geometry, heads)](const Pass& pass) {
    Sizing sizing = rule_sizing(pass);
    sizing.born = pass.end;
    return sizing;
  };
  if (recipe.pick) {
    rule.pick = recipe.pick.value;
  } else {
    rule.order = scoring.order;  // by the ranking, which another pick does not follow
  }
  if (recipe.protect && recipe.protect.value) {
    rule.protect = [protect = recipe.protect.value](const Pass&, TokenCount tokens) {
      return protect(tokens);
    };
  }
  rule.schedule = recipe.schedule ? recipe.schedule.value : Schedule::at_evict_point();
  const bool once =
      !recipe.chunked && !rule.schedule.every_chunk && rule.schedule.decode_every == 0;
  if (scoring.sharing == Sharing::always || (scoring.sharing == Sharing::once && once))
    rule.ranking = scoring.ranking;
  return rule;
}

// A rule of chunks, and what it becomes in decode.
void add_chunked(const Recipe& recipe, Rule rule, Policy& policy) {
  Rule in_decode = rule;
  const bool protects = rule.protect != nullptr;
  rule.schedule = Schedule::each_chunk();
  rule.domain = recipe.chunked->compete_all ? Domain::all : Domain::newborn;
  rule.window_in_pass = true;
  if (protects) {  // the window is the chunk's own
    rule.protect = [protect = rule.protect, w = recipe.scorer.value.window](const Pass& pass,
                                                                            TokenCount tokens) {
      Protect out = protect(pass, tokens);
      if (w > 0) out.recent = std::min<TokenCount>(out.recent, pass.rows());
      return out;
    };
  }
  policy.rules.push_back(rule);
  if (recipe.chunked->patched) {
    // Chunks before the last are scored by the prompt's last rows, and protect nothing; the last
    // chunk's own tail is the prompt's tail.
    policy.rules.back().schedule = Schedule::at_evict_point();
    rule.schedule = Schedule::chunks_before_evict_point();
    rule.probe_with_prompt_tail = true;
    rule.protect = nullptr;
    policy.rules.push_back(rule);
  }
  if (in_decode.schedule.decode_every > 0) {
    // Places of recent entries that died in their frozen chunk stay empty: how many, content
    // decides.
    if (protects && !recipe.chunked->compete_all) policy.closed_form = false;
    in_decode.schedule.every_chunk = in_decode.schedule.evict_point = false;
    policy.rules.push_back(std::move(in_decode));
  }
}

// A budget of all layers is shared out when all have shown their scores, before anything leaves.
void check_coupled(const Recipe& recipe, const Rule& rule) {
  const Schedule& when = rule.schedule;
  if (!recipe.chunked && when.evict_point && !when.every_chunk && recipe.early == 0) return;
  throw ConfigError(fmt::format(
      "'{}' has no meaning: {} shares one budget among all layers, once, at the prompt's end",
      recipe.name, recipe.shape.owner));
}

void add_ranking(const Recipe& recipe, const Geometry& geometry, Policy& policy) {
  policy.per_query_head = recipe.scorer.value.per_query_head;
  Rule rule = ranking_rule(recipe, geometry);
  policy.closed_form = policy.closed_form && rule.budget->content_free();
  if (rule.budget->over_layers() != nullptr) {
    check_coupled(recipe, rule);
    policy.waits_for_layers = true;
  }
  if (rule.axis == Axis::layer && differs_by_head(*rule.budget, rule, geometry)) {
    throw ConfigError(fmt::format(
        "'{}' has no meaning: {} ranks one set for all heads of a layer, and {} gives every head a "
        "number of its own",
        recipe.name, recipe.scorer.owner, recipe.shape ? recipe.shape.owner : recipe.layers.owner));
  }
  if (recipe.size) {
    note_sizes(recipe, geometry, geometry.shape(0, recipe.scorer.value.per_query_head).heads,
               policy);
  }
  if (recipe.chunked) {
    add_chunked(recipe, std::move(rule), policy);
  } else {
    policy.rules.push_back(std::move(rule));
  }
}

}  // namespace

std::shared_ptr<const Budget> uniform_budget() { return std::make_shared<Uniform>(); }

TokenCount budget_tokens(const Amount& amount, const Geometry& geometry, int heads,
                         std::int64_t entry_bytes, const std::string& what) {
  if (amount.kind == Amount::Kind::tokens) return amount.mantissa;
  if (amount.kind == Amount::Kind::share) return amount.share_of(geometry.evict_point);
  const std::int64_t one = geometry.layers() * heads * entry_bytes;
  if (amount.mantissa < one) {
    throw ConfigError(
        fmt::format("{}={} is less than one entry a head: {} layers x {} heads x {} bytes need at "
                    "least {} B",
                    what, amount.text, geometry.layers(), heads, entry_bytes, one));
  }
  return amount.mantissa / one;
}

Policy bind(const Recipe& recipe, const Geometry& geometry) {
  Policy policy;
  policy.spec = fmt::format("{}", fmt::join(recipe.terms, "+"));
  static_cast<Traits&>(policy) = recipe;
  policy.klass = text_of(recipe.kinds);
  if (const auto& state = recipe.scorer.value.state)
    policy.charge = recipe.charge.plus({0, 0, state});
  policy.representations = {{"full precision", geometry.entry_bytes(), 0}};
  if (recipe.prefill_reads) policy.prefill_reads = recipe.prefill_reads.value;
  if (recipe.selector) policy.selector = recipe.selector.value;
  if (recipe.paged) {
    const Recipe::Paged paged = paged_reads(recipe);
    policy.selector = paged.selector;
    policy.charge = policy.charge.plus(paged.charge);
  }
  if (recipe.store) {
    const Storing& store = recipe.store.value;
    policy.store = store.make;
    policy.payload = store.payload;
    policy.alters_vectors = store.alters_vectors;
    policy.demotes = store.demotes;
    policy.representations.insert(policy.representations.end(), store.representations.begin(),
                                  store.representations.end());
  }
  if (recipe.admission) {
    policy.rules.push_back(admission_rule(recipe.admission.value));
    policy.closed_form = false;
  }
  if (recipe.scorer) {
    const auto first = static_cast<std::ptrdiff_t>(policy.rules.size());
    add_ranking(recipe, geometry, policy);
    for (auto rule = policy.rules.begin() + first;
         recipe.block_size > 0 && rule != policy.rules.end(); ++rule) {
      *rule = in_whole_blocks(*rule, recipe.block_size);
    }
  } else if (recipe.layers || recipe.shape || recipe.size) {
    throw ConfigError(
        fmt::format("{} spreads a budget but ranks nothing: add a policy with a scorer, as in "
                    "{}+snapkv(budget=512)",
                    recipe.name, recipe.name));
  }
  policy.rules.insert(policy.rules.end(), recipe.more_rules.begin(), recipe.more_rules.end());
  if (recipe.store) limit_payload(recipe.store.value, policy);
  if (policy.alters_vectors && policy.per_query_head && geometry.query_heads != geometry.kv_heads) {
    throw ConfigError(
        fmt::format("{}: {} holds one set of vectors per KV head, and group=none keeps one per "
                    "query head; take group=mean, max or sum",
                    policy.spec, recipe.store.owner));
  }
  return policy;
}

}  // namespace kvspan
