// SPDX-License-Identifier: Apache-2.0
// Write-Gated KV: a small network looks at the key of a new token alone and decides, at birth, whether
// the entry will be written to the long-term cache when it leaves the local window. Nothing is
// ranked: admission has a rate, not a budget. While the prompt is read, a row reads its window and the
// admitted keys before it (masks_prefill).
// Source: arXiv 2512.17452; code EMCLab-Sinica/WG-KV (modeling_layers.py, configuration_*.py).
//   g = sigmoid(w2 . gelu(W1 [rms(k before rotary); rms(k)] + b1) + b2) > tau, tau 0.1, window 256.
//   The authors train it end to end on the error of the last hidden state; here
// gate=logit, mlp: stand-ins: the same features, fitted on the first half of the prompt (or loaded)
//   to tell the entries that a row behind their window attends to, by at least the quantile that
//   admits `rate`; the threshold then admits `rate` of the prompt's entries outside the window (that
//   quantile looks at keys of the whole prompt, not at its attention). tau=X sets it instead.
// gate=oracle: the largest probability that any row behind the window gives the entry, over the query
//   heads of the group. gate=oracle_out: the squared change of those rows' outputs if this entry alone
//   were missing, sum (a / (1 - a))^2 |v - o|^2, divided by the paper's 1 - min(1, w / (N - i)). Bounds.
// gate=adaea: the repository's training-free baseline AdaEA++: expected attention of a Gaussian query
//   per query head (mean and covariance before rotary of the first half of the prompt, rotated to the
//   middle of the prompt), one quantile for all heads, any head of the group admits; 4 sinks. The
//   position and the common quantile are ours.
// gate=random: Bernoulli(rate). gate=file: `gates` [layers, heads, tokens] of `weights`, above tau.
// cap: whenever a layer's heads hold more than that many entries beyond the window on average, each
//   head drops its lowest tenth: softmax over those entries of the last 256 queries, maximum over the
//   group, mean, max-pooled over 5. The published rule takes the mean over all layers.
// In decode a row attends before the entry that it pushes out of the window leaves: w + 1 local ones.
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include <Eigen/Core>
#include <fmt/format.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/policies/shared/fitted.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using HeadValues = std::vector<std::vector<float>>;  // [kv_heads or query_heads][tokens]

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kMostSamples = 4096;  // of a head
constexpr TokenCount kSinks = 4;            // AdaEA++

// The value that exactly `count` of the values exceed, if no two are equal.
double value_exceeded_by(std::vector<float>& values, double rate) {
  const auto count = static_cast<std::size_t>(rate * static_cast<double>(values.size()) + 1e-9);
  if (count >= values.size()) return -std::numeric_limits<double>::infinity();
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(count);
  std::nth_element(values.begin(), at, values.end(), std::greater<>());
  return static_cast<double>(*at);
}

// [rms(k before rotary); rms(k)] of one token.
void append_features(std::span<const float> before, std::span<const float> after,
                     std::vector<float>& x) {
  for (const std::span<const float> k : {before, after}) {
    double square = 0;
    for (const float value : k) square += static_cast<double>(value) * static_cast<double>(value);
    const double scale = 1 / std::sqrt(square / static_cast<double>(k.size()) + 1e-6);
    for (const float value : k) x.push_back(static_cast<float>(static_cast<double>(value) * scale));
  }
}

RowIndex fit_window(TokenCount window, RowIndex end) {
  return std::clamp<RowIndex>(window, 1, std::max<RowIndex>(1, end / 2));
}

// Labels are utilities until label_all() cuts them.
std::vector<Samples> gather(const Trace& trace, int layer, RowIndex from, RowIndex end,
                            const FitOptions& options) {
  const TraceMeta& m = trace.meta();
  const RowIndex window = fit_window(options.window, end - from);
  const HeadValues utility = largest_future(trace, layer, window, from, end);
  const LayerVectors k = read_vectors(trace, layer, 'k', from, end);
  const LayerVectors before = read_vectors(trace, layer, 'k', from, end, true);
  std::vector<Samples> out(index(m.kv_heads));
  const RowIndex last = std::max(from, end - window);
  const RowIndex stride =
      (last - from + static_cast<RowIndex>(kMostSamples) - 1) / static_cast<RowIndex>(kMostSamples);
  for (int h = 0; h < m.kv_heads; ++h) {
    Samples& s = out[index(h)];
    s.width = index(2 * m.head_dim);
    for (RowIndex i = from; i < last; i += std::max<RowIndex>(1, stride)) {
      append_features(before.at(i, h), k.at(i, h), s.x);
      s.y.push_back(static_cast<double>(utility[index(h)][index(i)]));
    }
  }
  return out;
}

void label_all(std::vector<std::vector<Samples>>& layers, const FitOptions& options) {
  std::vector<float> utilities;
  for (const auto& heads : layers) {
    for (const Samples& s : heads) {
      for (const double u : s.y) utilities.push_back(static_cast<float>(u));
    }
  }
  const double theta = value_exceeded_by(utilities, options.rate);
  for (auto& heads : layers) {
    for (Samples& s : heads) {
      for (double& u : s.y) u = u > theta ? 1 : 0;
    }
  }
}

Regressor fit(const Samples& samples, const FitOptions& options) {
  if (options.method == "logit") return fit_logit(samples, options.lambda);
  MlpOptions mlp;
  mlp.hidden = 16;  // not the published width: a prompt has too few entries for it
  mlp.steps = options.steps;
  mlp.seed = options.seed;
  mlp.pairwise = false;
  return fit_mlp(samples, mlp);
}

// Gates of all layers and tokens, computed once, when somebody first asks.
class Gates {
 public:
  struct Settings {
    std::string gate;
    std::shared_ptr<const RegressorSet> weights;
    std::shared_ptr<const LayerTable> table;
    FitOptions fit;
    double rate = 0;
    std::optional<double> threshold;  // instead of the rate
    Geometry geometry;
    bool logistic = false;
  };
  explicit Gates(Settings settings) : s_(std::move(settings)) {}

  // [tokens] 1: admitted.
  [[nodiscard]] const std::vector<float>& admitted(int layer, int kv_head) {
    ready();
    return admitted_[index(layer)][index(kv_head)];
  }
  // Value less threshold.
  [[nodiscard]] double margin(int layer, int kv_head, RowIndex token) {
    ready();
    const float value = values_[index(layer)][index(kv_head)][index(token)];
    return value == kInfinity ? std::numeric_limits<double>::infinity()
                              : static_cast<double>(value) - threshold_;
  }

 private:
  void ready() {
    // Whoever computes may not run another policy's layer meanwhile, which might wait for this one.
    std::call_once(once_, [&] {
      tbb::this_task_arena::isolate([&] { compute(); });
      admitted_ = values_;
      for (HeadValues& layer : admitted_) {
        for (auto& head : layer) {
          for (float& value : head) value = static_cast<double>(value) > threshold_ ? 1.0F : 0.0F;
        }
      }
    });
  }

  void compute() {
    const Trace& trace = *s_.geometry.trace;
    const int layers = trace.meta().layers;
    std::vector<std::vector<Regressor>> models(index(layers));
    if (s_.gate == "logit" || s_.gate == "mlp") {
      if (s_.weights) {
        for (int l = 0; l < layers; ++l) {
          models[index(l)] =
              s_.weights->layer(trace.meta().layer_ids[index(l)], index(s_.geometry.kv_heads),
                                index(2 * s_.geometry.k_dim));
        }
      } else {
        std::vector<std::vector<Samples>> samples(index(layers));
        const RowIndex half = s_.geometry.evict_at / 2;
        tbb::parallel_for(0, layers,
                          [&](int l) { samples[index(l)] = gather(trace, l, 0, half, s_.fit); });
        label_all(samples, s_.fit);
        tbb::parallel_for(0, layers, [&](int l) {
          for (const Samples& heads : samples[index(l)])
            models[index(l)].push_back(fit(heads, s_.fit));
        });
      }
    }
    values_.resize(index(layers));
    tbb::parallel_for(0, layers, [&](int l) { values_[index(l)] = of_layer(l, models[index(l)]); });
    if (s_.threshold) {
      threshold_ = static_cast<double>(static_cast<float>(*s_.threshold));  // as gates are
      return;
    }
    std::vector<float> all;
    for (const HeadValues& layer : values_) {
      for (const auto& head : layer) all.insert(all.end(), head.begin(), head.begin() + outside());
    }
    threshold_ = value_exceeded_by(all, s_.rate);
  }

  // Prompt entries outside the window; all of the prompt if it is shorter.
  [[nodiscard]] std::ptrdiff_t outside() const {
    const RowIndex n = s_.geometry.evict_at;
    return n > s_.fit.window ? n - s_.fit.window : n;
  }

  HeadValues of_layer(int layer, const std::vector<Regressor>& models) const {
    const Trace& trace = *s_.geometry.trace;
    const RowIndex tokens = trace.meta().tokens;
    const int heads = s_.geometry.kv_heads;
    if (s_.gate == "oracle") return largest_future(trace, layer, s_.fit.window, 0, tokens);
    if (s_.gate == "oracle_out") return output_change(trace, layer);
    if (s_.gate == "adaea") return expected(trace, layer);
    HeadValues out(index(heads));
    if (s_.gate == "random") {
      for (int h = 0; h < heads; ++h) {
        for (RowIndex i = 0; i < tokens; ++i) {
          out[index(h)].push_back(static_cast<float>(
              uniform(s_.fit.seed, {trace.meta().layer_ids[index(layer)], h, i})));
        }
      }
      return out;
    }
    if (s_.gate == "file") {
      const auto& row = s_.table->layers[index(layer)];
      for (int h = 0; h < heads; ++h) {
        for (RowIndex i = 0; i < tokens; ++i)
          out[index(h)].push_back(static_cast<float>(row[index(h * tokens + i)]));
      }
      return out;
    }
    const LayerVectors k = read_vectors(trace, layer, 'k', 0, tokens);
    const LayerVectors before = read_vectors(trace, layer, 'k', 0, tokens, true);
    for (int h = 0; h < heads; ++h) {
      std::vector<float> x;
      for (RowIndex i = 0; i < tokens; ++i) append_features(before.at(i, h), k.at(i, h), x);
      std::vector<double> odds(index(tokens));
      models[index(h)].evaluate(x, odds);
      out[index(h)].assign(odds.begin(), odds.end());
    }
    return out;
  }

  HeadValues output_change(const Trace& trace, int layer) const {
    const TraceMeta& m = trace.meta();
    const LayerVectors v = read_vectors(trace, layer, 'v', 0, m.tokens);
    const auto dim = static_cast<Eigen::Index>(m.v_head_dim);
    std::vector<Matrix> values(index(m.kv_heads));
    std::vector<Eigen::VectorXd> norms;
    for (int h = 0; h < m.kv_heads; ++h) {
      Matrix& of_head = values[index(h)];
      of_head.resize(m.tokens, dim);
      for (RowIndex i = 0; i < m.tokens; ++i) {
        for (Eigen::Index d = 0; d < dim; ++d)
          of_head(i, d) = static_cast<double>(v.at(i, h)[index(d)]);
      }
      norms.emplace_back(of_head.rowwise().squaredNorm());
    }
    std::vector<Eigen::ArrayXd> change(index(m.kv_heads), Eigen::ArrayXd::Zero(m.tokens));
    const int group = m.query_heads / m.kv_heads;
    const RowIndex window = s_.fit.window;
    for_each_row(trace, layer, std::min(window, m.tokens), m.tokens,
                 [&](int q, RowIndex row, const RowTerms& terms) {
                   const std::size_t h = index(q / group);
                   const double sum = terms.sum + terms.sink;
                   if (!(sum > 0)) return;
                   const Eigen::VectorXd a =
                       Eigen::Map<const Eigen::VectorXf>(terms.terms, row + 1).cast<double>() / sum;
                   const Eigen::RowVectorXd o = a.transpose() * values[h].topRows(row + 1);
                   const RowIndex n = row - window + 1;
                   const Eigen::ArrayXd distance =
                       norms[h].head(n).array() + o.squaredNorm() -
                       2 * (values[h].topRows(n) * o.transpose()).array();
                   const Eigen::ArrayXd p = a.head(n).array();
                   change[h].head(n) += (p / (1 - p).max(1e-6)).square() * distance.max(0.0);
                 });
    HeadValues out;
    for (const Eigen::ArrayXd& c : change) {
      out.emplace_back();
      for (RowIndex i = 0; i < m.tokens; ++i) {
        const double free =
            1 - std::min(1.0, static_cast<double>(window) / static_cast<double>(m.tokens - i));
        out.back().push_back(free > 0 ? static_cast<float>(c(i) / free) : 0.0F);
      }
    }
    return out;
  }

  HeadValues expected(const Trace& trace, int layer) const {
    const TraceMeta& m = trace.meta();
    const auto dim = static_cast<Eigen::Index>(m.head_dim);
    const RowIndex half = std::max<RowIndex>(1, s_.geometry.evict_at / 2);
    const RowIndex first = half > kSinks ? kSinks : 0;
    const LayerVectors q = read_vectors(trace, layer, 'q', first, half, true);
    const LayerVectors k = read_vectors(trace, layer, 'k', 0, m.tokens);
    const double position = static_cast<double>(s_.geometry.evict_at) / 2;
    const auto turn = [&](Matrix& rows) {
      if (!m.rope) return;
      std::vector<float> row(index(dim));
      for (Eigen::Index r = 0; r < rows.rows(); ++r) {
        for (Eigen::Index d = 0; d < dim; ++d) row[index(d)] = static_cast<float>(rows(r, d));
        rotate(*m.rope, position, row);
        for (Eigen::Index d = 0; d < dim; ++d) rows(r, d) = static_cast<double>(row[index(d)]);
      }
    };
    const int group = m.query_heads / m.kv_heads;
    HeadValues out(index(m.kv_heads), std::vector<float>(index(m.tokens), 0.0F));
    for (int head = 0; head < m.query_heads; ++head) {
      // Rotating every query is rotating mean and covariance.
      Matrix x(half - first, dim);
      for (RowIndex r = first; r < half; ++r) {
        for (Eigen::Index d = 0; d < dim; ++d)
          x(r - first, d) = static_cast<double>(q.at(r, head)[index(d)]);
      }
      turn(x);
      const Eigen::RowVectorXd mean = x.colwise().mean();
      x.rowwise() -= mean;
      const double scale = m.score_scale;
      std::vector<float> score;
      for (RowIndex i = 0; i < m.tokens; ++i) {
        const auto key = k.at(i, head / group);
        const Eigen::VectorXd kd =
            Eigen::Map<const Eigen::VectorXf>(key.data(), dim).cast<double>();
        const double variance = (x * kd).squaredNorm() / static_cast<double>(x.rows());
        score.push_back(static_cast<float>(mean.dot(kd) * scale + variance * scale * scale / 2));
      }
      std::vector<float> sorted(score.begin(), score.begin() + outside());
      std::sort(sorted.begin(), sorted.end());
      auto& best = out[index(head / group)];
      for (std::size_t i = 0; i < score.size(); ++i) {
        const auto below =
            std::upper_bound(sorted.begin(), sorted.end(), score[i]) - sorted.begin();
        best[i] = std::max(best[i], static_cast<float>(static_cast<double>(below) /
                                                       static_cast<double>(sorted.size())));
      }
    }
    for (auto& head : out) {
      std::fill(head.begin(), head.begin() + std::min<TokenCount>(kSinks, m.tokens), kInfinity);
    }
    return out;
  }

  Settings s_;
  std::once_flag once_;
  std::vector<HeadValues> values_, admitted_;  // [layers]
  double threshold_ = 0;
};

int kv_head_of(const LayerShape& shape, int head) { return shape.kv_head(head); }

class Gate final : public Scorer {
 public:
  Gate(std::shared_ptr<Gates> gates, Needs needs) : gates_(std::move(gates)), needs_(needs) {}
  Needs needs() const override { return needs_; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const LayerShape& shape = view.shape();
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] = gates_->margin(shape.layer, kv_head_of(shape, head), entries[i]);
    return 0;
  }

 private:
  std::shared_ptr<Gates> gates_;
  Needs needs_;
};

// A row of the prompt reads its window and what was admitted before it.
class WindowAndAdmitted final : public Selector {
 public:
  WindowAndAdmitted(std::shared_ptr<Gates> gates, TokenCount window)
      : gates_(std::move(gates)), window_(window) {}
  bool by_row() const override { return true; }
  void mask(const View& view, int query_head, RowIndex row, std::span<float> mask) override {
    const LayerShape& shape = view.shape();
    const int kv_head = shape.kv_head_of_query(query_head);
    const float* admitted = gates_->admitted(shape.layer, kv_head).data();
    float* out = mask.data();
    for (RowIndex i = 0; i <= row - window_; ++i) out[i] *= admitted[i];
  }

 private:
  std::shared_ptr<Gates> gates_;
  TokenCount window_;
};

// ---- The cap ---------------------------------------------------------------------------------

constexpr RowIndex kCapRows = 256;

class CapScorer final : public Scorer {
 public:
  CapScorer(TokenCount cap, TokenCount window) : cap_(cap), window_(window) {}
  Needs needs() const override { return {.last_rows = kCapRows}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    std::fill(out.begin(), out.end(), 0.0);
    const LayerShape& shape = view.shape();
    const RowIndex end = view.pass().end;
    TokenCount beyond = 0;
    for (int h = 0; h < shape.heads; ++h) {
      const auto all = view.resident(h);
      beyond += std::lower_bound(all.begin(), all.end(), end - window_) - all.begin();
    }
    if (beyond <= cap_ * shape.heads) return 0;  // nobody will be asked
    const RowIndex rows = std::min(kCapRows, end);
    std::vector<double> p(entries.size());
    std::vector<double> best(entries.size());
    double slack = 0;
    for (RowIndex row = end - rows; row < end; ++row) {
      std::fill(best.begin(), best.end(), 0.0);
      for (int q = head * shape.group(); q < (head + 1) * shape.group(); ++q) {
        const double s = view.probabilities(q, row, entries, p);
        double sum = 0;
        for (const double value : p) sum += value;
        if (!(sum > 0)) continue;
        slack += s / sum;
        for (std::size_t i = 0; i < p.size(); ++i) best[i] = std::max(best[i], p[i] / sum);
      }
      for (std::size_t i = 0; i < p.size(); ++i) out[i] += best[i] / static_cast<double>(rows);
    }
    pool(Pool::max, 5, out);
    round_sums(out);
    return slack / static_cast<double>(rows);
  }

 private:
  TokenCount cap_, window_;
};

class CapBudget final : public Budget {
 public:
  explicit CapBudget(TokenCount cap) : cap_(cap) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& /*sizing*/) const override {
    return kAll;
  }
  bool content_free() const override { return false; }
  void counts(const View& /*view*/, const Scores& scores, const Sizing& /*sizing*/,
              std::span<TokenCount> keep) const override {
    TokenCount total = 0;
    for (const auto& e : scores.entries) total += static_cast<TokenCount>(e.size());
    const bool over = total > cap_ * static_cast<TokenCount>(keep.size());
    for (std::size_t h = 0; h < keep.size(); ++h) {
      const auto own = static_cast<TokenCount>(scores.entries[h].size());
      keep[h] = scores.protected_[h] + own - (over ? own / 10 : 0);
    }
  }

 private:
  TokenCount cap_;
};

}  // namespace

FittedScorer write_gate_fit() {
  FittedScorer out;
  out.name = "write_gate";
  out.features = "rms(k before rotary); rms(k)";
  out.label = "a row behind the window gives it more than the quantile of `rate`";
  out.methods = {"logit", "mlp"};
  out.gather = gather;
  out.label_all = label_all;
  out.fit = fit;
  out.quality = [](const Regressor& model, const Samples& samples, const Trace&, int, int, RowIndex,
                   RowIndex) {
    std::vector<double> odds(samples.rows());
    model.evaluate(samples.x, odds);
    return area_under_curve(odds, samples.y);
  };
  return out;
}

PolicyEntry write_gate() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "write_gate";
  entry.kind = MethodKind::admission;
  entry.summary = "a gate on the key decides at birth what is written once it leaves the window";
  entry.source = "arXiv 2512.17452; code EMCLab-Sinica/WG-KV";
  entry.evidence = "code read; weights fitted here";
  entry.differs =
      "the authors train the gate end to end; oracles, fitted gates and a random control "
      "stand in for it; their cap is over all layers, here per layer";
  entry.needs =
      "q and k (oracle_out: v, too; oracle: probabilities of all rows; random, file: "
      "nothing); rope_* tell k before rotary from k";
  entry.parameters = {
      {.name = "gate",
       .kind = Kind::word,
       .fallback = "logit",
       .help = "oracle and oracle_out: bounds; random: control",
       .choices = {"logit", "mlp", "oracle", "oracle_out", "adaea", "random", "file"}},
      weights_parameter(),
      {.name = "tau",
       .kind = Kind::real,
       .fallback = "auto",
       .help = "threshold of the gate; auto: by rate (file: 0.1)",
       .range = {0, 1}},
      {.name = "rate",
       .kind = Kind::amount,
       .fallback = "25%",
       .unit = "% of the prompt's entries outside the window",
       .help = "how many are admitted"},
      {.name = "window",
       .fallback = "256",
       .unit = "tokens",
       .help = "newest kept whatever their gate",
       .range = {1, 1e9}},
      {.name = "masks_prefill",
       .kind = Kind::flag,
       .fallback = "true",
       .help = "prompt rows read their window and admitted keys only"},
      {.name = "cap",
       .fallback = "auto",
       .unit = "entries",
       .help = "beyond the window, mean over a layer's heads; auto: none",
       .range = {.lowest = 1}},
      seed_parameter("of random gates and fits"),
      {.name = "hidden",
       .kind = Kind::real,
       .fallback = "4",
       .unit = "x head_dim",
       .help = "width of the published gate, for its bytes (Llama 4, Qwen3 1.5)",
       .range = {0.01, 1024}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::string gate = arguments.text("gate");
    const bool learned = gate == "logit" || gate == "mlp";
    const TokenCount window = arguments.count("window");
    Gates::Settings s;
    s.gate = gate;
    s.geometry = geometry;
    s.fit.method = gate;
    s.fit.window = window;
    s.fit.seed = seed_of(arguments, geometry);
    if (arguments.given("tau") && arguments.given("rate"))
      throw ConfigError("write_gate: give either tau or rate");
    if (gate == "file" && !arguments.given("rate") && !arguments.given("tau"))
      arguments.set("tau", "0.1");
    if (arguments.has("tau")) {
      if (gate == "adaea" || gate == "random" || gate == "oracle_out") {
        throw ConfigError(
            fmt::format("write_gate(gate={}): it has no tau; give rate, such as rate=25%", gate));
      }
      const double tau = arguments.real("tau");
      // Gates are at least 1e-3; networks give log odds.
      s.threshold = tau;
      if (learned) {
        s.threshold = tau < 1e-3 ? -std::numeric_limits<double>::infinity()
                                 : std::log(tau) - std::log1p(-tau);
      }
      arguments.set("rate", "auto");
      s.rate = s.fit.rate = 0.25;  // of the labels
    } else {
      const Amount amount = arguments.amount("rate");
      if (amount.kind != Amount::Kind::share || amount.one_minus_share() < 0) {
        throw ConfigError(
            fmt::format("write_gate(rate): found {}, expected a share from 0% to 100%, such as "
                        "rate=25%",
                        amount.text));
      }
      s.rate = s.fit.rate = 1 - amount.one_minus_share();
      if (gate == "random") s.threshold = amount.one_minus_share();
    }
    if (gate == "file") {
      if (arguments.is("weights", "self")) {
        throw ConfigError(
            "write_gate(gate=file): found weights=self, expected a safetensors file with `gates` "
            "[layers, heads, tokens]");
      }
      s.table = std::make_shared<LayerTable>(
          read_layer_table(arguments.text("weights"), {"gates", "scores"}, geometry, "write_gate"));
      if (s.table->heads != geometry.kv_heads)
        throw ConfigError("write_gate(gate=file): gates are per KV head, found one per query head");
    } else if (learned) {
      s.weights = load_weights(arguments, gate);
    } else if (arguments.given("weights")) {
      throw ConfigError(
          fmt::format("write_gate(gate={}) has no weights: leave out weights=", gate));
    }

    Needs needs;
    needs.k = learned || gate == "adaea";
    needs.q = gate == "adaea";
    needs.v = gate == "oracle_out";
    Recipe recipe;
    const auto gates = std::make_shared<Gates>(s);
    Admission admission;
    admission.make = [gates, needs](const LayerShape&) {
      return std::make_unique<Gate>(gates, needs);
    };
    admission.window = window;
    recipe.admission = own(admission);
    if (arguments.flag("masks_prefill")) {
      recipe.prefill_reads = own(SelectorFactory([gates, window](const LayerShape&) {
        return std::make_unique<WindowAndAdmitted>(gates, window);
      }));
    }
    if (arguments.has("cap")) {
      const TokenCount cap = arguments.count("cap");
      Rule rule;
      rule.schedule = Schedule::every_pass();
      rule.scorer = [cap, window](const LayerShape&) {
        return std::make_unique<CapScorer>(cap, window);
      };
      rule.budget = std::make_shared<CapBudget>(cap);
      rule.sizing = [n = geometry.evict_at](const Pass&) { return Sizing{kAll, n}; };
      rule.protect = [window](const Pass&, TokenCount) { return Protect{0, window}; };
      recipe.more_rules.push_back(rule);
      recipe.notes.emplace_back("the cap is the mean over the heads of a layer, not of the model");
    }
    recipe.closed_form = false;
    if (gate == "oracle" || gate == "oracle_out") {
      recipe.bound = true;
      recipe.notes.emplace_back("bound: reads the future");
    }
    if (learned) recipe.notes.push_back(fitted_note(arguments, gate, geometry));
    if (gate == "adaea") {
      recipe.notes.emplace_back(
          "stand-in: mean and covariance of the queries of the first half of this prompt");
    }
    if (!arguments.has("tau")) {
      recipe.knob = Knob{"rate", 1, 100, !learned,
                         [](TokenCount percent) { return fmt::format("{}%", percent); }};
    }
    // Block table of 16-entry blocks, 4 bytes a block; one byte a window slot for its decision.
    const std::int64_t heads = std::int64_t{geometry.layers()} * geometry.kv_heads;
    const std::int64_t d = geometry.k_dim;
    recipe.charge.once = 4 * heads * ((geometry.tokens + 15) / 16) + heads * window;
    if (gate == "adaea") {  // mean, covariance and threshold of every query head
      recipe.charge.once +=
          geometry.layers() * geometry.query_heads * (d * d + d + 1) * geometry.kv_bytes;
    } else if (gate != "random") {
      // [2d, hidden] and its bias, [hidden] and its bias, for each KV head; two norms for the layer.
      const auto hidden = std::llrint(arguments.real("hidden") * static_cast<double>(d));
      recipe.charge.once += geometry.kv_bytes *
                            (heads * (2 * d * hidden + 2 * hidden + 1) + geometry.layers() * 2 * d);
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
