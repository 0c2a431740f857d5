// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/held_vectors.h"

#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>

#include "sim/attention/kernels.h"
#include "sim/replay/fidelity.h"
#include "tests/support/cases.h"

using namespace kvspan;

namespace {

std::vector<double> values(std::size_t count) {
  std::vector<double> out(count);
  std::iota(out.begin(), out.end(), 1.0);
  return out;
}

// One head of dimension 1, keys as given, values 1, 2, 3, ...; the last row, of the full cache.
struct LastRow {
  explicit LastRow(const std::vector<double>& keys)
      : trace(test::weights(keys, static_cast<int>(keys.size()), {}, values(keys.size()))),
        tokens(static_cast<int>(keys.size())),
        held(trace, {0, 1, 0, 1, 1, 1, 1, 1, 1}, false, residency) {
    residency.add(0, tokens);
    entries.resize(keys.size());
    std::iota(entries.begin(), entries.end(), 0);
    full = scores.row(0, tokens - 1, buffer);
    for (int t = 0; t < tokens; ++t)
      output += static_cast<double>(full.terms[t]) * static_cast<double>(scores.values(0)[t]);
  }
  [[nodiscard]] HeldVectors::Error error() const {
    return held.errors({entries, {{0, tokens - 1, &full, &output}}}, scores, nullptr)[0];
  }

  Trace trace;
  int tokens;
  LayerScores scores{trace, 0};
  Residency residency{1, 8};
  HeldVectors held;
  std::vector<TokenIndex> entries;
  std::vector<float> buffer = std::vector<float>(kernels::kPanel);
  RowTerms full;
  double output = 0;
};

}  // namespace

TEST_CASE("what is held as it was born differs from nothing", "[held_vectors]") {
  const LastRow row({0, 1, 2});
  CHECK(row.held.as_born());
  CHECK_FALSE(row.held.differ(0));
  CHECK(row.error().output == Approx(0).margin(1e-6));
  CHECK_FALSE(row.error().logits.has_value());
}

TEST_CASE("a rewritten key moves logits and output of the rows that read it", "[held_vectors]") {
  LastRow row({0, 1, 2});
  row.held.rewrite({{.kv_head = 0, .token = 1, .k = {1.5F}, .v = {}}}, row.scores);
  CHECK_FALSE(row.held.as_born());
  CHECK(row.held.differ(0));
  const double e = std::exp(1.0);
  // The logit of token 1 has moved by a half, and has this share of the row's probability.
  CHECK(*row.error().logits == Approx(0.5 * e / (1 + e + e * e)).epsilon(1e-5));
  const auto mean = [&](double second) {
    const double w = std::exp(second);
    return (1 + 2 * w + 3 * e * e) / (1 + w + e * e);
  };
  CHECK(row.error().output == Approx(std::abs(mean(1.5) - mean(1)) / mean(1)).epsilon(1e-4));
}

TEST_CASE("a rewritten value moves the output only", "[held_vectors]") {
  LastRow row({0, 0});
  row.held.rewrite({{.kv_head = 0, .token = 0, .k = {}, .v = {9.0F}}}, row.scores);
  CHECK(*row.error().logits == Approx(0).margin(1e-6));
  // (9 + 2) / 2 in place of (1 + 2) / 2
  CHECK(row.error().output == Approx((5.5 - 1.5) / 1.5).epsilon(1e-5));
}

TEST_CASE("the distance of two outputs is relative to the full one", "[held_vectors][fidelity]") {
  const std::vector<double> full{6, 8};
  const std::vector<double> half{3, 4};
  CHECK(relative_error(full, 2, half, 1) == 0);
  CHECK(relative_error(full, 2, half, 2) == Approx(0.5));
  CHECK(relative_error(full, 2, half, 0) == Approx(1));  // reads nothing
  CHECK(std::isinf(relative_error(std::vector<double>{0, 0}, 1, half, 1)));
}
