// SPDX-License-Identifier: Apache-2.0
// LESS: an evictor (H2O, or a composed one) whose victims are folded into a state of constant size,
// which adds to the attention of later rows as a linear attention of rank R does:
//   out = (phi(q) H + sum_i exp(z_i) v_i) / (phi(q) z + sum_i exp(z_i)),   z_i = q . k_i scale
//   for each victim:  H += psi(k)^T v,   z += psi(k)^T                     one state per KV head
// Source: Dong et al., arXiv 2402.09398; code hdong920/LESS. phi and psi are small networks trained
// per layer and head there; H and z are fp32. The code knows MHA only; under GQA the state is per KV
// head and phi per query head (natural reading).
//
// The trained kernels are not here. What stands in for them, all with the published bytes:
//   fit     a non-negative factorisation of rank R of what the last 24 rows of each query head before
//           the first fold gave to the victims (multiplicative updates): psi of a victim is fitted to
//           these rows; phi_r(q) = exp(s_r z(q, a_r) + b_r), a_r the mean key under psi_r. It is fitted
//           to this prompt, where the published kernels are trained once for a model
//   favor   R positive random features of exp(z): exp(w.x - |x|^2/2), w normal, x = sqrt(scale) q, k.
//           Unbiased, with a large variance
//   mean    one group: count times exp(z) of the mean key, mean value
//   oracle  the same factorisation over 24 rows to come, and phi(q) of every row is what fits all its
//           victims best. It reads the future: a bound (as good as its local optimum)
//   plus    no state: R / 2 more entries, about its size (the authors' Baseline+: 4 for R = 8)
//   none    no state: the evictor
// States are held in double here, whatever `state` charges. Softcapped logits are not capped again.
#include <algorithm>
#include <cmath>
#include <numbers>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

using Vector = std::vector<double>;

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// exp without overflow: what a victim adds relative to the row's own maximum.
double bounded_exp(double x) { return std::exp(std::min(x, 300.0)); }

// Sums of exp(w) and exp(w) v, relative to the largest w so far.
struct Feature {
  double offset = -std::numeric_limits<double>::infinity();
  double weight = 0;
  Vector values;
  void add(double w, std::span<const float> v) {
    values.resize(v.size(), 0.0);
    if (w > offset) {
      const double shrink = std::exp(offset - w);
      weight *= shrink;
      for (double& x : values) x *= shrink;
      offset = w;
    }
    const double term = std::exp(w - offset);
    weight += term;
    for (std::size_t i = 0; i < v.size(); ++i) values[i] += term * static_cast<double>(v[i]);
  }
  // w: log of phi(q), less the row's maximum.
  void read(double w, std::span<double> numerator, double& denominator) const {
    if (values.empty()) return;
    const double scale = bounded_exp(w + offset);
    denominator += scale * weight;
    for (std::size_t i = 0; i < values.size(); ++i) numerator[i] += scale * values[i];
  }
};

// What absorbs the victims of one KV head.
class State {
 public:
  virtual ~State() = default;
  virtual void fold(const View& view, std::span<const TokenIndex> victims) = 0;
  virtual void add(std::span<const float> q, double max, std::span<double> numerator,
                   double& denominator) const = 0;
};

class MeanState final : public State {
 public:
  MeanState(int head, double scale) : head_(head), scale_(scale) {}
  void fold(const View& view, std::span<const TokenIndex> victims) override {
    for (const TokenIndex t : victims) {
      const std::vector<float> k = view.key(head_, t);
      key_.resize(k.size(), 0.0);
      for (std::size_t c = 0; c < k.size(); ++c) key_[c] += static_cast<double>(k[c]);
      group_.add(0, view.value(head_, t));
    }
  }
  void add(std::span<const float> q, double max, std::span<double> numerator,
           double& denominator) const override {
    double z = 0;
    for (std::size_t c = 0; c < q.size(); ++c) z += static_cast<double>(q[c]) * key_[c];
    group_.read(scale_ * z / group_.weight - max, numerator, denominator);
  }

 private:
  int head_;
  double scale_;
  Vector key_;  // sum
  Feature group_;
};

class RandomFeatures final : public State {
 public:
  RandomFeatures(int head, double scale, const LayerShape& shape, int rank, std::uint64_t seed)
      : head_(head), root_(std::sqrt(scale)), features_(index(rank)) {
    for (int r = 0; r < rank; ++r) {
      directions_.emplace_back();
      for (int c = 0; c < shape.k_dim; ++c) {  // Box and Muller
        const double u = uniform(seed, {shape.layer, head, r, c, 0});
        const double v = uniform(seed, {shape.layer, head, r, c, 1});
        directions_.back().push_back(
            static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v)));
      }
    }
  }
  void fold(const View& view, std::span<const TokenIndex> victims) override {
    for (const TokenIndex t : victims) {
      const std::vector<float> k = view.key(head_, t);
      const std::vector<float> v = view.value(head_, t);
      for (std::size_t r = 0; r < features_.size(); ++r) features_[r].add(feature(k, r), v);
    }
  }
  void add(std::span<const float> q, double max, std::span<double> numerator,
           double& denominator) const override {
    const double rank = static_cast<double>(features_.size());
    for (std::size_t r = 0; r < features_.size(); ++r)
      features_[r].read(feature(q, r) - std::log(rank) - max, numerator, denominator);
  }

 private:
  [[nodiscard]] double feature(std::span<const float> x, std::size_t r) const {
    return root_ * dot(directions_[r], x) - root_ * root_ * dot(x, x) / 2;
  }
  int head_;
  double root_;
  std::vector<std::vector<float>> directions_;
  std::vector<Feature> features_;
};

// Weighted sums of a straight line's points.
struct Line {
  double w = 0, x = 0, y = 0, xx = 0, xy = 0;
  void add(double weight, double at, double value) {
    w += weight;
    x += weight * at;
    y += weight * value;
    xx += weight * at * at;
    xy += weight * at * value;
  }
  [[nodiscard]] double slope() const {
    const double spread = xx * w - x * x;
    return spread > 1e-9 * xx * w ? std::clamp((xy * w - x * y) / spread, 0.0, 2.0) : 1.0;
  }
};

// A non-negative factorisation Phi [rows, R] Psi [R, victims] of the attention that rows give to the
// victims, found by multiplicative updates over some rows. phi of other rows: with `future`, what fits
// the row best; else exp(s_r z(q, a_r) + b_r), a_r the mean key under psi_r, s_r and b_r fitted to Phi.
class Factors final : public State {
 public:
  Factors(int head, double scale, int rank, const View& view, const std::vector<RowIndex>& rows,
          bool future, std::uint64_t seed)
      : head_(head), scale_(scale), rank_(index(rank)), future_(future), seed_(seed) {
    const int group = view.shape().group();
    std::vector<std::vector<float>> keys;
    for (TokenIndex t = 0; t <= rows.back(); ++t) keys.push_back(view.key(head, t));
    for (const RowIndex row : rows) {
      for (int g = 0; g < group; ++g) {
        queries_.push_back(view.query(head * group + g, row));
        Vector z;
        for (RowIndex t = 0; t <= row; ++t)
          z.push_back(scale_ * dot(queries_.back(), keys[index(t)]));
        const double max = *std::max_element(z.begin(), z.end());
        double sum = 0;
        for (const double x : z) sum += std::exp(x - max);
        row_log_sum_.push_back(max + std::log(sum));
      }
    }
  }

  void fold(const View& view, std::span<const TokenIndex> victims) override {
    const std::size_t first = psi_.size();
    std::vector<Vector> columns;             // [victims][rows]
    std::vector<std::vector<float>> values;  // [victims][v_dim]
    for (const TokenIndex t : victims) {
      keys_.push_back(view.key(head_, t));
      values.push_back(view.value(head_, t));
      columns.emplace_back();
      for (std::size_t i = 0; i < queries_.size(); ++i)
        columns.back().push_back(
            std::exp(scale_ * dot(queries_[i], keys_.back()) - row_log_sum_[i]));
    }
    if (phi_.empty()) {
      factorise(columns);
    } else {
      for (const Vector& column : columns) psi_.push_back(fit_column(column));
    }
    summarise(first, values);
    if (future_) return;
    if (slope_.empty()) fit_lines();
    keys_.clear();
  }

  void add(std::span<const float> q, double max, std::span<double> numerator,
           double& denominator) const override {
    const Vector phi = future_ ? best_phi(q, max) : fitted_phi(q, max);
    for (std::size_t r = 0; r < rank_; ++r) {
      denominator += phi[r] * weight_[r];
      for (std::size_t c = 0; c < numerator.size(); ++c) numerator[c] += phi[r] * value_[r][c];
    }
  }

 private:
  [[nodiscard]] Vector fitted_phi(std::span<const float> q, double max) const {
    Vector phi;
    for (std::size_t r = 0; r < rank_; ++r) {
      const double z = scale_ * dot(q, anchors_[r]);
      phi.push_back(bounded_exp(slope_[r] * z + shift_[r] - max));
    }
    return phi;
  }

  [[nodiscard]] Vector best_phi(std::span<const float> q, double max) const {
    Vector z;
    for (const std::vector<float>& key : keys_) z.push_back(scale_ * dot(q, key));
    const double own_max = *std::max_element(z.begin(), z.end());
    Vector b(rank_, 0.0);  // Psi a
    for (std::size_t j = 0; j < z.size(); ++j) {
      const double a = std::exp(z[j] - own_max);
      for (std::size_t r = 0; r < rank_; ++r) b[r] += psi_[j][r] * a;
    }
    Vector phi = non_negative(gram_psi_, b);
    for (double& x : phi) x *= bounded_exp(own_max - max);
    return phi;
  }

  // Least squares of log Phi = s_r z(q, a_r) + b_r; a row weighs what it gives to the feature.
  void fit_lines() {
    const auto dim = keys_[0].size();
    for (std::size_t r = 0; r < rank_; ++r) {
      Vector sum(dim, 0.0);
      for (std::size_t j = 0; j < psi_.size(); ++j) {
        for (std::size_t c = 0; c < dim; ++c)
          sum[c] += psi_[j][r] * static_cast<double>(keys_[j][c]);
      }
      anchors_.emplace_back(dim, 0.0F);
      for (std::size_t c = 0; c < dim && weight_[r] > 0; ++c)
        anchors_.back()[c] = static_cast<float>(sum[c] / weight_[r]);
      Line line;
      for (std::size_t i = 0; i < phi_.size(); ++i) {
        if (phi_[i][r] <= 0) continue;
        line.add(phi_[i][r], scale_ * dot(queries_[i], anchors_[r]),
                 std::log(phi_[i][r]) + row_log_sum_[i]);
      }
      slope_.push_back(line.w > 0 ? line.slope() : 0.0);
      shift_.push_back(line.w > 0 ? (line.y - slope_[r] * line.x) / line.w
                                  : -std::numeric_limits<double>::infinity());
    }
  }

  // argmin over x >= 0 of x G x / 2 - b x, by multiplicative updates. REQUIRES: G, b >= 0.
  [[nodiscard]] Vector non_negative(const std::vector<Vector>& gram, const Vector& b) const {
    Vector x(rank_, 1.0);
    for (int round = 0; round < 60; ++round) {
      for (std::size_t r = 0; r < rank_; ++r) {
        double now = 0;
        for (std::size_t s = 0; s < rank_; ++s) now += gram[r][s] * x[s];
        if (now > 0) x[r] *= b[r] / now;
      }
    }
    return x;
  }

  [[nodiscard]] std::vector<Vector> gram(const std::vector<Vector>& rows) const {
    std::vector<Vector> out(rank_, Vector(rank_, 0.0));
    for (const Vector& row : rows) {
      for (std::size_t r = 0; r < rank_; ++r) {
        for (std::size_t s = 0; s < rank_; ++s) out[r][s] += row[r] * row[s];
      }
    }
    return out;
  }

  [[nodiscard]] Vector fit_column(const Vector& column) const {
    Vector b(rank_, 0.0);
    for (std::size_t i = 0; i < column.size(); ++i) {
      for (std::size_t r = 0; r < rank_; ++r) b[r] += phi_[i][r] * column[i];
    }
    return non_negative(gram_phi_, b);
  }

  void factorise(const std::vector<Vector>& columns) {
    const auto start = [&](std::int64_t side, std::int64_t i, std::int64_t r) {
      return 0.1 + uniform(seed_, {side, head_, i, r});
    };
    const auto rank = static_cast<std::int64_t>(rank_);
    for (std::int64_t i = 0; i < std::ssize(queries_); ++i) {
      phi_.emplace_back();
      for (std::int64_t r = 0; r < rank; ++r) phi_.back().push_back(start(0, i, r));
    }
    for (std::int64_t j = 0; j < std::ssize(columns); ++j) {
      psi_.emplace_back();
      for (std::int64_t r = 0; r < rank; ++r) psi_.back().push_back(start(1, j, r));
    }
    const auto update = [&](Vector& x, const std::vector<Vector>& g, const Vector& b) {
      Vector now(rank_, 0.0);
      for (std::size_t r = 0; r < rank_; ++r) {
        for (std::size_t s = 0; s < rank_; ++s) now[r] += g[r][s] * x[s];
      }
      for (std::size_t r = 0; r < rank_; ++r) {
        if (now[r] > 0) x[r] *= b[r] / now[r];
      }
    };
    for (int round = 0; round < 40; ++round) {
      const std::vector<Vector> of_phi = gram(phi_);
      std::vector<Vector> for_phi(phi_.size(), Vector(rank_, 0.0));
      for (std::size_t j = 0; j < psi_.size(); ++j) {
        Vector b(rank_, 0.0);
        for (std::size_t i = 0; i < phi_.size(); ++i) {
          for (std::size_t r = 0; r < rank_; ++r) b[r] += phi_[i][r] * columns[j][i];
        }
        update(psi_[j], of_phi, b);
        for (std::size_t i = 0; i < phi_.size(); ++i) {
          for (std::size_t r = 0; r < rank_; ++r) for_phi[i][r] += psi_[j][r] * columns[j][i];
        }
      }
      const std::vector<Vector> of_psi = gram(psi_);
      for (std::size_t i = 0; i < phi_.size(); ++i) update(phi_[i], of_psi, for_phi[i]);
    }
    gram_phi_ = gram(phi_);
  }

  // Adds the victims from `first` on to what add() reads.
  void summarise(std::size_t first, const std::vector<std::vector<float>>& values) {
    if (first == 0) {
      gram_psi_.assign(rank_, Vector(rank_, 0.0));
      weight_.assign(rank_, 0.0);
      value_.assign(rank_, Vector(values[0].size(), 0.0));
    }
    for (std::size_t j = first; j < psi_.size(); ++j) {
      for (std::size_t r = 0; r < rank_; ++r) {
        weight_[r] += psi_[j][r];
        for (std::size_t s = 0; s < rank_ && future_; ++s)
          gram_psi_[r][s] += psi_[j][r] * psi_[j][s];
        for (std::size_t c = 0; c < value_[r].size(); ++c)
          value_[r][c] += psi_[j][r] * static_cast<double>(values[j - first][c]);
      }
    }
  }

  int head_;
  double scale_;
  std::size_t rank_;
  bool future_;
  std::uint64_t seed_;
  std::vector<std::vector<float>> queries_, keys_;
  Vector row_log_sum_;
  std::vector<std::vector<float>> anchors_;  // [R]
  Vector slope_, shift_;                     // [R]
  std::vector<Vector> phi_, psi_;            // [rows][R], [victims][R]
  std::vector<Vector> gram_phi_, gram_psi_;  // [R][R]
  Vector weight_;                            // [R] sums of psi
  std::vector<Vector> value_;                // [R][v_dim] sums of psi v
};

enum class Variant : std::uint8_t { fit, favor, mean, oracle };

struct Settings {
  Variant variant = Variant::fit;
  int rank = 8;
  std::uint64_t seed = 0;
  RowIndex tokens = 0;
};

class Folding final : public Store {
 public:
  Folding(const Settings& settings, const LayerShape& shape)
      : settings_(settings), group_(shape.group()), states_(index(shape.heads)) {}

  void age(const View& view, Decision& out) override {
    if (!view.measures_output()) return;
    for (std::size_t i = 0; i < out.evictions.size();) {  // by head
      const int head = out.evictions[i].head;
      std::vector<TokenIndex> victims;
      for (; i < out.evictions.size() && out.evictions[i].head == head; ++i)
        victims.push_back(out.evictions[i].token);
      auto& state = states_[index(head)];
      if (!state) state = make_state(view, head);
      state->fold(view, victims);
      folded_ = true;
    }
  }

  bool adds_output() const override { return folded_; }
  void add_output(int query_head, std::span<const float> q, double max, std::span<double> numerator,
                  double& denominator) override {
    const auto& state = states_[index(query_head / group_)];
    if (state) state->add(q, max, numerator, denominator);
  }

 private:
  [[nodiscard]] std::unique_ptr<State> make_state(const View& view, int head) const {
    const double scale = view.score_scale();
    const Settings& s = settings_;
    if (s.variant == Variant::mean) return std::make_unique<MeanState>(head, scale);
    if (s.variant == Variant::favor)
      return std::make_unique<RandomFeatures>(head, scale, view.shape(), s.rank, s.seed);
    const bool future = s.variant == Variant::oracle;
    const RowIndex begin = future ? std::max(view.pass().end, view.pass().evict_at)
                                  : std::max<RowIndex>(0, view.pass().end - kRows);
    return std::make_unique<Factors>(head, scale, s.rank, view,
                                     spread(begin, future ? s.tokens : view.pass().end), future,
                                     s.seed);
  }

  static constexpr RowIndex kRows = 24;  // of a factorisation, for every query head
  // At most kRows of [begin, end), evenly.
  static std::vector<RowIndex> spread(RowIndex begin, RowIndex end) {
    begin = std::min(begin, end - 1);
    const RowIndex count = std::min(kRows, end - begin);
    std::vector<RowIndex> out;
    for (RowIndex i = 0; i < count; ++i)
      out.push_back(begin + (2 * i + 1) * (end - begin) / (2 * count));
    return out;
  }

  Settings settings_;
  int group_;
  std::vector<std::unique_ptr<State>> states_;  // [heads]
  bool folded_ = false;
};

// The budget, and the entries that the state could have been.
class More final : public Budget {
 public:
  explicit More(TokenCount more) : more_(more) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return sizing.tokens == kAll ? kAll : sizing.tokens + more_;
  }

 private:
  TokenCount more_;
};

const char* note_of(const std::string& variant) {
  if (variant == "fit")
    return "stand-in: kernels fitted to the prompt's last rows; not the authors' weights";
  if (variant == "favor") return "stand-in: random features; not the authors' weights";
  if (variant == "mean") return "stand-in: one mean key and value; not the authors' weights";
  if (variant == "oracle") return "bound: a factorisation of rows to come (reads the future)";
  return "the evictor without LESS's state, for comparison";
}

}  // namespace

PolicyEntry less() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "less";
  entry.kind = MethodKind::low_rank_state;
  entry.summary = "an evictor whose victims live on in a low-rank state of constant size";
  entry.source = "Dong et al. 2024, arXiv 2402.09398; code hdong920/LESS";
  entry.evidence = "code read";
  entry.differs =
      "MHA only in the code: states per KV head, features per query head; the learned "
      "kernels are replaced by stand-ins of the same size";
  entry.needs =
      "q and k, or probabilities of all rows (or column_mass of the prompt and all decode rows); "
      "q, "
      "k and v for the error of the output";
  entry.parameters = {
      budget_parameter(),
      {.name = "rank", .fallback = "8", .help = "of the state", .range = {1, 1024}},
      {.name = "variant",
       .kind = Kind::word,
       .fallback = "fit",
       .help = "what stands in for the trained kernels",
       .choices = {"fit", "favor", "mean", "plus", "none", "oracle"}},
      {.name = "state",
       .kind = Kind::word,
       .fallback = "fp32",
       .help = "precision that is charged",
       .choices = {"fp32", "fp16"}},
      {.name = "weights",
       .kind = Kind::word,
       .fallback = "paper",
       .help = "paper: charge the published kernels' weights, 16-bit, hidden size 512",
       .choices = {"paper", "none"}},
      {.name = "seed",
       .fallback = "auto",
       .help = "of favor, fit and oracle; auto: --seed",
       .range = {0, 1e15}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::string variant = arguments.text("variant");
    const std::int64_t rank = arguments.count("rank");
    Recipe recipe = budgeted(arguments, geometry, by_default(column_sum_scoring()),
                             by_default(Schedule::from_evict_point()));
    recipe.protect = by_default(protect_newest_half());
    recipe.charge.entry = 4;
    recipe.notes.emplace_back(note_of(variant));
    if (variant == "plus") {
      recipe.shape = by_default(std::make_shared<More>((rank + 1) / 2));
    }
    if (variant == "plus" || variant == "none") return recipe;
    recipe.bound = variant == "oracle";
    Settings s;
    s.variant = variant == "fit"     ? Variant::fit
                : variant == "favor" ? Variant::favor
                : variant == "mean"  ? Variant::mean
                                     : Variant::oracle;
    s.rank = static_cast<int>(rank);
    s.seed = seed_of(arguments, geometry);
    s.tokens = geometry.tokens;
    Storing store;
    store.make = [s](const LayerShape& shape) { return std::make_unique<Folding>(s, shape); };
    store.alters_vectors = true;
    recipe.store = own(std::move(store));
    // H and z of every KV head, and two networks of two layers for every query head.
    const std::int64_t layers = geometry.layers();
    const std::int64_t number = arguments.is("state", "fp32") ? 4 : 2;
    recipe.charge.once = layers * geometry.kv_heads * (rank * geometry.v_dim + rank) * number;
    if (arguments.is("weights", "paper")) {
      const std::int64_t kernels = 2 * 512 * (geometry.k_dim + rank) + rank * rank + 2 * rank;
      recipe.charge.once += layers * geometry.query_heads * kernels * 2;
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
