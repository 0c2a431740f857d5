// SPDX-License-Identifier: Apache-2.0
// The twins themselves against what the authors' programs gave on the same small inputs (their
// statements run by hand or by torch, noise off).
#include <set>
#include <vector>

#include <catch2/catch.hpp>

#include "tests/twin/catalogue_decode.h"
#include "tests/twin/catalogue_postfill.h"

using namespace kvspan;
using Row = std::vector<double>;

namespace {

// One head whose key of token j is the j-th unit vector, so that a query is its row of logits.
twin::Trace of_logits(int prompt, const std::vector<Row>& rows) {
  twin::Trace t;
  t.tokens = t.head_dim = static_cast<int>(rows.size());
  t.prompt_tokens = prompt;
  t.query_heads = t.kv_heads = t.v_head_dim = t.model_layers = 1;
  twin::Layer layer;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t j = 0; j < rows.size(); ++j) {
      layer.q.push_back(j < rows[i].size() ? rows[i][j] : 0);
      layer.k.push_back(i == j ? 1 : 0);
    }
    layer.v.push_back(static_cast<double>(i));
  }
  t.layers = {layer};
  return t;
}

// Every row attends to one token, logit 300 against 0.
twin::Trace attending(int prompt, const std::vector<int>& to) {
  std::vector<Row> rows;
  for (const int j : to) {
    rows.emplace_back(to.size(), 0.0);
    rows.back()[static_cast<std::size_t>(j)] = 300;
  }
  return of_logits(prompt, rows);
}

std::vector<int> read_by(const twin::decode::Outcome& out, int row) {
  return out.active[static_cast<std::size_t>(row)];
}

std::vector<int> held(const std::vector<int>& deaths, int row) {
  std::vector<int> out;
  for (int j = 0; j <= row; ++j) {
    if (deaths[static_cast<std::size_t>(j)] > row) out.push_back(j);
  }
  return out;
}

}  // namespace

TEST_CASE("keyformer's twin masks as the authors' GPT-J", "[twin]") {
  const auto out = twin::decode::simulate(
      attending(8, {0, 1, 1, 3, 3, 3, 6, 6, 6, 9, 10, 11}), "keyformer",
      {{"variant", "code"}, {"budget", "4"}, {"recent", "50"}, {"seed", "1"}}, {});
  CHECK(read_by(out, 8) == std::vector<int>{1, 3, 7, 8});
  CHECK(read_by(out, 9) == std::vector<int>{1, 3, 8, 9});
  CHECK(read_by(out, 10) == std::vector<int>{1, 3, 9, 10});
  CHECK(read_by(out, 11) == std::vector<int>{1, 3, 10, 11});
}

TEST_CASE("the twin of h2o(variant=ratio) masks as the authors' Llama", "[twin]") {
  const auto out = twin::decode::simulate(
      attending(12, {0, 1, 1, 3, 3, 3, 3, 3, 3, 9, 9, 9, 12, 13, 14}), "h2o",
      {{"variant", "ratio"}, {"heavy_share", "17"}, {"recent_share", "25"}}, {});
  CHECK(read_by(out, 12) == std::vector<int>{1, 3, 10, 11, 12});
  CHECK(read_by(out, 13) == std::vector<int>{3, 9, 11, 12, 13});
  CHECK(read_by(out, 14) == std::vector<int>{3, 9, 12, 13, 14});
}

TEST_CASE("r_kv's twin keeps what the authors' class keeps at its second cut", "[twin]") {
  twin::Trace t;
  t.tokens = 9;
  t.prompt_tokens = 6;
  t.query_heads = t.kv_heads = t.v_head_dim = t.model_layers = 1;
  t.head_dim = 4;
  t.score_scale = 0.5;
  twin::Layer layer;
  layer.k = {1, 2,  -3, 0, 0,  0, -2, 0,  2, -1, 1,  3, -3, -3, 1, -1, -2, 3,
             3, -3, -2, 2, -2, 2, -3, -2, 1, 0,  -3, 0, 2,  3,  0, 0,  0,  0};
  layer.q.assign(36, 0.0);
  const Row q5 = {3, -3, 1, -2}, q7 = {-3, -2, -2, -2};
  std::copy(q5.begin(), q5.end(), layer.q.begin() + 20);
  std::copy(q7.begin(), q7.end(), layer.q.begin() + 28);
  layer.v.assign(9, 1.0);
  t.layers = {layer};
  // Cuts after the prompt (row 5: cache 2, 3, 1, 5) and, the length 7 being due, after row 7.
  const twin::decode::Parameters p = {
      {"budget", "4"}, {"window", "1"}, {"kernel", "3"}, {"lambda", "0.5"}, {"buffer", "7"}};
  const auto out = twin::decode::simulate(t, "r_kv", p, {});
  CHECK(held(out.death, 6) == std::vector<int>{1, 2, 3, 5, 6});
  CHECK(held(out.death, 8) == std::vector<int>{1, 2, 3, 7, 8});
  twin::decode::Parameters by_token = p;
  by_token["order"] = "token";
  const auto other = twin::decode::simulate(t, "r_kv", by_token, {});
  CHECK(held(other.death, 8) == std::vector<int>{2, 3, 5, 7, 8});
}

TEST_CASE("headkv's twin floors as Python does", "[twin]") {
  twin::Trace t = of_logits(100, std::vector<Row>(104));
  t.query_heads = t.kv_heads = 4;
  t.head_dim = 1;
  twin::Layer& layer = t.layers[0];
  layer.q.clear();
  layer.v.assign(416, 1.0);
  layer.k.clear();
  for (int i = 0; i < 416; ++i) {
    layer.q.push_back(1);
    layer.k.push_back(0.001 * ((i * 37) % 101));
  }
  twin::postfill::Tables tables;
  tables.gates = {{0.1, 0.2, 0.3, 0.4}};
  const auto out = twin::postfill::simulate(
      t, "headkv", {{"budget", "30"}, {"window", "8"}, {"beta", "1.1"}}, {}, tables);
  // 22 // 1.1 = 19: round(.1 76 + 3) + 8 = 19, and 26, 34, 41.
  for (const auto& [head, count] : {std::pair{0, 19}, {1, 26}, {2, 34}, {3, 41}}) {
    const std::vector<int> deaths(out.death.begin() + head * 104,
                                  out.death.begin() + (head + 1) * 104);
    CHECK(held(deaths, 100).size() == static_cast<std::size_t>(count) + 1);
  }
}

TEST_CASE("adakv's twin drops one where everything would fit", "[twin]") {
  const auto out = twin::postfill::simulate(of_logits(35, std::vector<Row>(37)), "adakv",
                                            {{"budget", "35"}, {"alpha", "0.2"}}, {});
  CHECK(held(out.death, 35).size() == 34 + 1);
}

TEST_CASE("simlayerkv's twin judges the first decode row", "[twin]") {
  std::vector<Row> rows(44, Row(44, 0.0));
  for (std::size_t i = 40; i < rows.size(); ++i) rows[i][0] = 5;
  const auto out =
      twin::postfill::simulate(of_logits(40, rows), "simlayerkv",
                               {{"sinks", "4"}, {"recent", "8"}, {"threshold", "0.5"}}, {});
  CHECK(held(out.death, 40).size() == 41);
  CHECK(held(out.death, 41).size() == 4 + 8 + 1);
  CHECK(held(out.death, 43).size() == 4 + 8 + 3);
}
