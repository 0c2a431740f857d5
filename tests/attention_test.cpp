// SPDX-License-Identifier: Apache-2.0
#include "tracegen/attention.h"

#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

using kvspan::tracegen::attention_cpu;
using kvspan::tracegen::AttentionProblem;
using kvspan::tracegen::AttentionTensors;

TEST_CASE("attention emits what a score trace holds", "[attention]") {
  // Two rows, one head of one channel; logits are q * k, weights 1 : 3 in the second row.
  const std::vector<float> q = {1, 1};
  const std::vector<float> k = {0, std::log(3.0F)};
  const std::vector<float> v = {4, 8};
  std::vector<float> out(2), prob(4), lse(2), mass(2);
  std::vector<std::int32_t> index(4);
  AttentionTensors t;
  t.q = q.data();
  t.k = k.data();
  t.v = v.data();
  t.out = out.data();
  t.top_k = 2;
  t.prob = prob.data();
  t.index = index.data();
  t.lse = lse.data();
  t.column_mass = mass.data();
  t.column_stride = 2;
  attention_cpu({.query_heads = 1, .kv_heads = 1, .head_dim = 1, .rows = 2, .scale = 1}, t);
  CHECK(out[0] == Approx(4));
  CHECK(out[1] == Approx(7));
  CHECK(lse[1] == Approx(std::log(4.0)));
  CHECK(index == std::vector<std::int32_t>{0, -1, 1, 0});
  CHECK(prob[2] == Approx(0.75));
  CHECK(mass[0] == Approx(1.25));
}
