// SPDX-License-Identifier: Apache-2.0
// Judge Q: 32 trained soft tokens after the prompt attend to it as an answer would; what they attend to
// is kept, once, after the prompt. The soft tokens' own entries are then deleted.
// Source: arXiv 2509.10798, from its abstract and a third-party summary; no code was to be had. Silent:
// pooling, a recent window and the reduction over a group's query heads (here 1, 0 and the mean).
// scorer=oracle: what the soft tokens are trained to imitate, the mean of the decode rows' attention.
//   A bound that reads the future.
// scorer=static: stand-in for soft tokens, which are the same for every prompt: per query head `m`
//   fixed queries before rotary, rotated to the m positions after the prompt; the mean of their
//   softmax over the prompt's keys. With weights=self they are k-means centres of the prompt's own
//   queries (at most 1,024 rows, evenly spread), which is no look-ahead; with a file, of its trace's.
// scorer=ridge: the query is predicted from the mean of the last 32 queries and the mean of all, by
//   ridge regression on cut points in the first half of the prompt; then as static, at m positions.
#include <algorithm>
#include <cmath>

#include <Eigen/Core>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/policies/shared/fitted.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr RowIndex kLastQueries = 32;    // of the ridge's first feature, and of its target
constexpr RowIndex kMostQueries = 1024;  // rows that centres and means are taken of
constexpr RowIndex kMostFitRows = 16384;

// Adds the softmax over `keys` [n, d] of queries that stand at positions first, first + 1, ...;
// visible: keys from that one on, by the model's own sliding window.
void add_softmax(const FloatMatrix& keys, const std::vector<std::vector<float>>& queries,
                 const TraceMeta& m, const std::vector<Eigen::Index>& visible,
                 Eigen::ArrayXd& out) {
  for (std::size_t j = 0; j < queries.size(); ++j) {
    const Eigen::Index from = visible[j];
    const Eigen::Index n = keys.rows() - from;
    if (n <= 0) continue;
    const Eigen::Map<const Eigen::VectorXf> q(queries[j].data(), keys.cols());
    Eigen::ArrayXd z = (keys.bottomRows(n) * q).cast<double>().array() * m.score_scale;
    if (m.logit_softcap > 0) z = m.logit_softcap * (z / m.logit_softcap).tanh();
    // Not Eigen's exp(), which gives the last elements of an array other last bits.
    z = (z - z.maxCoeff()).unaryExpr([](double x) { return std::exp(x); });
    out.tail(n) += z / z.sum();
  }
}

// Queries before rotary, rotated to `first` and the positions after it.
std::vector<std::vector<float>> rotated(const TraceMeta& m, std::vector<std::vector<float>> queries,
                                        RowIndex first) {
  for (std::size_t j = 0; j < queries.size() && m.rope; ++j)
    rotate(*m.rope, static_cast<double>(first) + static_cast<double>(j), queries[j]);
  return queries;
}

std::vector<std::vector<float>> centres_of(const Regressor& model) {
  std::vector<std::vector<float>> out;
  for (std::size_t i = 0; i < model.hidden; ++i) {
    const auto at = model.parameters.begin() + static_cast<std::ptrdiff_t>(i * model.width);
    out.emplace_back(at, at + static_cast<std::ptrdiff_t>(model.width));
  }
  return out;
}

std::vector<std::vector<float>> predicted(const Regressor& model, std::span<const float> features,
                                          std::size_t queries) {
  std::vector<double> out(model.outputs);
  model.evaluate(features, out);
  return std::vector<std::vector<float>>(queries, std::vector<float>(out.begin(), out.end()));
}

// [mean of the last 32; mean of all] of queries before rotary [rows, dim].
std::vector<float> query_means(std::span<const float> rows, std::size_t dim) {
  const std::size_t n = rows.size() / dim;
  const std::size_t last = std::min<std::size_t>(n, kLastQueries);
  std::vector<double> sums(2 * dim, 0.0);
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t d = 0; d < dim; ++d) {
      const auto value = static_cast<double>(rows[r * dim + d]);
      if (r + last >= n) sums[d] += value / static_cast<double>(last);
      sums[dim + d] += value / static_cast<double>(n);
    }
  }
  return {sums.begin(), sums.end()};
}

// ridge: one row a cut point c: the means before c against the mean of the next 32 queries.
// centres: the queries themselves.
std::vector<Samples> gather(const Trace& trace, int layer, RowIndex from, RowIndex end,
                            const FitOptions& options) {
  const TraceMeta& m = trace.meta();
  const RowIndex begin = std::max(from, end - kMostFitRows);
  const LayerVectors q = read_vectors(trace, layer, 'q', begin, end, true);
  std::vector<Samples> out(index(m.query_heads));
  const std::size_t dim = index(m.head_dim);
  for (int head = 0; head < m.query_heads; ++head) {
    Samples& s = out[index(head)];
    if (options.method == "centres") {
      s.width = dim;
      const RowIndex stride = std::max<RowIndex>(1, (end - begin) / kMostQueries);
      for (RowIndex r = begin; r < end; r += stride) {
        s.x.insert(s.x.end(), q.at(r, head).begin(), q.at(r, head).end());
        s.y.push_back(0);
      }
      continue;
    }
    s.width = 2 * dim;
    s.outputs = dim;
    std::vector<float> rows;
    for (RowIndex r = begin; r < end; ++r)
      rows.insert(rows.end(), q.at(r, head).begin(), q.at(r, head).end());
    const RowIndex ahead = std::clamp<RowIndex>((end - begin) / 4, 1, kLastQueries);
    const RowIndex stride = std::max<RowIndex>(1, (end - begin) / 256);
    for (RowIndex c = begin + ahead; c + ahead <= end; c += stride) {
      const std::vector<float> x = query_means(std::span(rows).first(index(c - begin) * dim), dim);
      s.x.insert(s.x.end(), x.begin(), x.end());
      for (std::size_t d = 0; d < dim; ++d) {
        double mean = 0;
        for (RowIndex r = c; r < c + ahead; ++r)
          mean += static_cast<double>(q.at(r, head)[d]) / static_cast<double>(ahead);
        s.y.push_back(mean);
      }
    }
  }
  return out;
}

Regressor fit(const Samples& samples, const FitOptions& options) {
  if (options.method == "ridge") return fit_ridge(samples, options.lambda);
  return fit_centres(samples.x, samples.width, index(options.queries), options.seed);
}

// Kendall's tau between predicted and real attention: the first half of the rows is the prompt, at
// most 64 rows of the rest answer.
double quality(const Regressor& model, const Samples& /*samples*/, const Trace& trace, int layer,
               int head, RowIndex from, RowIndex end) {
  const TraceMeta& m = trace.meta();
  const std::size_t dim = index(m.head_dim);
  from = std::max(from, end - kMostFitRows);
  const RowIndex cut = from + (end - from) / 2;
  if (cut == from || cut == end) return 0;
  const LayerVectors k = read_vectors(trace, layer, 'k', from, cut);
  const LayerVectors q = read_vectors(trace, layer, 'q', from, end);
  FloatMatrix keys(cut - from, static_cast<Eigen::Index>(dim));
  for (RowIndex i = from; i < cut; ++i) {
    const auto key = k.at(i, head / (m.query_heads / m.kv_heads));
    std::copy(key.begin(), key.end(), keys.data() + index(i - from) * dim);
  }
  std::vector<std::vector<float>> answer;
  for (RowIndex r = cut; r < end; r += std::max<RowIndex>(1, (end - cut) / 64))
    answer.emplace_back(q.at(r, head).begin(), q.at(r, head).end());
  std::vector<float> before;
  for (RowIndex r = from; r < cut; ++r) {
    std::vector<float> one(q.at(r, head).begin(), q.at(r, head).end());
    if (m.rope) rotate(*m.rope, -static_cast<double>(r), one);
    before.insert(before.end(), one.begin(), one.end());
  }
  const auto queries =
      model.method == "centres" ? centres_of(model) : predicted(model, query_means(before, dim), 1);
  Eigen::ArrayXd truth = Eigen::ArrayXd::Zero(keys.rows());
  Eigen::ArrayXd guess = truth;
  add_softmax(keys, answer, m, std::vector<Eigen::Index>(answer.size(), 0), truth);
  add_softmax(keys, rotated(m, queries, cut), m, std::vector<Eigen::Index>(queries.size(), 0),
              guess);
  return kendall_tau({guess.data(), index(guess.size())}, {truth.data(), index(truth.size())});
}

struct Settings {
  std::string scorer;
  std::shared_ptr<const RegressorSet> weights;
  std::shared_ptr<const LayerTable> table;
  FitOptions fit;
  Group group = Group::mean;
  int kernel = 1;
  RowIndex fit_end = 0;
  Geometry geometry;
};

class JudgeQ final : public Scorer {
 public:
  explicit JudgeQ(std::shared_ptr<const Settings> settings) : s_(std::move(settings)) {}
  Needs needs() const override {
    const bool vectors = s_->scorer == "static" || s_->scorer == "ridge";
    return {.q = vectors, .k = vectors};
  }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    if (s_->scorer == "file") {
      const auto& table = *s_->table;
      const double* row = table.layers[index(view.shape().layer)].data() + head * table.tokens;
      for (std::size_t i = 0; i < entries.size(); ++i) out[i] = row[entries[i]];
    } else {
      (void)reduce_group(view.shape(), head, s_->group, out, [&](int q, std::span<double> one) {
        if (s_->scorer == "oracle") {
          decode_mean(view.shape(), q, entries, one);
        } else {
          expected(view, q, entries, one);
        }
        return 0.0;
      });
    }
    pool(Pool::max, s_->kernel, out);
    round_sums(out);
    return 0;
  }

 private:
  void decode_mean(const LayerShape& shape, int query_head, std::span<const TokenIndex> entries,
                   std::span<double> out) {
    const Trace& trace = *s_->geometry.trace;
    const RowIndex end = trace.meta().tokens;
    const RowIndex begin = s_->geometry.prompt;
    if (sums_.empty()) {
      sums_.assign(index(shape.query_heads), std::vector<double>(index(end), 0.0));
      for_each_row(trace, shape.layer, begin, end, [&](int q, RowIndex row, const RowTerms& terms) {
        const double sum = terms.sum + terms.sink;
        if (!(sum > 0)) return;
        for (RowIndex i = 0; i <= row; ++i)
          sums_[index(q)][index(i)] += static_cast<double>(terms.terms[i]) / sum;
      });
    }
    const double rows = static_cast<double>(std::max<RowIndex>(1, end - begin));
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] = sums_[index(query_head)][index(entries[i])] / rows;
  }

  void expected(const View& view, int query_head, std::span<const TokenIndex> entries,
                std::span<double> out) {
    const TraceMeta& m = s_->geometry.trace->meta();
    const LayerShape& shape = view.shape();
    const RowIndex end = view.pass().end;
    const int head = query_head / shape.group();
    const auto resident = view.resident(head);
    const auto dim = static_cast<Eigen::Index>(shape.k_dim);
    const int kv_head = query_head / (shape.query_heads / shape.kv_heads);
    FloatMatrix keys(static_cast<Eigen::Index>(resident.size()), dim);
    for (std::size_t i = 0; i < resident.size(); ++i) {
      const std::vector<float> key = view.key(kv_head, resident[i]);
      std::copy(key.begin(), key.end(), keys.data() + i * key.size());
    }
    const auto queries = rotated(m, queries_of(view, query_head), end);
    const std::int64_t window = m.sliding_window.empty() ? 0 : m.sliding_window[index(shape.layer)];
    std::vector<Eigen::Index> visible;
    for (std::size_t j = 0; j < queries.size(); ++j) {
      const RowIndex first =
          window == 0 ? 0 : std::max<RowIndex>(0, end + static_cast<RowIndex>(j) - window + 1);
      visible.push_back(std::lower_bound(resident.begin(), resident.end(), first) -
                        resident.begin());
    }
    Eigen::ArrayXd score = Eigen::ArrayXd::Zero(keys.rows());
    add_softmax(keys, queries, m, visible, score);
    std::size_t at = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      while (resident[at] != entries[i]) ++at;
      out[i] = score(static_cast<Eigen::Index>(at)) / static_cast<double>(queries.size());
    }
  }

  // The fixed queries of one head, before rotary.
  std::vector<std::vector<float>> queries_of(const View& view, int query_head) {
    const LayerShape& shape = view.shape();
    const Trace& trace = *s_->geometry.trace;
    const bool ridge = s_->scorer == "ridge";
    const std::size_t dim = index(shape.k_dim);
    const std::vector<Regressor>* models = nullptr;
    if (s_->weights) {
      models =
          &s_->weights->layer(shape.model_layer, index(shape.query_heads), ridge ? 2 * dim : dim);
    } else if (ridge) {
      if (models_.empty())
        models_ = fit_layer(fitted_scorer("judgeq"), trace, shape.layer, s_->fit_end, s_->fit);
      models = &models_;
    }
    if (models != nullptr && !ridge) return centres_of((*models)[index(query_head)]);
    // Queries so far, evenly spread, and the last ones for the ridge's first feature.
    const RowIndex end = view.pass().end;
    std::vector<float> rows;
    const RowIndex stride = (end + kMostQueries - 1) / kMostQueries;
    for (RowIndex r = 0; r < end; ++r) {
      const bool last = ridge && r >= end - kLastQueries;
      if (!last && r % stride != 0) continue;
      std::vector<float> q = view.query(query_head, r);
      if (trace.meta().rope) rotate(*trace.meta().rope, -static_cast<double>(r), q);
      rows.insert(rows.end(), q.begin(), q.end());
    }
    if (!ridge) {
      const std::uint64_t seed = splitmix64(s_->fit.seed ^ static_cast<std::uint64_t>(query_head));
      return centres_of(fit_centres(rows, dim, index(s_->fit.queries), seed));
    }
    return predicted((*models)[index(query_head)], query_means(rows, dim), index(s_->fit.queries));
  }

  std::shared_ptr<const Settings> s_;
  std::vector<Regressor> models_;
  std::vector<std::vector<double>> sums_;  // [query_heads][tokens]
};

}  // namespace

FittedScorer judgeq_fit() {
  FittedScorer out;
  out.name = "judgeq";
  out.features = "mean of the last 32 queries and of all, before rotary (centres: the queries)";
  out.label = "mean of the next 32 queries; tau: its attention against the real one";
  out.methods = {"ridge", "centres"};
  out.gather = gather;
  out.fit = fit;
  out.quality = quality;
  return out;
}

PolicyEntry judgeq() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "judgeq";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what queries that stand for the answer attend to, once, after the prompt";
  entry.source = "arXiv 2509.10798 (abstract; third-party summary)";
  entry.evidence = "secondary; weights fitted here";
  entry.differs =
      "the official code could not be obtained: pooling, window and group reduction are "
      "ours";
  entry.needs =
      "q and k (oracle: probabilities of all decode rows; file: nothing); rope_* to place "
      "the queries";
  entry.parameters = {budget_parameter(),
                      {.name = "scorer",
                       .kind = Kind::word,
                       .fallback = "static",
                       .help = "oracle: the label itself, a bound; file: `scores` of `weights`",
                       .choices = {"static", "ridge", "oracle", "file"}},
                      weights_parameter(),
                      {.name = "m",
                       .fallback = "32",
                       .unit = "queries",
                       .help = "that stand for the answer",
                       .range = {1, 4096}},
                      {.name = "pool",
                       .fallback = "1",
                       .unit = "entries",
                       .help = "kernel of max pooling, odd",
                       .range = {1, 1e6}},
                      {.name = "window",
                       .fallback = "0",
                       .unit = "tokens",
                       .help = "newest kept whatever their score"},
                      {.name = "group",
                       .kind = Kind::word,
                       .fallback = "mean",
                       .help = "query heads to KV head",
                       .choices = {"mean", "max"}},
                      seed_parameter("of the centres")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    auto s = std::make_shared<Settings>();
    s->scorer = arguments.text("scorer");
    s->geometry = geometry;
    s->group = parse_group(arguments.text("group"));
    s->kernel = odd_count(arguments, "pool");
    s->fit.method = s->scorer == "ridge" ? "ridge" : "centres";
    s->fit.queries = static_cast<int>(arguments.count("m"));
    s->fit.seed = seed_of(arguments, geometry);
    s->fit_end = geometry.evict_at / 2;
    Recipe recipe = budgeted(arguments, geometry, {});
    Scoring scoring;
    if (s->scorer == "file") {
      if (arguments.is("weights", "self")) {
        throw ConfigError(
            "judgeq(scorer=file): found weights=self, expected a safetensors file with `scores` "
            "[layers, heads, tokens]");
      }
      s->table = std::make_shared<LayerTable>(
          read_layer_table(arguments.text("weights"), {"scores"}, geometry, "judgeq"));
      scoring.per_query_head =
          s->table->heads == geometry.query_heads && geometry.query_heads != geometry.kv_heads;
    } else if (s->scorer == "oracle") {
      if (arguments.given("weights"))
        throw ConfigError("judgeq(scorer=oracle) has no weights: leave out weights=");
      recipe.bound = true;
      recipe.notes.emplace_back("bound: reads the future");
    } else {
      s->weights = load_weights(arguments, s->fit.method);
      recipe.notes.push_back(
          s->scorer == "static" && !s->weights
              ? "stand-in: centres of this prompt's queries, not the authors' soft tokens"
              : fitted_note(arguments, s->scorer, geometry));
    }
    scoring.make = [settings = std::shared_ptr<const Settings>(s)](const LayerShape&) {
      return std::make_unique<JudgeQ>(settings);
    };
    recipe.scorer = own(scoring);
    recipe.protect = own(protect_recent(arguments.count("window")));
    // Embeddings of the soft tokens; query heads x head_dim stands for the hidden size.
    const std::int64_t m = s->fit.queries;
    recipe.charge.once = m * geometry.query_heads * geometry.k_dim * geometry.kv_bytes;
    // Their own entries, while they attend: with the prompt's last row.
    recipe.charge.during = [last = geometry.evict_at - 1,
                            bytes = m * geometry.layers() * geometry.kv_heads *
                                    geometry.entry_bytes()](RowIndex row) {
      return row == last ? bytes : std::int64_t{0};
    };
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
