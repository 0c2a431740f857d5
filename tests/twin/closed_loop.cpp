// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/closed_loop.h"

#include <cmath>

#include "tests/twin/stores_rules.h"

namespace kvspan::twin {
namespace {

using stores::Entry, stores::LayerState, stores::Setup;
using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;

Matrix wide(const tracegen::WeightMatrix& matrix) {
  std::vector<float> values(static_cast<std::size_t>(matrix.rows * matrix.columns));
  widen_rows(matrix, 0, matrix.rows, values.data());
  Matrix out;
  for (std::int64_t r = 0; r < matrix.rows; ++r)
    out.emplace_back(values.begin() + r * matrix.columns,
                     values.begin() + (r + 1) * matrix.columns);
  return out;
}

// W x + b; `b` may be empty.
Vector product(const Matrix& w, const Vector& x, const std::vector<float>& b) {
  Vector out;
  for (std::size_t r = 0; r < w.size(); ++r) {
    double sum = b.empty() ? 0 : double{b[r]};
    for (std::size_t c = 0; c < x.size(); ++c) sum += w[r][c] * x[c];
    out.push_back(sum);
  }
  return out;
}

Vector normed(const Vector& x, const std::vector<float>& weight, double eps) {
  double squares = 0;
  for (const double e : x) squares += e * e;
  Vector out;
  for (std::size_t i = 0; i < x.size(); ++i)
    out.push_back(x[i] / std::sqrt(squares / static_cast<double>(x.size()) + eps) *
                  double{weight[i]});
  return out;
}

// Rotates the pairs (i, i + half) of a head on by `positions`.
void rotate(const Vector& frequencies, double positions, double* head) {
  const std::size_t half = frequencies.size();
  for (std::size_t i = 0; i < half; ++i) {
    const double c = std::cos(positions * frequencies[i]), s = std::sin(positions * frequencies[i]);
    const double re = head[i], im = head[i + half];
    head[i] = re * c - im * s;
    head[i + half] = re * s + im * c;
  }
}

void add(Vector& x, const Vector& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

struct Weights {
  explicit Weights(const tracegen::LayerWeights& w)
      : q(wide(w.q)),
        k(wide(w.k)),
        v(wide(w.v)),
        o(wide(w.o)),
        gate(wide(w.gate)),
        up(wide(w.up)),
        down(wide(w.down)),
        all(w) {}
  Matrix q, k, v, o, gate, up, down;
  const tracegen::LayerWeights& all;
};

// One row's output where keys and queries are rotated to their places in the cache.
Vector placed(const Setup& u, const LayerState& s, const Vector& frequencies, int g, int row) {
  const Trace& t = u.trace;
  const int h = g / (t.query_heads / t.kv_heads);
  std::vector<int> there;
  for (int j = 0; j <= row; ++j) {
    if (s.entries[at(h)][at(j)].alive) there.push_back(j);
  }
  Vector q = stores::stored(s.layer->q, t.query_heads, t.head_dim, row, g);
  rotate(frequencies, static_cast<double>(there.size()) - 1 - row, q.data());
  Vector z;
  for (std::size_t place = 0; place < there.size(); ++place) {
    Vector k = s.entries[at(h)][at(there[place])].k;
    rotate(frequencies, static_cast<double>(place) - there[place], k.data());
    z.push_back(stores::logit(t, q, k, false));
  }
  const Vector p = stores::softmax(*s.layer, g, z);
  Vector out(at(t.v_head_dim), 0.0);
  for (std::size_t place = 0; place < there.size(); ++place) {
    const Vector& v = s.entries[at(h)][at(there[place])].v;
    for (std::size_t c = 0; c < v.size(); ++c) out[c] += p[place] * v[c];
  }
  return out;
}

class Model {
 public:
  Model(const tracegen::Checkpoint& checkpoint, const Vector& frequencies,
        const std::vector<std::int32_t>& ids, const Plan& plan)
      : checkpoint_(checkpoint), spec_(checkpoint.spec()), frequencies_(frequencies), ids_(ids) {
    trace.tokens = static_cast<int>(ids.size());
    trace.prompt_tokens = plan.prompt;
    trace.query_heads = spec_.query_heads;
    trace.kv_heads = spec_.kv_heads;
    trace.head_dim = trace.v_head_dim = spec_.head_dim;
    trace.model_layers = spec_.layers;
    trace.score_scale = spec_.score_scale();
    if (spec_.rope_scaling.empty()) trace.rope = {true, spec_.rope.theta, spec_.head_dim, false};
    trace.layers.resize(at(spec_.layers));
    for (int l = 0; l < spec_.layers; ++l) {
      weights_.emplace_back(checkpoint.layer(l));
      Layer& layer = trace.layers[at(l)];
      layer.sliding_window = static_cast<int>(spec_.window(l));
      layer.q.resize(ids.size() * static_cast<std::size_t>(spec_.q_width()));
      layer.k.resize(ids.size() * static_cast<std::size_t>(spec_.kv_width()));
      layer.v.resize(layer.k.size());
    }
  }

  ClosedLoop run(const Setup& u, bool by_place) {
    ClosedLoop out;
    out.held.death.assign(at(u.layers) * at(u.heads) * at(trace.tokens), trace.tokens);
    out.held.near.assign(at(u.layers) * at(u.heads), 0);
    out.held.folded.resize(out.held.near.size());
    std::vector<LayerState> states(at(u.layers));
    for (int l = 0; l < u.layers; ++l) {
      states[at(l)].layer = &trace.layers[at(l)];
      states[at(l)].index = l;
      states[at(l)].entries.assign(at(u.heads), std::vector<Entry>(at(trace.tokens)));
      states[at(l)].column_sum.assign(at(trace.query_heads), Vector(at(trace.tokens), 0.0));
      states[at(l)].folded.resize(at(u.heads));
      states[at(l)].balancer.resize(at(u.heads));
    }
    const Matrix embedding = wide(checkpoint_.embedding());
    const Matrix head = wide(checkpoint_.head());
    for (const Pass pass : u.passes) {
      Matrix hidden;
      for (int i = pass.begin; i < pass.end; ++i) hidden.push_back(embedding[at(ids_[at(i)])]);
      for (int l = 0; l < u.layers; ++l) layer(u, states[at(l)], pass, by_place, hidden);
      for (int i = pass.begin; i < pass.end; ++i) {
        if (i + 1 < u.prompt || i + 1 >= trace.tokens) continue;
        const Vector logits = product(
            head, normed(hidden[at(i - pass.begin)], checkpoint_.final_norm(), spec_.norm_eps), {});
        double sum = 0;
        for (const double z : logits) sum += std::exp(z);
        out.nll.push_back(std::log(sum) - logits[at(ids_[at(i + 1)])]);
      }
      if (pass.end == trace.tokens) break;
      for (LayerState& s : states) end_pass(u, s, pass, {}, out.held);
    }
    return out;
  }

  Trace trace;

 private:
  void layer(const Setup& u, LayerState& s, Pass pass, bool by_place, Matrix& hidden) {
    const Weights& w = weights_[at(s.index)];
    Layer& stored = trace.layers[at(s.index)];
    for (int i = pass.begin; i < pass.end; ++i) {
      const Vector x = normed(hidden[at(i - pass.begin)], w.all.attention_norm, spec_.norm_eps);
      write(product(w.q, x, w.all.q_bias), i, trace.query_heads, true, stored.q);
      write(product(w.k, x, w.all.k_bias), i, trace.kv_heads, true, stored.k);
      write(product(w.v, x, w.all.v_bias), i, trace.kv_heads, false, stored.v);
      for (int h = 0; h < u.heads; ++h) {
        Entry& e = s.entries[at(h)][at(i)];
        e.k = stores::stored(stored.k, trace.kv_heads, trace.head_dim, i, h);
        e.v = stores::stored(stored.v, trace.kv_heads, trace.head_dim, i, h);
      }
    }
    for (int i = pass.begin; i < pass.end; ++i) {
      Vector attended;
      for (int g = 0; g < trace.query_heads; ++g) {
        const stores::Row r = attend(u, s, g, i);
        for (int j = 0; j <= i; ++j) s.column_sum[at(g)][at(j)] += r.own[at(j)];
        const Vector o = by_place ? placed(u, s, frequencies_, g, i) : r.output;
        attended.insert(attended.end(), o.begin(), o.end());
      }
      Vector& row = hidden[at(i - pass.begin)];
      add(row, product(w.o, attended, w.all.o_bias));
      const Vector x = normed(row, w.all.mlp_norm, spec_.norm_eps);
      Vector gate = product(w.gate, x, w.all.gate_bias);
      const Vector up = product(w.up, x, w.all.up_bias);
      for (std::size_t c = 0; c < gate.size(); ++c) gate[c] *= up[c] / (1 + std::exp(-gate[c]));
      add(row, product(w.down, gate, w.all.down_bias));
    }
  }

  void write(Vector x, int row, int heads, bool turned, Vector& to) const {
    for (int h = 0; turned && h < heads; ++h)
      rotate(frequencies_, row, x.data() + at(h) * at(trace.head_dim));
    std::copy(x.begin(), x.end(), to.begin() + static_cast<std::ptrdiff_t>(at(row) * x.size()));
  }

  const tracegen::Checkpoint& checkpoint_;
  const tracegen::ModelSpec& spec_;
  const Vector& frequencies_;
  const std::vector<std::int32_t>& ids_;
  std::vector<Weights> weights_;
};

}  // namespace

ClosedLoop read_closed(const tracegen::Checkpoint& checkpoint, const Vector& frequencies,
                       const std::vector<std::int32_t>& ids, const Plan& plan,
                       const std::string& policy, const stores::Parameters& parameters,
                       bool by_place) {
  Model model(checkpoint, frequencies, ids, plan);
  const Setup u = stores::make_setup(model.trace, policy, parameters, plan);
  return model.run(u, by_place);
}

}  // namespace kvspan::twin
