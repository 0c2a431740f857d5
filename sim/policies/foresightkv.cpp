// SPDX-License-Identifier: Apache-2.0
// ForesightKV: after the prompt and after every `interval` decode rows a small network per (layer, KV
// head) looks at how the last `interval` queries attended to each entry, and at its k and v, and gives
// a drop score; the newest `interval` entries are never candidates and count inside the budget.
// Source: arXiv 2602.03203; code RUCAIBox/ForesightKV (supervised_training/, evaluation/).
//   Features of an entry, for each query head of the group: max, min and sum of its probability over
//   the interval, the sums over its last 16, 8 and 32 rows, the running sum of the sums, and the same
//   decayed by 0.9 an interval; then k (post-rotary) and v. The running sums start at the prompt's
//   last interval, where the evaluation code starts them. (That code rebuilds the decayed sum from
//   the plain one; here it is the training code's.)
//   select=sample: the published choice, also at inference: as many victims as are needed, drawn
//   without replacement from the softmax of the drop scores of the twice as many worst (Gumbel top-k).
//   Decisions are counted from the prompt's end; the authors act when the number of tokens is a
//   multiple of the interval.
// scorer=golden is Golden Eviction, the label of the training: a bound that reads the future. It
// drops the smallest  max over future blocks of `interval` rows of the mean over the block's rows and
// the group's query heads of the full cache's probability.
// scorer=ridge, logit, mlp: stand-ins, fitted on the golden trajectory over the first half of the
// prompt, or loaded from a file of `kvspan fit`: ridge of -log(label + 1e-6), logistic regression of
// "golden drops it", the published network with its pairwise hinge loss. attn: ridge without k, v.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/policies/shared/fitted.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

constexpr std::size_t kStats = 8;
constexpr std::size_t kUnits = 16;  // of the published network
constexpr double kDecay = 0.9;

// Statistics of one query head over one interval, [entries].
struct IntervalStats {
  std::array<std::vector<float>, 6> values;  // max, min, sum, last 16, last 8, last 32
  explicit IntervalStats(std::size_t entries) {
    for (auto& v : values) v.assign(entries, 0.0F);
    values[1].assign(entries, std::numeric_limits<float>::infinity());
  }
  // Entry i received p; `left`: rows of the interval from this one on.
  void add(std::size_t i, float p, RowIndex left) {
    values[0][i] = std::max(values[0][i], p);
    values[1][i] = std::min(values[1][i], p);
    values[2][i] += p;
    if (left <= 16) values[3][i] += p;
    if (left <= 8) values[4][i] += p;
    if (left <= 32) values[5][i] += p;
  }
};

// Mean probability of every key in blocks of `interval` rows from `origin` on, over the rows of the
// block (the last one padded with zeros) and the query heads of the group: [blocks][kv_heads][end].
using Blocks = std::vector<std::vector<std::vector<float>>>;
Blocks block_means(const Trace& trace, int layer, RowIndex origin, RowIndex end,
                   RowIndex interval) {
  const TraceMeta& m = trace.meta();
  const int group = m.query_heads / m.kv_heads;
  const auto blocks = index((std::max<RowIndex>(end - origin, 0) + interval - 1) / interval);
  Blocks out(blocks);
  for (auto& block : out) block.assign(index(m.kv_heads), std::vector<float>(index(end), 0.0F));
  std::vector<std::vector<double>> sums(index(m.kv_heads), std::vector<double>(index(end), 0.0));
  const auto store = [&](std::size_t block) {
    for (std::size_t h = 0; h < sums.size(); ++h) {
      for (std::size_t i = 0; i < sums[h].size(); ++i)
        out[block][h][i] = static_cast<float>(sums[h][i] / static_cast<double>(interval * group));
      std::fill(sums[h].begin(), sums[h].end(), 0.0);
    }
  };
  for_each_row(trace, layer, origin, end, [&](int q, RowIndex row, const RowTerms& terms) {
    const double sum = terms.sum + terms.sink;
    if (sum > 0) {
      auto& into = sums[index(q / group)];
      for (RowIndex i = 0; i <= row; ++i)
        into[index(i)] += static_cast<double>(terms.terms[i]) / sum;
    }
    const bool last = row + 1 == end || (row + 1 - origin) % interval == 0;
    if (last && q == m.query_heads - 1) store(index((row - origin) / interval));
  });
  return out;
}

// The label: the largest block mean from a block on; [blocks + 1][kv_heads][end].
void largest_from(Blocks& means) {
  if (means.empty()) return;
  for (std::size_t b = means.size() - 1; b-- > 0;) {
    for (std::size_t h = 0; h < means[b].size(); ++h) {
      for (std::size_t i = 0; i < means[b][h].size(); ++i)
        means[b][h][i] = std::max(means[b][h][i], means[b + 1][h][i]);
    }
  }
}

class Golden final : public Scorer {
 public:
  Golden(const Geometry& geometry, int layer, RowIndex interval)
      : trace_(geometry.trace), layer_(layer), interval_(interval) {
    // In decode alone, blocks begin at the prompt's end; with chunks, as far before it as they go.
    origin_ = geometry.chunk == 0 ? geometry.evict_at : geometry.evict_at % interval;
  }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    if (!known_) {
      future_ = block_means(*trace_, layer_, origin_, trace_->meta().tokens, interval_);
      largest_from(future_);
      known_ = true;
    }
    const RowIndex since = std::max<RowIndex>(0, view.pass().end - origin_);
    const std::size_t block = index((since + interval_ - 1) / interval_);
    std::fill(out.begin(), out.end(), 0.0);
    if (block >= future_.size()) return 0;
    const auto& label = future_[block][index(head)];
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] = static_cast<double>(label[index(entries[i])]);
    return 0;
  }

 private:
  const Trace* trace_;
  int layer_;
  RowIndex interval_;
  RowIndex origin_ = 0;
  bool known_ = false;
  Blocks future_;
};

class Foresight final : public Scorer {
 public:
  struct Settings {
    Schedule schedule;
    RowIndex interval = 0;
    bool vectors = true;  // k and v are features
    std::shared_ptr<const RegressorSet> weights;
    FitOptions fit;
    RowIndex fit_end = 0;
    const Trace* trace = nullptr;
  };
  Foresight(const LayerShape& shape, Settings settings)
      : shape_(shape),
        settings_(std::move(settings)),
        sums_(index(shape.query_heads)),
        decayed_(index(shape.query_heads)),
        heads_(index(shape.heads)) {}

  Needs needs() const override {
    // Maxima and minima of truncated probabilities have no bound: k refuses score traces.
    return {.last_rows = settings_.interval,
            .observe = Observe::from_prompt_end,
            .k = true,
            .v = settings_.vectors};
  }
  void observe(const View& view, RowIndex /*begin*/, RowIndex end) override {
    if (end != view.pass().end || !settings_.schedule.due(view.pass())) return;
    for (int h = 0; h < shape_.heads; ++h) update(view, h);
  }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const Head& state = update(view, head);
    const std::vector<Regressor>& models = fitted(view.shape());
    const std::size_t group = index(shape_.group());
    const std::size_t width = models.front().width;
    const bool vectors = width > kStats * group;
    std::vector<float> x;
    x.reserve(entries.size() * width);
    std::size_t at = 0;
    for (const TokenIndex t : entries) {
      while (state.tokens[at] != t) ++at;
      const auto first = state.features.begin() + static_cast<std::ptrdiff_t>(at * kStats * group);
      x.insert(x.end(), first, first + static_cast<std::ptrdiff_t>(kStats * group));
      if (!vectors) continue;
      for (const std::vector<float>& part : {view.key(head, t), view.value(head, t)})
        x.insert(x.end(), part.begin(), part.end());
    }
    models[index(head)].evaluate(x, out);
    for (double& drop : out) drop = -drop;
    return 0;
  }

 private:
  struct Head {
    RowIndex when = -1;
    std::vector<TokenIndex> tokens;
    std::vector<float> features;  // [tokens, stats, group]
  };

  const Head& update(const View& view, int head) {
    Head& state = heads_[index(head)];
    const RowIndex end = view.pass().end;
    if (state.when == end) return state;
    state.when = end;
    const auto resident = view.resident(head);
    state.tokens.assign(resident.begin(), resident.end());
    const std::size_t n = resident.size();
    const std::size_t group = index(shape_.group());
    state.features.assign(n * kStats * group, 0.0F);
    const RowIndex rows = std::min(settings_.interval, end);
    std::vector<double> p(n);
    for (std::size_t g = 0; g < group; ++g) {
      const std::size_t q = index(head) * group + g;
      IntervalStats stats(n);
      for (RowIndex row = end - rows; row < end; ++row) {
        (void)view.probabilities(static_cast<int>(q), row, resident, p);
        for (std::size_t i = 0; i < n; ++i) stats.add(i, static_cast<float>(p[i]), end - row);
      }
      sums_[q].resize(index(end), 0.0F);
      decayed_[q].resize(index(end), 0.0F);
      for (std::size_t i = 0; i < n; ++i) {
        float& sum = sums_[q][index(resident[i])];
        float& decayed = decayed_[q][index(resident[i])];
        sum += stats.values[2][i];
        decayed = static_cast<float>(kDecay) * decayed + stats.values[2][i];
        float* out = state.features.data() + i * kStats * group + g;
        for (std::size_t s = 0; s < 6; ++s) out[s * group] = stats.values[s][i];
        out[6 * group] = sum;
        out[7 * group] = decayed;
      }
    }
    return state;
  }

  const std::vector<Regressor>& fitted(const LayerShape& shape) {
    if (settings_.weights) {
      const std::size_t attention = kStats * index(shape.group());
      const std::size_t all = attention + index(shape.k_dim + shape.v_dim);
      const bool file_has_vectors =
          settings_.weights->regressors.front().front().width != attention && settings_.vectors;
      return settings_.weights->layer(shape.model_layer, index(shape.heads),
                                      file_has_vectors ? all : attention);
    }
    if (models_.empty()) {
      models_ = fit_layer(fitted_scorer("foresightkv"), *settings_.trace, shape.layer,
                          settings_.fit_end, settings_.fit);
    }
    return models_;
  }

  LayerShape shape_;
  Settings settings_;
  std::vector<std::vector<float>> sums_, decayed_;  // [query_heads][tokens so far]
  std::vector<Head> heads_;
  std::vector<Regressor> models_;
};

// Draws victims from the twice as many worst; larger scores are kept.
Pick sampled(std::uint64_t seed) {
  return [seed](const View& view, int head, std::span<const TokenIndex> entries,
                std::span<const double> scores, TokenCount keep, std::vector<char>& leaves) {
    const std::size_t drop = entries.size() - index(keep);
    const std::size_t pool = std::min(2 * drop, entries.size());
    std::vector<char> worst(entries.size(), 0);
    pick_top(view, head, entries, scores, static_cast<TokenCount>(entries.size() - pool), worst);
    std::vector<std::pair<double, std::size_t>> order;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (worst[i] == 0) continue;
      const double u = uniform(seed, {view.shape().model_layer, head, view.pass().end, entries[i]});
      order.emplace_back(scores[i] + std::log(-std::log(u)), i);  // minus Gumbel noise
    }
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first : a.second > b.second;
    });
    for (std::size_t i = 0; i < drop; ++i) leaves[order[i].second] = 1;
  };
}

// The golden trajectory of one KV head over rows [0, end).
struct Trajectory {
  std::vector<RowIndex> when;                     // decisions
  std::vector<std::vector<TokenIndex>> list;      // candidates
  std::vector<std::vector<char>> drops;           // [candidates]
  std::vector<std::vector<float>> label;          // [candidates]
  std::vector<std::vector<TokenIndex>> resident;  // before the decision
};

Trajectory golden_trajectory(const Blocks& future, std::size_t head, RowIndex end,
                             RowIndex interval, TokenCount budget) {
  Trajectory out;
  std::vector<TokenIndex> list;
  const RowIndex first = (budget + interval + interval - 1) / interval * interval;
  TokenIndex born = 0;
  for (RowIndex t = first; t < end; t += interval) {
    for (; born < t; ++born) list.push_back(born);
    const std::size_t block = index(t / interval);
    if (block >= future.size()) break;
    const auto drop = index(static_cast<TokenCount>(list.size()) - budget);
    const std::size_t candidates =
        index(std::lower_bound(list.begin(), list.end(), t - interval) - list.begin());
    const std::span<const TokenIndex> c(list.data(), candidates);
    std::vector<std::size_t> order(candidates);
    for (std::size_t i = 0; i < candidates; ++i) order[i] = i;
    std::vector<float> label;
    for (const TokenIndex token : c) label.push_back(future[block][head][index(token)]);
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return label[a] != label[b] ? label[a] < label[b] : a > b;
    });
    std::vector<char> drops(candidates, 0);
    for (std::size_t i = 0; i < std::min(drop, candidates); ++i) drops[order[i]] = 1;
    out.when.push_back(t);
    out.list.emplace_back(c.begin(), c.end());
    out.resident.push_back(list);
    out.drops.push_back(drops);
    out.label.push_back(label);
    std::vector<TokenIndex> left;
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (i >= candidates || drops[i] == 0) left.push_back(list[i]);
    }
    list = std::move(left);
  }
  return out;
}

// Intervals and budgets that leave decisions in a short text.
RowIndex fit_interval(const FitOptions& o, RowIndex end) {
  return std::clamp<RowIndex>(o.interval, 1, std::max<RowIndex>(1, end / 4));
}

std::vector<Samples> gather(const Trace& trace, int layer, RowIndex from, RowIndex end,
                            const FitOptions& options) {
  const TraceMeta& m = trace.meta();
  const std::size_t group = index(m.query_heads / m.kv_heads);
  const RowIndex interval = fit_interval(options, end);
  const TokenCount budget =
      std::clamp<TokenCount>(options.budget, 1, std::max<RowIndex>(1, end / 2));
  Blocks future = block_means(trace, layer, 0, end, interval);
  largest_from(future);
  std::vector<Trajectory> golden;
  std::vector<std::vector<char>> alive(index(m.kv_heads), std::vector<char>(index(end), 1));
  std::vector<Samples> out(index(m.kv_heads));
  const std::size_t vectors = options.attention_only ? 0 : index(m.head_dim + m.v_head_dim);
  for (int h = 0; h < m.kv_heads; ++h) {
    golden.push_back(golden_trajectory(future, index(h), end, interval, budget));
    out[index(h)].width = kStats * group + vectors;
  }
  if (golden.empty() || golden.front().when.empty()) return out;
  const LayerVectors k = read_vectors(trace, layer, 'k', 0, end);
  const LayerVectors v = vectors == 0 ? LayerVectors{} : read_vectors(trace, layer, 'v', 0, end);
  const std::vector<RowIndex> when = golden.front().when;  // the same for all heads
  std::vector<IntervalStats> stats(index(m.query_heads), IntervalStats(index(end)));
  std::vector<std::vector<float>> sums(index(m.query_heads), std::vector<float>(index(end), 0.0F));
  std::vector<std::vector<float>> decayed = sums;
  std::size_t next = 0;
  const auto decide = [&] {
    const RowIndex t = when[next];
    for (std::size_t q = 0; q < sums.size(); ++q) {
      for (std::size_t i = 0; i < index(t); ++i) {
        sums[q][i] += stats[q].values[2][i];
        decayed[q][i] = static_cast<float>(kDecay) * decayed[q][i] + stats[q].values[2][i];
      }
    }
    for (std::size_t h = 0; h < golden.size(); ++h) {
      const Trajectory& g = golden[h];
      for (std::size_t c = 0; c < g.list[next].size(); ++c) {
        const TokenIndex token = g.list[next][c];
        if (g.drops[next][c] != 0) alive[h][index(token)] = 0;
        if (t < from) continue;
        Samples& s = out[h];
        for (std::size_t f = 0; f < kStats; ++f) {
          for (std::size_t q = h * group; q < (h + 1) * group; ++q) {
            s.x.push_back(f < 6    ? stats[q].values[f][index(token)]
                          : f == 6 ? sums[q][index(token)]
                                   : decayed[q][index(token)]);
          }
        }
        if (vectors > 0) {
          for (const auto& part :
               {k.at(token, static_cast<int>(h)), v.at(token, static_cast<int>(h))})
            s.x.insert(s.x.end(), part.begin(), part.end());
        }
        const auto label = static_cast<double>(g.label[next][c]);
        s.y.push_back(options.method == "logit" ? (g.drops[next][c] != 0 ? 1.0 : 0.0)
                                                : -std::log(label + 1e-6));
        s.decision.push_back(static_cast<std::int32_t>(next));
      }
    }
    stats.assign(stats.size(), IntervalStats(index(end)));
    ++next;
  };
  for_each_row(trace, layer, when.front() - interval, when.back(),
               [&](int q, RowIndex row, const RowTerms& terms) {
                 const auto& readable = alive[index(q) / group];
                 double sum = terms.sink;
                 for (RowIndex i = 0; i <= row; ++i) {
                   if (readable[index(i)] != 0) sum += static_cast<double>(terms.terms[i]);
                 }
                 const RowIndex left = when[next] - row;
                 for (RowIndex i = 0; i <= row && sum > 0; ++i) {
                   if (readable[index(i)] == 0) continue;
                   const double p = static_cast<double>(terms.terms[i]) / sum;
                   stats[index(q)].add(index(i), static_cast<float>(p), left);
                 }
                 if (row + 1 == when[next] && q == m.query_heads - 1) decide();
               });
  return out;
}

// Parameters of the published network, all layers.
std::int64_t network_parameters(const Geometry& g, bool vectors) {
  const std::int64_t group = g.query_heads / g.kv_heads;
  const std::int64_t inputs = 8 * group + (vectors ? g.k_dim + g.v_dim : 0);
  return std::int64_t{g.layers()} * g.kv_heads * (inputs * 16 + 33);
}

constexpr TokenCount kPublishedInterval = 128;  // of the evaluation harness

}  // namespace

FittedScorer foresightkv_fit() {
  FittedScorer out;
  out.name = "foresightkv";
  out.features = "8 statistics of attention over an interval for each query head; k; v";
  out.label = "largest future block mean on the golden trajectory (logit: golden drops it)";
  out.methods = {"ridge", "logit", "mlp"};
  out.gather = gather;
  out.fit = [](const Samples& samples, const FitOptions& o) {
    if (o.method == "ridge") return fit_ridge(samples, o.lambda);
    if (o.method == "mlp") {
      MlpOptions mlp;
      mlp.hidden = kUnits;
      mlp.steps = o.steps;
      mlp.seed = o.seed;
      return fit_mlp(samples, mlp);
    }
    // Classes weigh the same: (B - I) / I with the rows that there are.
    const auto ones = static_cast<double>(std::count(samples.y.begin(), samples.y.end(), 1.0));
    const double others = static_cast<double>(samples.rows()) - ones;
    return fit_logit(samples, o.lambda, ones > 0 && others > 0 ? others / ones : 1);
  };
  out.quality = [](const Regressor& model, const Samples& samples, const Trace&, int, int, RowIndex,
                   RowIndex) { return agreement(model, samples); };
  return out;
}

PolicyEntry foresightkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "foresightkv";
  entry.kind = MethodKind::eviction;
  entry.summary =
      "a learned drop score of recent attention, k and v, every interval of decode rows";
  entry.source = "arXiv 2602.03203; code RUCAIBox/ForesightKV";
  entry.evidence = "code read; weights fitted here";
  entry.differs =
      "the interval is 256 in training and 128 in evaluation; the evaluation code rebuilds "
      "the decayed sum from the wrong tensor, here it decays as in training";
  entry.needs = "q, k and v; golden: probabilities of all decode rows";
  entry.parameters = {
      budget_parameter(),
      {.name = "scorer",
       .kind = Kind::word,
       .fallback = "ridge",
       .help = "golden: the label itself, a bound; file: whatever `weights` holds",
       .choices = {"ridge", "logit", "mlp", "attn", "golden", "file"}},
      weights_parameter(),
      {.name = "interval",
       .fallback = "auto",
       .unit = "decode rows",
       .help =
           "between decisions; the newest so many are never candidates; auto: 128, or budget / 4",
       .range = {1, 1e6}},
      {.name = "select",
       .kind = Kind::word,
       .fallback = "auto",
       .help = "victims drawn at random, or the worst; auto: sample as published, golden: topk",
       .choices = {"sample", "topk"}},
      seed_parameter("of draws and fits")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::string scorer = arguments.text("scorer");
    const bool golden = scorer == "golden";
    const bool attention_only = scorer == "attn";
    // Published with budgets of 1,024 and more: under a small one the newest 128 would be all of it.
    const TokenCount budget = entries_of(arguments, "budget", geometry);
    if (!arguments.has("interval")) {
      arguments.set("interval",
                    std::to_string(std::clamp<TokenCount>(budget / 4, 1, kPublishedInterval)));
    }
    const RowIndex interval = arguments.count("interval");
    const std::uint64_t seed = seed_of(arguments, geometry);
    if (!arguments.has("select")) arguments.set("select", golden ? "topk" : "sample");
    if (scorer == "file" && arguments.is("weights", "self")) {
      throw ConfigError(
          "foresightkv(scorer=file): found weights=self, expected a file of `kvspan fit "
          "foresightkv`");
    }
    if (golden && arguments.given("weights"))
      throw ConfigError("foresightkv(scorer=golden) has no weights: leave out weights=");
    const std::string method = attention_only ? "ridge" : scorer == "file" ? "" : scorer;
    const auto weights = golden ? nullptr : load_weights(arguments, method);

    const Schedule schedule = Schedule::from_evict_point(interval);
    Scoring scoring;
    scoring.evicts_in_decode = true;
    std::string note = "bound: reads the future";
    if (golden) {
      scoring.make = [geometry, interval](const LayerShape& shape) {
        return std::make_unique<Golden>(geometry, shape.layer, interval);
      };
    } else {
      Foresight::Settings settings;
      settings.schedule = schedule;
      settings.interval = interval;
      settings.vectors = !attention_only;
      settings.weights = weights;
      settings.fit.method = method;
      settings.fit.seed = seed;
      settings.fit.interval = interval;
      settings.fit.budget = budget;
      settings.fit.attention_only = attention_only;
      settings.fit_end = geometry.evict_at / 2;
      settings.trace = geometry.trace;
      scoring.make = [settings](const LayerShape& shape) {
        return std::make_unique<Foresight>(shape, settings);
      };
      note = fitted_note(arguments, attention_only ? "ridge without k and v" : scorer, geometry);
    }
    Recipe recipe = budgeted(arguments, geometry, own(scoring), own(schedule));
    recipe.bound = golden;
    recipe.notes.push_back(note);
    recipe.protect = own(protect_recent(interval));
    if (arguments.is("select", "sample")) recipe.pick = own(sampled(seed));
    // Both running sums of every query head of the group.
    recipe.charge.entry = 2 * (geometry.query_heads / geometry.kv_heads) * geometry.kv_bytes;
    // The network, and the queries of an interval.
    recipe.charge.once =
        geometry.kv_bytes * (network_parameters(geometry, !attention_only) +
                             interval * geometry.query_heads * geometry.k_dim * geometry.layers());
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
