// SPDX-License-Identifier: Apache-2.0
// The gains of a layer's channels: locality by least squares, sinks and needles so that they get
// the mass that the profile asks for.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include <tbb/parallel_for.h>

#include "tracegen/synth/layer.h"

namespace kvspan::tracegen {

// Distances with weights, that stand for all of [0, tokens): every one below 2,048, then 1,024 of
// each octave.
struct DistanceGrid {
  std::vector<std::int64_t> distance;
  std::vector<double> weight;
  DistanceGrid(std::int64_t tokens, std::uint64_t seed, std::int64_t exact,
               std::int64_t of_octave) {
    for (std::int64_t d = 0; d < std::min(exact, tokens); ++d) add(d, 1);
    for (std::int64_t begin = exact; begin < tokens; begin *= 2) {
      const std::int64_t count = std::min(begin, tokens - begin);
      const std::int64_t points = std::min(count, of_octave);
      const double stratum = static_cast<double>(count) / static_cast<double>(points);
      for (std::int64_t i = 0; i < points; ++i) {
        const double u = portable::uniform(
            portable::random_bits({kGrid, seed, static_cast<std::uint64_t>(begin + i)}));
        add(begin + static_cast<std::int64_t>((static_cast<double>(i) + u) * stratum), stratum);
      }
    }
  }
  void add(std::int64_t d, double w) {
    distance.push_back(d);
    weight.push_back(w);
  }
};

namespace {

constexpr int kCalibrationRows = 32;

// Mass of sums of exp(logit) that a row gives to its keys, without gains of sinks and needles.
struct Masses {
  double sink_shift = 0;  // of this row, spread
  double needle = 0, rest = 0;
};

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// Solves A x = b in place for a symmetric positive definite A [n, n] (Cholesky); A becomes its
// factor. With `factored`, A is one already. Not Eigen's, whose order of sums depends on the
// machine.
void solve(std::vector<double>& a, std::span<double> b, bool factored) {
  const std::size_t n = b.size();
  for (std::size_t i = 0; i < n && !factored; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = a[i * n + j];
      for (std::size_t k = 0; k < j; ++k) sum -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = i == j ? std::sqrt(sum) : sum / a[j * n + j];
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < i; ++k) b[i] -= a[i * n + k] * b[k];
    b[i] /= a[i * n + i];
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t k = i + 1; k < n; ++k) b[i] -= a[k * n + i] * b[k];
    b[i] /= a[i * n + i];
  }
}

// The gain at which a rising share reaches `wanted`; the nearest of [-40, 80].
double bisect(double wanted, const std::function<double(double)>& share) {
  double low = -40;
  double high = 80;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    (share(middle) < wanted ? low : high) = middle;
  }
  return (low + high) / 2;
}

double sigmoid(double x) { return 1 / (1 + portable::exp(-x)); }

double locality_at(const std::vector<double>& curve, std::int64_t distance) {
  if (curve.empty()) return 0;
  const double x = distance == 0 ? 0 : 1 + portable::log(static_cast<double>(distance)) / kLn2;
  const auto at = std::min(static_cast<std::size_t>(x), curve.size() - 1);
  const std::size_t next = std::min(at + 1, curve.size() - 1);
  return curve[at] + (x - static_cast<double>(at)) * (curve[next] - curve[at]);
}

}  // namespace

void SynthLayer::Impl::fit_locality() {
  const std::size_t pairs = frequency.size();
  const std::size_t n = 2 * pairs + 1;
  const DistanceGrid grid(options.tokens, 0, 16, 64);
  std::vector<double> basis(grid.distance.size() * n);
  std::vector<double> weight;
  std::vector<double> matrix(n * n);
  for (std::size_t i = 0; i < grid.distance.size(); ++i) {
    const std::int64_t d = grid.distance[i];
    weight.push_back(d == 0 ? 1
                            : 1 / static_cast<double>(std::min<std::int64_t>(
                                      64, static_cast<std::int64_t>(
                                              std::bit_floor(static_cast<std::uint64_t>(d))))));
    double* row = basis.data() + i * n;
    for (std::size_t p = 0; p < pairs; ++p) {
      const auto [s, c] = portable::sin_cos(frequency[p] * static_cast<double>(d));
      row[p] = c;
      row[pairs + p] = s;
    }
    row[n - 1] = 1;
    for (std::size_t a = 0; a < n; ++a) {
      for (std::size_t b = 0; b <= a; ++b) matrix[a * n + b] += weight[i] * row[a] * row[b];
    }
  }
  for (std::size_t a = 0; a < n; ++a) matrix[a * n + a] += a + 1 < n ? 1e-3 : 1e-9;
  bool factored = false;
  for (std::size_t h = 0; h < gains.size(); ++h) {
    std::vector<double> x(n);
    for (std::size_t i = 0; i < grid.distance.size(); ++i) {
      const double wanted = weight[i] * locality_at(profile.heads[h].locality, grid.distance[i]);
      for (std::size_t a = 0; a < n; ++a) x[a] += wanted * basis[i * n + a];
    }
    solve(matrix, x, factored);
    factored = true;
    gains[h].cosines.assign(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(pairs));
    gains[h].sines.assign(x.begin() + static_cast<std::ptrdiff_t>(pairs), x.end() - 1);
  }
}

void SynthLayer::Impl::calibrate() {
  const DistanceGrid grid(options.tokens, options.seed, 2048, 1024);
  std::vector<double> waves(grid.distance.size() * frequency.size() * 2);  // cos, sin
  for (std::size_t i = 0; i < grid.distance.size(); ++i) {
    for (std::size_t p = 0; p < frequency.size(); ++p) {
      const auto [s, c] = portable::sin_cos(frequency[p] * static_cast<double>(grid.distance[i]));
      waves[(i * frequency.size() + p) * 2] = c;
      waves[(i * frequency.size() + p) * 2 + 1] = s;
    }
  }
  const std::int64_t end =
      plan.questions.empty() ? options.prompt_tokens : plan.questions.front().begin;
  std::vector<std::int64_t> rows;
  for (int i = 1; i <= kCalibrationRows; ++i)
    rows.push_back(std::max(kSynthSinks, end / 2 + (end - end / 2) * i / kCalibrationRows - 1));
  std::vector<std::int64_t> answers;
  for (std::size_t i = 0; i < plan.needles.size(); ++i) {
    const std::int64_t decode = options.tokens - options.prompt_tokens;
    const auto count = static_cast<std::int64_t>(plan.needles.size());
    const bool in_decode = decode >= count;  // else the question's rows
    const auto n = static_cast<std::int64_t>(i);
    const std::int64_t first = in_decode ? options.prompt_tokens + (n * decode + count - 1) / count
                               : i < plan.questions.size() ? plan.questions[i].begin
                                                           : 0;
    const std::int64_t last = in_decode
                                  ? options.prompt_tokens + ((n + 1) * decode + count - 1) / count
                              : i < plan.questions.size() ? plan.questions[i].end
                                                          : 0;
    for (std::int64_t k = 0; k < std::min<std::int64_t>(8, last - first); ++k)
      answers.push_back(first + k * (last - first) / std::min<std::int64_t>(8, last - first));
  }
  tbb::parallel_for(0, options.kv_heads,
                    [&](int kv_head) { calibrate_group(kv_head, grid, waves, rows, answers); });
}

void SynthLayer::Impl::calibrate_group(int kv_head, const DistanceGrid& grid,
                                       const std::vector<double>& waves,
                                       const std::vector<std::int64_t>& rows,
                                       const std::vector<std::int64_t>& answers) {
  const int group = options.query_heads / options.kv_heads;
  const auto dim = static_cast<std::size_t>(options.head_dim);
  std::vector<std::vector<double>> locality;
  for (int g = 0; g < group; ++g) {
    const Gains& own = gains[head_index(kv_head, g)];
    std::vector<double>& out = locality.emplace_back(grid.distance.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double* wave = waves.data() + i * frequency.size() * 2;
      for (std::size_t p = 0; p < frequency.size(); ++p)
        out[i] += own.cosines[p] * wave[2 * p] + own.sines[p] * wave[2 * p + 1];
    }
  }
  std::vector<float> key(dim);
  std::vector<float> queries(static_cast<std::size_t>(group) * dim);
  const auto measure = [&](std::int64_t row, std::vector<std::vector<Masses>>& out) {
    for (int g = 0; g < group; ++g) {
      const int head = kv_head * group + g;
      query_content(head, row, std::span(queries).subspan(static_cast<std::size_t>(g) * dim, dim));
      Masses& m = out[static_cast<std::size_t>(g)].emplace_back();
      const double spread = profile.heads[static_cast<std::size_t>(head)].spread;
      if (spread > 0) m.sink_shift = spread * portable::normal(bits(kSpread, head, row));
    }
    const int looks_for = asked(row);
    for (std::size_t i = 0; i < grid.distance.size(); ++i) {
      const std::int64_t token = row - grid.distance[i];
      if (token < kSynthSinks) continue;
      key_content(kv_head, token, key);
      const bool needle = looks_for >= 0 && needle_of(token) == looks_for;
      for (int g = 0; g < group; ++g) {
        const auto s = static_cast<std::size_t>(g);
        const HeadProfile& head = profile.heads[head_index(kv_head, g)];
        // Logits are measured without the key's common component, as sinks' are.
        const double z = dot(std::span(queries).subspan(s * dim, dim), key) / root +
                         head.hitters * profile.key_common + locality[s][i];
        (needle ? out[s].back().needle : out[s].back().rest) += grid.weight[i] * portable::exp(z);
      }
    }
  };
  std::vector<std::vector<Masses>> masses(static_cast<std::size_t>(group));
  for (const std::int64_t row : rows) measure(row, masses);
  const double sinks = portable::log(static_cast<double>(kSynthSinks));
  const auto of_sinks = [&](const Masses& m, double gain) {
    return sinks + gain + m.sink_shift - portable::log(std::max(m.rest + m.needle, 1e-300));
  };
  for (int g = 0; g < group; ++g) {
    const auto head = head_index(kv_head, g);
    const std::optional<double>& wanted = profile.heads[head].sink;
    if (!wanted) continue;
    const std::vector<Masses>& seen = masses[static_cast<std::size_t>(g)];
    gains[head].sink = bisect(*wanted, [&](double gain) {
      double sum = 0;
      for (const Masses& m : seen) sum += sigmoid(of_sinks(m, gain));
      return sum / static_cast<double>(seen.size());
    });
  }
  if (answers.empty()) return;
  masses.assign(static_cast<std::size_t>(group), {});
  for (const std::int64_t row : answers) measure(row, masses);
  for (int g = 0; g < group; ++g) {
    const auto head = head_index(kv_head, g);
    const std::optional<double>& wanted = profile.heads[head].needle;
    if (!wanted) continue;
    const std::vector<Masses>& seen = masses[static_cast<std::size_t>(g)];
    gains[head].needle = bisect(*wanted, [&](double gain) {
      double sum = 0;
      for (const Masses& m : seen) {
        const double rest = m.rest + portable::exp(sinks + gains[head].sink + m.sink_shift);
        const double needle = std::max(m.needle, 1e-300);
        sum += sigmoid(gain + portable::log(needle) - portable::log(rest));
      }
      return sum / static_cast<double>(seen.size());
    });
  }
}

}  // namespace kvspan::tracegen
