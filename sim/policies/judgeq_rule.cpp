// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/judgeq_rule.h"

#include <algorithm>
#include <vector>

#include "sim/base/random.h"
#include "sim/policies/judgeq_fit.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

// scorer=file.
class GivenVotes final : public JudgeQ::Votes {
 public:
  explicit GivenVotes(std::shared_ptr<const LayerTable> table) : table_(std::move(table)) {}
  void of(const View& view, int head, std::span<const TokenIndex> entries,
          std::span<double> out) override {
    const double* row = table_->layers[index(view.shape().layer)].data() + head * table_->tokens;
    for (std::size_t i = 0; i < entries.size(); ++i) out[i] = row[entries[i]];
  }

 private:
  std::shared_ptr<const LayerTable> table_;
};

// Votes of each query head, reduced to its group.
class GroupVotes : public JudgeQ::Votes {
 public:
  explicit GroupVotes(std::shared_ptr<const JudgeQ::Settings> settings) : s_(std::move(settings)) {}
  void of(const View& view, int head, std::span<const TokenIndex> entries,
          std::span<double> out) override {
    (void)reduce_group(view.shape(), head, s_->group, out, [&](int q, std::span<double> one) {
      of_query_head(view, q, entries, one);
      return 0.0;
    });
  }

 protected:
  virtual void of_query_head(const View& view, int query_head, std::span<const TokenIndex> entries,
                             std::span<double> out) = 0;
  std::shared_ptr<const JudgeQ::Settings> s_;
};

// scorer=oracle: mean attention of the decode rows.
class DecodeVotes final : public GroupVotes {
 public:
  using GroupVotes::GroupVotes;

 protected:
  void of_query_head(const View& view, int query_head, std::span<const TokenIndex> entries,
                     std::span<double> out) override {
    const Trace& trace = *s_->geometry.trace;
    const RowIndex end = trace.meta().tokens;
    const RowIndex begin = s_->geometry.prompt;
    if (sums_.empty()) {
      sums_.assign(index(view.shape().query_heads), std::vector<double>(index(end), 0.0));
      for_each_row(trace, view.shape().layer, begin, end,
                   [&](int q, RowIndex row, const RowTerms& terms) {
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

 private:
  std::vector<std::vector<double>> sums_;  // [query_heads][tokens]
};

// scorer=static, ridge: queries at the positions after the prompt attend to the entries that are
// left.
class AnswerVotes : public GroupVotes {
 public:
  using GroupVotes::GroupVotes;
  Needs needs() const override { return {.q = true, .k = true}; }

 protected:
  void of_query_head(const View& view, int query_head, std::span<const TokenIndex> entries,
                     std::span<double> out) override {
    const TraceMeta& m = s_->geometry.trace->meta();
    const LayerShape& shape = view.shape();
    const RowIndex end = view.pass().end;
    const int head = query_head / shape.group();
    const auto resident = view.resident(head);
    const int kv_head = query_head / (shape.query_heads / shape.kv_heads);
    std::vector<float> keys;
    for (const TokenIndex t : resident) {
      const std::vector<float> key = view.key(kv_head, t);
      keys.insert(keys.end(), key.begin(), key.end());
    }
    const auto queries = rotated(m, queries_of(view, query_head), end);
    const std::int64_t window = m.sliding_window.empty() ? 0 : m.sliding_window[index(shape.layer)];
    std::vector<std::size_t> visible;
    for (std::size_t j = 0; j < queries.size(); ++j) {
      const RowIndex first =
          window == 0 ? 0 : std::max<RowIndex>(0, end + static_cast<RowIndex>(j) - window + 1);
      visible.push_back(
          index(std::lower_bound(resident.begin(), resident.end(), first) - resident.begin()));
    }
    std::vector<double> score(resident.size(), 0.0);
    add_softmax(keys, queries, m, visible, score);
    std::size_t at = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      while (resident[at] != entries[i]) ++at;
      out[i] = score[at] / static_cast<double>(queries.size());
    }
  }

  // The queries of one head, before rotary.
  virtual Queries queries_of(const View& view, int query_head) = 0;

  // Queries so far before rotary, evenly spread, and the `last` ones; [rows, dim].
  std::vector<float> past(const View& view, int query_head, RowIndex last) const {
    const std::optional<Rope>& rope = s_->geometry.trace->meta().rope;
    const RowIndex end = view.pass().end;
    const RowIndex stride = (end + kMostQueries - 1) / kMostQueries;
    std::vector<float> rows;
    for (RowIndex r = 0; r < end; ++r) {
      if (r < end - last && r % stride != 0) continue;
      std::vector<float> q = view.query(query_head, r);
      if (rope) rotate(*rope, -static_cast<double>(r), q);
      rows.insert(rows.end(), q.begin(), q.end());
    }
    return rows;
  }
};

class StaticQueries final : public AnswerVotes {
 public:
  using AnswerVotes::AnswerVotes;

 protected:
  Queries queries_of(const View& view, int query_head) override {
    const LayerShape& shape = view.shape();
    const std::size_t dim = index(shape.k_dim);
    if (s_->weights) {
      return centres_of(
          s_->weights->layer(shape.model_layer, index(shape.query_heads), dim)[index(query_head)]);
    }
    const std::uint64_t seed = splitmix64(s_->fit.seed ^ static_cast<std::uint64_t>(query_head));
    return centres_of(fit_centres(past(view, query_head, 0), dim, index(s_->fit.queries), seed));
  }
};

class PredictedQueries final : public AnswerVotes {
 public:
  explicit PredictedQueries(const std::shared_ptr<const JudgeQ::Settings>& s)
      : AnswerVotes(s),
        models_("judgeq", {s->weights, s->fit, s->fit_end, s->geometry.trace, s->geometry.memo}) {}

 protected:
  Queries queries_of(const View& view, int query_head) override {
    const LayerShape& shape = view.shape();
    const std::size_t dim = index(shape.k_dim);
    const std::vector<Regressor>& models = models_.of(shape, shape.query_heads, 2 * dim);
    const std::vector<float> rows = past(view, query_head, kLastQueries);
    return predicted(models[index(query_head)], query_means(rows, dim), index(s_->fit.queries));
  }

 private:
  LayerModels models_;
};

std::unique_ptr<JudgeQ::Votes> make_votes(const std::shared_ptr<const JudgeQ::Settings>& s) {
  if (s->scorer == "file") return std::make_unique<GivenVotes>(s->table);
  if (s->scorer == "oracle") return std::make_unique<DecodeVotes>(s);
  if (s->scorer == "ridge") return std::make_unique<PredictedQueries>(s);
  return std::make_unique<StaticQueries>(s);
}

}  // namespace

JudgeQ::JudgeQ(const std::shared_ptr<const JudgeQ::Settings>& settings)
    : kernel_(settings->kernel), votes_(make_votes(settings)) {}

double JudgeQ::score(const View& view, int head, std::span<const TokenIndex> entries,
                     std::span<double> out) {
  votes_->of(view, head, entries, out);
  pool(Pool::max, kernel_, out);
  round_sums(out);
  return 0;
}

}  // namespace kvspan::policies
