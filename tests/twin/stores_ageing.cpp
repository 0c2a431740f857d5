// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/twin/stores_rules.h"

namespace kvspan::twin::stores {
namespace {

std::vector<int> alive(const LayerState& s, int h, int b) {
  std::vector<int> out;
  for (int j = 0; j < b; ++j) {
    if (s.entries[at(h)][at(j)].alive) out.push_back(j);
  }
  return out;
}

void pack_mikv(const Setup& u, const LayerState& s, int h, Entry& e, int bits, Outcome& out) {
  const Trace& t = u.trace;
  const std::string group = u.text("mikv.group", "auto");
  const int k_group = std::min(t.head_dim, group == "auto" ? t.head_dim / 2 : std::stoi(group));
  const int v_group = std::min(t.v_head_dim, group == "auto" ? t.v_head_dim / 2 : std::stoi(group));
  const bool balanced = u.text("mikv.balancer", "true") == "true";
  for (int c = 0; c < t.head_dim && balanced; ++c) e.k[at(c)] *= s.balancer[at(h)][at(c)];
  quantise_vector(e.k, bits, k_group, balanced ? 1e-6 : 0, out);
  for (int c = 0; c < t.head_dim && balanced; ++c) e.k[at(c)] /= s.balancer[at(h)][at(c)];
  quantise_vector(e.v, bits, v_group, 0, out);
  e.k_bytes = packed(t.head_dim, bits, k_group);
  e.v_bytes = packed(t.v_head_dim, bits, v_group);
}

// A range: without the lowest and highest floor(share / 2 n) of n values; fp16 centre and half
// width.
struct Range {
  double low = 0, high = 0, centre = 0, width = 0;
};

Range range_of(std::vector<double> x, const Fraction& share, Outcome& out) {
  std::sort(x.begin(), x.end());
  const int cut = floor_of({share.top, 2 * share.bottom}, static_cast<int>(x.size()));
  Range r{x[at(cut)], x[x.size() - 1 - at(cut)], 0, 0};
  r.centre = to_half((r.low + r.high) / 2, out.near_codes);
  r.width = to_half((r.high - r.low) / 2, out.near_codes);
  return r;
}

// codebook=uniform: 2^bits equal steps over the range. An outlier stays what it is.
double stepped(double x, const Range& r, int bits, Outcome& out) {
  ++out.codes;
  for (const double end : {r.low, r.high}) {
    const double distance = std::abs(x - end);
    if (distance > 0 && distance < 1e-6) ++out.near_codes;
  }
  if (x < r.low || x > r.high) return x;
  const int levels = (1 << bits) - 1;
  const double normal = r.width > 0 ? (x - r.centre) / r.width : 0;
  const double code = rounded((normal + 1) / 2 * levels, 1e-5, out.near_codes);
  return r.centre + r.width * (2 * std::clamp(code, 0.0, 1.0 * levels) / levels - 1);
}

}  // namespace

void age_kivi(const Setup& u, LayerState& s, int b, Outcome& out) {
  const Trace& t = u.trace;
  const int bits = u.number("kivi.bits", 2), residual = u.number("kivi.residual", 128);
  const int group = u.number("kivi.group", 32), across = std::min(group, t.v_head_dim);
  require(residual % group == 0, "residual is a multiple of group");
  require(t.head_dim * 4 % group == 0, "a key's share of a scale");
  require(t.v_head_dim % across == 0, "groups of a value");
  for (int h = 0; h < u.heads; ++h) {
    std::vector<int> k_waits, v_waits;
    for (const int j : alive(s, h, b)) {
      if (!s.entries[at(h)][at(j)].k_packed) k_waits.push_back(j);
      if (!s.entries[at(h)][at(j)].v_packed) v_waits.push_back(j);
    }
    const std::size_t flush = k_waits.size() / at(residual) * at(residual);
    for (std::size_t from = 0; from < flush; from += at(group)) {
      for (int c = 0; c < t.head_dim; ++c) {
        std::vector<double*> column;
        for (std::size_t e = from; e < from + at(group); ++e) {
          column.push_back(&s.entries[at(h)][at(k_waits[e])].k[at(c)]);
        }
        quantise(column, bits, 0, out);
      }
      for (std::size_t e = from; e < from + at(group); ++e) {
        Entry& entry = s.entries[at(h)][at(k_waits[e])];
        entry.k_packed = true;
        entry.k_bytes = (t.head_dim * bits + 7) / 8 + t.head_dim * 4 / group;
      }
    }
    for (std::size_t e = 0; e + at(residual) < v_waits.size(); ++e) {
      Entry& entry = s.entries[at(h)][at(v_waits[e])];
      quantise_vector(entry.v, bits, across, 0, out);
      entry.v_packed = true;
      entry.v_bytes = packed(t.v_head_dim, bits, across);
    }
  }
}

void age_qpruningkv(const Setup& u, LayerState& s, int b, Outcome& out) {
  const int bits = u.number("qpruningkv.bits", 4);
  const int group = u.number("qpruningkv.q_group", 64);
  require(u.trace.head_dim % std::min(group, u.trace.head_dim) == 0 &&
              u.trace.v_head_dim % std::min(group, u.trace.v_head_dim) == 0,
          "whole groups");
  if (b != u.point || bits == 16) return;
  for (int h = 0; h < u.heads; ++h) {
    for (const int j : alive(s, h, b)) {
      Entry& e = s.entries[at(h)][at(j)];
      quantise_vector(e.k, bits, std::min(group, u.trace.head_dim), 0, out);
      quantise_vector(e.v, bits, std::min(group, u.trace.v_head_dim), 0, out);
      e.k_bytes = packed(u.trace.head_dim, bits, std::min(group, u.trace.head_dim));
      e.v_bytes = packed(u.trace.v_head_dim, bits, std::min(group, u.trace.v_head_dim));
    }
  }
}

void age_think(const Setup& u, LayerState& s, int b, Outcome& out) {
  const Trace& t = u.trace;
  if (b != u.point) return;
  const int d = t.head_dim, group = t.query_heads / t.kv_heads;
  const int pruned = floor_of(parse_share(u.text("think.ratio", "40%")), d);
  const int window = std::min(u.number("think.window", 32), b);
  const int recent =
      u.text("think.preset", "paper") == "kvpress" ? 0 : u.number("think.recent", 32);
  for (int h = 0; h < u.heads; ++h) {
    std::vector<double> scores;
    const std::vector<int> left = alive(s, h, b);
    for (int c = 0; c < d; ++c) {
      double q2 = 0, k2 = 0;
      for (int g = h * group; g < (h + 1) * group; ++g) {
        for (int i = b - window; i < b; ++i) {
          const double x = stored(s.layer->q, t.query_heads, d, i, g)[at(c)];
          q2 += x * x / (window * group);
        }
      }
      for (const int j : left) {
        const double x = stored(s.layer->k, t.kv_heads, d, j, h)[at(c)];
        k2 += x * x / static_cast<double>(left.size());
      }
      scores.push_back(q2 * k2);
    }
    bool near = false;
    const std::vector<std::size_t> gone = losers(scores, d - pruned, near);
    out.near_codes += near ? 1 : 0;
    for (std::size_t i = 0; i + at(recent) < left.size(); ++i) {
      Entry& e = s.entries[at(h)][at(left[i])];
      for (const std::size_t c : gone) e.k[c] = 0;
      e.k_bytes = static_cast<long long>(d - pruned) * kElement;
    }
  }
}

void age_mikv(const Setup& u, LayerState& s, int b, const std::vector<std::vector<int>>& lost,
              Outcome& out) {
  const Trace& t = u.trace;
  const int group = t.query_heads / t.kv_heads;
  // A composed policy may demote before the prompt has ended: the balancer is of the rows so far.
  const bool first = s.balancer[0].empty() &&
                     (b >= u.point || std::any_of(lost.begin(), lost.end(),
                                                  [](const auto& x) { return !x.empty(); }));
  for (int h = 0; h < u.heads && first; ++h) {
    for (int c = 0; c < t.head_dim; ++c) {
      double q = 0, k = 0;
      for (int i = 0; i < std::min(b, u.point); ++i) {
        for (int g = h * group; g < (h + 1) * group; ++g) {
          q = std::max(q, std::abs(stored(s.layer->q, t.query_heads, t.head_dim, i, g)[at(c)]));
        }
        k = std::max(k, std::abs(stored(s.layer->k, t.kv_heads, t.head_dim, i, h)[at(c)]));
      }
      s.balancer[at(h)].push_back(q > 0 && k > 0 ? std::sqrt(q / k) : 1.0);
    }
  }
  const int high = u.number("mikv.hi", 16), low = u.number("mikv.lo", 2);
  for (int h = 0; h < u.heads; ++h) {
    for (const int j : lost[at(h)]) {
      Entry& e = s.entries[at(h)][at(j)];
      pack_mikv(u, s, h, e, low, out);
      e.competes = false;
    }
    for (const int j : alive(s, h, b)) {
      Entry& e = s.entries[at(h)][at(j)];
      if (high == 16 || b < u.point || !e.competes || e.k_packed) continue;
      pack_mikv(u, s, h, e, high, out);
      e.k_packed = true;
    }
  }
}

void age_less(const Setup& u, LayerState& s, const std::vector<std::vector<int>>& lost,
              Outcome& out) {
  if (u.text("less.variant", "fit") != "mean") return;
  const Trace& t = u.trace;
  for (int h = 0; h < u.heads; ++h) {
    Folded& f = s.folded[at(h)];
    f.k.resize(at(t.head_dim), 0.0);
    f.v.resize(at(t.v_head_dim), 0.0);
    for (const int j : lost[at(h)]) {
      ++f.count;
      const Entry& e = s.entries[at(h)][at(j)];
      for (std::size_t c = 0; c < f.k.size(); ++c) f.k[c] += e.k[c];
      for (std::size_t c = 0; c < f.v.size(); ++c) f.v[c] += e.v[c];
      out.folded[at(s.index * u.heads + h)].push_back(j);
    }
  }
}

void age_kvquant(const Setup& u, LayerState& s, Pass pass, Outcome& out) {
  const Trace& t = u.trace;
  const int bits = u.number("kvquant.bits", 4);
  const Fraction o = parse_share(u.text("kvquant.outliers", "1%"));
  const int d = t.head_dim, dv = t.v_head_dim;
  // Bytes of a head's first `tokens`: codes, outliers of 4 bytes, three numbers of 4 bytes a layer.
  const long long per_token =
      static_cast<long long>(u.heads) * (d + dv) * (bits * o.bottom + 32 * o.top) +
      12 * 8 * o.bottom;
  const auto upto = [&](int tokens) { return tokens * per_token / (8 * o.bottom * u.heads); };
  const bool deployed = u.text("kvquant.accounting", "paper") == "deploy";
  const auto key = [&](int token, int h) {  // before its rotation
    std::vector<double> x = stored(s.layer->k, t.kv_heads, d, token, h);
    turn(t.rope, d, -token, x);
    return x;
  };
  std::vector<std::vector<Range>> ranges(at(u.heads));
  for (int h = 0; h < u.heads; ++h) {
    for (int c = 0; c < d; ++c) {
      std::vector<double> channel;
      for (int i = 1; i < u.point / 2; ++i) channel.push_back(key(i, h)[at(c)]);
      ranges[at(h)].push_back(range_of(channel, o, out));
    }
  }
  for (int j = std::max(1, pass.begin); j < pass.end; ++j) {
    std::vector<double> values;
    for (int h = 0; h < u.heads; ++h) {
      const std::vector<double> v = stored(s.layer->v, t.kv_heads, dv, j, h);
      values.insert(values.end(), v.begin(), v.end());
    }
    const Range across = range_of(values, o, out);
    for (int h = 0; h < u.heads; ++h) {
      Entry& e = s.entries[at(h)][at(j)];
      e.k_bytes = deployed ? (d * bits + 7) / 8 : upto(j + 1) - upto(j);
      e.v_bytes = deployed ? (dv * bits + 7) / 8 : 0;
      e.k = key(j, h);
      for (int c = 0; c < d; ++c) e.k[at(c)] = stepped(e.k[at(c)], ranges[at(h)][at(c)], bits, out);
      turn(t.rope, d, j, e.k);
      for (double& x : e.v) x = stepped(x, across, bits, out);
    }
  }
}

}  // namespace kvspan::twin::stores
