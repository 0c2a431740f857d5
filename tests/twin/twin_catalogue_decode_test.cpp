// SPDX-License-Identifier: Apache-2.0
// Policies that act while tokens are generated against their brute-force twins
// (tests/twin/catalogue_decode.h), written from the papers and codes alone.
#include <cmath>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <optional>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "tests/support/twin_bridge.h"
#include "tests/twin/catalogue_decode.h"

using namespace kvspan;
using test::one_of;
using test::pick;
using test::Random;
using twin::decode::Outcome;
using twin::decode::Parameters;

namespace {

struct Shape {
  int tokens_low = 20, tokens_high = 60;
  bool sinks = true, softcap = true, window = true;  // may occur
  bool v_differs = true;
  int first_layer = 0;  // of the model
  bool ties = true;     // a third of the traces are of small integers
  bool split = true;    // --evict-at may occur
};

struct Case {
  test::TraceSpec trace;
  twin::Plan plan;
  std::string policy;  // of the twin
  Parameters parameters;
  std::string text;  // of the engine
  twin::decode::Text words;
};

struct Tally {
  long long cases = 0, refused = 0, decisions = 0, near_ties = 0, excused = 0, different = 0;
};

test::TraceSpec small_trace(Random& random, bool integers, const Shape& wanted) {
  test::RandomShape shape;
  shape.layers = 2;
  shape.kv_heads = pick(random, 1, 3);
  shape.query_heads = shape.kv_heads * (shape.kv_heads == 1   ? pick(random, 2, 6)
                                        : shape.kv_heads == 2 ? pick(random, 1, 3)
                                                              : pick(random, 1, 2));
  shape.head_dim = one_of<int>(random, {4, 6, 8});
  shape.v_head_dim = wanted.v_differs && pick(random, 0, 1) == 0 ? 5 : shape.head_dim;
  shape.tokens = pick(random, wanted.tokens_low, wanted.tokens_high);
  shape.prompt_tokens = std::min<std::int64_t>(
      shape.tokens - 1, pick(random, wanted.tokens_low * 3 / 5, wanted.tokens_high * 3 / 4));
  shape.seed = random();
  test::TraceSpec spec = test::random_spec(shape);
  if (integers) {
    for (test::LayerSpec& layer : spec.layers) {
      for (double& x : layer.q) x = pick(random, -1, 1);
      for (double& x : layer.k) x = pick(random, -1, 1);
    }
  }
  if (wanted.sinks && pick(random, 0, 4) == 0) {
    for (test::LayerSpec& layer : spec.layers) {
      for (int q = 0; q < shape.query_heads; ++q) layer.sink_logits.push_back(pick(random, -2, 2));
    }
  }
  if (wanted.softcap && pick(random, 0, 4) == 0) spec.meta.logit_softcap = 2.0;
  if (wanted.window && pick(random, 0, 4) == 0) {
    spec.meta.sliding_window = {pick(random, 0, 1) * pick(random, 3, 20), pick(random, 3, 20)};
  }
  if (pick(random, 0, 1) == 0) {
    const int dim = pick(random, 0, 2) == 0 ? 4 : shape.head_dim;
    spec.meta.rope = Rope{10000.0, dim, pick(random, 0, 1) == 0, {}};
  }
  if (wanted.first_layer > 0 || pick(random, 0, 2) == 0) {
    const int from = std::max(wanted.first_layer, pick(random, 0, 2));
    spec.meta.layer_ids = {from, from + pick(random, 1, 2)};
    spec.meta.model_layers = spec.meta.layer_ids[1] + 1 + pick(random, 0, 1);
  }
  return spec;
}

// name(key=value,...) of the arguments whose key starts with the prefix.
std::string written(const std::string& name, const Parameters& parameters,
                    const std::string& prefix = "") {
  std::string inside;
  for (const auto& [key, value] : parameters) {
    const bool other =
        prefix.empty() ? key.find('.') != std::string::npos : key.rfind(prefix, 0) != 0;
    if (other) continue;
    inside += (inside.empty() ? "" : ",") + key.substr(prefix.size()) + "=" + value;
  }
  return name + "(" + inside + ")";
}

std::string tokens(Random& random, int lowest, int highest) {
  return fmt::format("{}", pick(random, lowest, highest));
}

std::string budget(Random& random, int prompt) {
  if (pick(random, 0, 2) == 0) {
    return one_of<std::string>(random, {"10%", "12.5%", "20%", "33%", "50%", "75%"});
  }
  if (pick(random, 0, 4) == 0) return fmt::format("{}B", pick(random, 500, 6000));
  return tokens(random, 2, prompt + 3);
}

bool near(double a, double b) {
  if (std::isnan(b)) return true;
  return std::abs(a - b) <= 1e-5 * std::max(1.0, b * b);
}

// What differs between the engine and the twin; empty: nothing.
std::string difference(const RunResult& got, const Outcome& twin, bool& excusable) {
  const Ledger& ledger = got.ledger;
  excusable = false;
  for (const char n : twin.near) excusable = excusable || n != 0;
  if (ledger.heads != twin.heads) return "heads";
  for (int l = 0; l < ledger.layers; ++l) {
    for (int h = 0; h < ledger.heads; ++h) {
      const auto ours = ledger.deaths(l, h);
      const std::size_t from = ledger.offset(l, h);
      for (std::size_t t = 0; t < ours.size(); ++t) {
        if (static_cast<int>(ours[t]) != twin.death[from + t]) {
          excusable = twin.near[static_cast<std::size_t>(l)] != 0;
          return fmt::format("death of layer {} head {} token {}: {} against {}", l, h, t, ours[t],
                             twin.death[from + t]);
        }
      }
    }
  }
  const Timeline& line = got.metrics.timeline;
  const Fidelity& f = got.fidelity.value();
  for (std::size_t row = 0; row < twin.loaded.size(); ++row) {
    if (!near(static_cast<double>(f.row_mass[row]), twin.row_mass[row])) {
      return fmt::format("mass of row {}: {} against {}", row, f.row_mass[row], twin.row_mass[row]);
    }
    if (line.active_entries[row] != twin.loaded[row]) {
      return fmt::format("entries read in row {}: {} against {}", row, line.active_entries[row],
                         twin.loaded[row]);
    }
    const auto payload = line.resident_bytes[row] - line.overhead_bytes[row];
    if (payload != twin.payload[row]) {
      return fmt::format("payload of row {}: {} against {}", row, payload, twin.payload[row]);
    }
    if (line.overhead_bytes[row] != twin.overhead[row]) {
      return fmt::format("overhead of row {}: {} against {}", row, line.overhead_bytes[row],
                         twin.overhead[row]);
    }
  }
  // The greatest error of few rows may be any multiple of the mean: rounding grows with its square.
  if (f.decode && !near(f.decode->mass_mean, twin.mass)) return "mean mass of decode rows";
  if (f.decode && f.decode->error_max < 10 && !near(f.decode->error_mean, twin.error)) {
    return fmt::format("mean error of decode rows: {} against {}", f.decode->error_mean,
                       twin.error);
  }
  if (f.prefill && f.prefill->error_max < 10 && !near(f.prefill->error_mean, twin.prefill_error)) {
    return fmt::format("mean error of prompt rows: {} against {}", f.prefill->error_mean,
                       twin.prefill_error);
  }
  if (f.decode && f.decode->logit_error && !near(*f.decode->logit_error, twin.logit_error)) {
    return fmt::format("distance of logits: {} against {}", *f.decode->logit_error,
                       twin.logit_error);
  }
  long long peak = 0;
  for (std::size_t row = 0; row < twin.loaded.size(); ++row) {
    peak = std::max(peak, twin.payload[row] + twin.overhead[row]);
  }
  if (got.metrics.peak_bytes.total != peak) return "peak bytes";
  return {};
}

void compare(const Case& c, Tally& tally) {
  const TraceMeta meta = test::completed(c.trace);
  INFO(fmt::format(
      "{} | N={} n={} chunk={} evict_at={} Hq={} Hk={} d={} dv={} layers={},{} window={} sinks={} "
      "cap={}",
      c.text, meta.tokens, meta.prompt_tokens, c.plan.chunk, c.plan.evict_point, meta.query_heads,
      meta.kv_heads, meta.head_dim, meta.v_head_dim, meta.layer_ids[0], meta.layer_ids[1],
      meta.sliding_window.empty() ? 0 : meta.sliding_window[1],
      !c.trace.layers[0].sink_logits.empty(), meta.logit_softcap));
  ++tally.cases;
  EngineOptions options;
  options.chunk = c.plan.chunk;
  options.evict_point = c.plan.evict_point > 0 ? c.plan.evict_point : 0;
  RunResult got;
  try {
    got = test::run_one(test::make_trace(c.trace), c.text, options);
  } catch (const Error& e) {
    ++tally.refused;
    ++tally.different;
    if (tally.different < 4) FAIL_CHECK("the engine refuses: " << e.what());
    return;
  }
  const Outcome expected =
      twin::decode::simulate(test::twin_trace(c.trace), c.policy, c.parameters, c.plan, c.words);
  tally.decisions += expected.decisions;
  tally.near_ties += expected.near_ties;
  bool excusable = false;
  const std::string what = difference(got, expected, excusable);
  if (what.empty()) return;
  if (excusable) {
    ++tally.excused;
    return;
  }
  ++tally.different;
  if (tally.different < 4) FAIL_CHECK(what);
}

// Makes the arguments of a case; the trace and the plan are there.
using Draw = std::function<void(Random& random, Case& c, int prompt)>;

void check(const std::string& policy, const Shape& shape, int cases, bool cuts, const Draw& draw) {
  const char* s = std::getenv("SEED");
  Random random(s ? std::stoull(s) : 20261122);
  Tally tally;
  for (int i = 0; i < test::share_of_cases(cases); ++i) {
    const bool integers = shape.ties && i % 3 == 2;
    Case c;
    c.policy = policy;
    c.trace = small_trace(random, integers, shape);
    const int prompt = static_cast<int>(c.trace.meta.prompt_tokens);
    if (cuts && pick(random, 0, 3) == 0) c.plan.chunk = pick(random, 3, 12);
    if (cuts && pick(random, 0, 4) == 0 && shape.split)
      c.plan.evict_point = pick(random, prompt / 2, prompt);
    draw(random, c, prompt);
    if (c.text.empty()) c.text = written(policy, c.parameters);
    INFO("case " << i);
    compare(c, tally);
  }
  std::cout << fmt::format(
      "twin of {}: {} cases, {} refused, {} decisions, {} near ties, {} excused, {} different\n",
      policy, tally.cases, tally.refused, tally.decisions, tally.near_ties, tally.excused,
      tally.different);
  CHECK(tally.different == 0);
  CHECK(tally.excused * 1000 <= std::max(tally.decisions, 1000LL));
  CHECK(tally.decisions > 0);
}

}  // namespace

TEST_CASE("streaming_llm agrees with its twin, also with positions in the cache",
          "[twin_catalogue_decode]") {
  check("streaming_llm", {}, 150, true, [](Random& random, Case& c, int prompt) {
    if (pick(random, 0, 1) == 0) {
      c.parameters["budget"] = budget(random, prompt);
    } else {
      c.parameters["sinks"] = tokens(random, 0, 5);
      c.parameters["window"] = tokens(random, 1, 20);
    }
    if (c.trace.meta.rope) {
      c.parameters["positions"] = one_of<std::string>(random, {"cache", "cache", "original"});
    }
  });
}

TEST_CASE("lambda agrees with its twin", "[twin_catalogue_decode]") {
  check("lambda", {}, 60, true, [](Random& random, Case& c, int prompt) {
    c.parameters["budget"] = budget(random, prompt);
    if (pick(random, 0, 1) == 0) c.parameters["sinks"] = tokens(random, 0, 8);
  });
}

TEST_CASE("scissorhands agrees with its twin", "[twin_catalogue_decode]") {
  check("scissorhands", {}, 150, true, [](Random& random, Case& c, int prompt) {
    c.parameters["budget"] = budget(random, prompt);
    if (pick(random, 0, 1) == 0) c.parameters["window"] = tokens(random, 1, 30);
    if (pick(random, 0, 2) > 0) c.parameters["recent"] = tokens(random, 0, 10);
    if (pick(random, 0, 1) == 0) {
      c.parameters["drop"] = one_of<std::string>(random, {"0", "10", "25", "40", "75", "100"});
    }
  });
}

TEST_CASE("scissorhands(mode=eval_code) agrees with its twin", "[twin_catalogue_decode]") {
  Shape shape;
  shape.tokens_low = 115;
  shape.tokens_high = 150;
  shape.first_layer = 4;
  check("scissorhands", shape, 20, true,
        [](Random&, Case& c, int) { c.parameters["mode"] = "eval_code"; });
}

TEST_CASE("keyformer(variant=code) agrees with the authors' masks", "[twin_catalogue_decode]") {
  Shape shape;
  shape.split = false;
  check("keyformer", shape, 120, true, [](Random& random, Case& c, int prompt) {
    c.parameters["variant"] = "code";
    c.parameters["budget"] = tokens(random, 2, prompt + 3);
    c.parameters["seed"] = tokens(random, 0, 1000);
    c.parameters["recent"] = one_of<std::string>(random, {"50", "50", "75", "100"});
    if (pick(random, 0, 1) == 0) {
      c.parameters["tau_start"] = "0.5";
      c.parameters["tau_end"] = "4";
    }
  });
}

TEST_CASE("keyformer agrees with its twin", "[twin_catalogue_decode]") {
  check("keyformer", {}, 120, true, [](Random& random, Case& c, int prompt) {
    c.parameters["budget"] = budget(random, prompt);
    c.parameters["seed"] = tokens(random, 0, 1000);
    if (pick(random, 0, 1) == 0) {
      c.parameters["recent"] = one_of<std::string>(random, {"0", "10", "50", "100"});
    }
    if (pick(random, 0, 1) == 0) c.parameters["every"] = tokens(random, 1, 9);
    if (pick(random, 0, 1) == 0) {
      c.parameters["tau_start"] = "0.5";
      c.parameters["tau_end"] = "4";
    }
  });
}

namespace {

void draw_r_kv(Random& random, Case& c, int prompt) {
  // The prompt in the budget, at the budget, and above it.
  c.parameters["budget"] = pick(random, 0, 5) == 0 ? fmt::format("{}", prompt + pick(random, -1, 1))
                                                   : budget(random, prompt);
  c.parameters["buffer"] = tokens(random, 1, 9);
  if (pick(random, 0, 2) > 0) c.parameters["window"] = tokens(random, 1, 8);
  if (pick(random, 0, 1) == 0) c.parameters["kernel"] = one_of<std::string>(random, {"1", "3"});
  if (pick(random, 0, 1) == 0) {
    c.parameters["similarity"] = one_of<std::string>(random, {"0", "0.3", "0.7", "1"});
  }
  if (pick(random, 0, 1) == 0) {
    c.parameters["lambda"] = one_of<std::string>(random, {"0", "0.5", "0.9"});
  }
}

}  // namespace

// Nearly equal scores would lie in another order in fp32: random vectors only.
TEST_CASE("r_kv agrees with its twin over cuts in a row", "[twin_catalogue_decode]") {
  Shape shape;
  shape.tokens_low = 30;
  shape.tokens_high = 80;
  shape.ties = shape.split = false;
  check("r_kv", shape, 150, true, draw_r_kv);
}

TEST_CASE("r_kv(order=token) agrees with its twin", "[twin_catalogue_decode]") {
  Shape shape;
  shape.split = false;
  check("r_kv", shape, 100, true, [](Random& random, Case& c, int prompt) {
    draw_r_kv(random, c, prompt);
    c.parameters["order"] = "token";
    if (pick(random, 0, 5) == 0) c.parameters["lambda"] = "1";
  });
}

TEST_CASE("sagekv agrees with its twin", "[twin_catalogue_decode]") {
  check("sagekv", {}, 200, true, [](Random& random, Case& c, int prompt) {
    const int size = pick(random, 4, prompt + 3);
    c.parameters["budget"] = fmt::format("{}", size);
    if (pick(random, 0, 2) == 0) {
      c.parameters["sinks"] = one_of<std::string>(random, {"0", "10", "40"});
      c.parameters["recent"] = one_of<std::string>(random, {"0", "10", "50"});
    }
    if (pick(random, 0, 3) == 0) {
      const int group = c.trace.meta.query_heads / c.trace.meta.kv_heads;
      c.parameters["k"] = tokens(random, 0, size / 2 / group);
    }
    const int kind = pick(random, 0, 3);
    if (kind < 2) c.parameters["dup"] = "union";
    if (kind == 2) c.parameters["agg"] = "sum";
  });
}

TEST_CASE("fastgen agrees with its twin", "[twin_catalogue_decode]") {
  Shape shape;
  shape.sinks = false;
  check("fastgen", shape, 150, true, [](Random& random, Case& c, int) {
    c.parameters["recovery"] =
        one_of<std::string>(random, {"0.1", "0.3", "0.5", "0.6", "0.7", "0.8", "0.9"});
    if (pick(random, 0, 1) == 0) {
      c.parameters["recent"] = one_of<std::string>(random, {"0", "10", "25", "50"});
      c.parameters["frequent"] = one_of<std::string>(random, {"0", "10", "25", "50"});
    }
    if (pick(random, 0, 3) == 0) c.parameters["punctuation"] = "false";
    if (pick(random, 0, 1) == 0) {
      for (int t = 0; t < c.trace.meta.tokens; ++t) {
        c.trace.token_text.push_back(one_of<std::string>(
            random, {"a", "b", ".", ",\n", "\n", " the", "x.", "\xc3\xa9", "!?"}));
      }
      c.words.pieces = c.trace.token_text;
    }
    if (pick(random, 0, 1) == 0) {
      c.words.knows_special = true;
      c.trace.meta.special_ids = {7, 9};
      for (int t = 0; t < c.trace.meta.tokens; ++t) {
        c.trace.token_ids.push_back(pick(random, 0, 20));
        if (c.trace.token_ids.back() == 7 || c.trace.token_ids.back() == 9) {
          c.words.special.push_back(t);
        }
      }
    }
  });
}

TEST_CASE("variants of h2o agree with their twin", "[twin_catalogue_decode]") {
  check("h2o", {}, 200, true, [](Random& random, Case& c, int prompt) {
    const int kind = pick(random, 0, 2);
    if (kind == 0) {
      c.parameters["variant"] = "ratio";
      if (pick(random, 0, 1) == 0) {
        c.parameters["heavy_share"] = one_of<std::string>(random, {"5", "20", "33", "50"});
        c.parameters["recent_share"] = one_of<std::string>(random, {"5", "20", "33", "50"});
      }
    } else {
      c.parameters["budget"] = fmt::format("{}", pick(random, 4, prompt + 3));
      if (kind == 1) c.parameters["variant"] = "flexgen";
    }
    if (pick(random, 0, 1) == 0) c.parameters["normalise"] = "true";
    if (pick(random, 0, 1) == 0) c.parameters["weight"] = "value";
  });
}

namespace {

void draw_pages(Random& random, Parameters& p, const std::string& prefix, int prompt) {
  p[prefix + "budget"] = tokens(random, 1, prompt);
  p[prefix + "page"] = tokens(random, 1, 8);
  p[prefix + "skip"] = tokens(random, 0, 2);
  p[prefix + "least"] = tokens(random, 0, 3);
  p[prefix + "last_page"] = one_of<std::string>(random, {"true", "true", "false"});
  p[prefix + "per"] = one_of<std::string>(random, {"query", "kv"});
}

}  // namespace

TEST_CASE("quest agrees with its twin", "[twin_catalogue_decode]") {
  check("quest", {}, 100, true,
        [](Random& random, Case& c, int prompt) { draw_pages(random, c.parameters, "", prompt); });
}

TEST_CASE("h2o+quest agrees with its twin", "[twin_catalogue_decode]") {
  check("h2o+quest", {}, 100, true, [](Random& random, Case& c, int prompt) {
    draw_pages(random, c.parameters, "quest.", prompt);
    c.parameters["budget"] = tokens(random, 4, prompt);
    c.text = written("h2o", c.parameters) + "+" + written("quest", c.parameters, "quest.");
  });
}

TEST_CASE("scores behind quest agree with their twin", "[twin_catalogue_decode]") {
  check("keyformer+quest", {}, 60, true, [](Random& random, Case& c, int prompt) {
    draw_pages(random, c.parameters, "quest.", prompt);
    c.parameters["budget"] = tokens(random, 4, prompt);
    c.parameters["seed"] = "5";
    c.text = written("keyformer", c.parameters) + "+" + written("quest", c.parameters, "quest.");
  });
  check("scissorhands+quest", {}, 60, true, [](Random& random, Case& c, int prompt) {
    draw_pages(random, c.parameters, "quest.", prompt);
    c.parameters["budget"] = tokens(random, 4, prompt);
    c.parameters["recent"] = "2";
    c.text = written("scissorhands", c.parameters) + "+" + written("quest", c.parameters, "quest.");
  });
}

TEST_CASE("rocketkv agrees with its twin", "[twin_catalogue_decode]") {
  check("rocketkv", {}, 120, true, [](Random& random, Case& c, int prompt) {
    c.parameters["budget"] = tokens(random, 2, prompt);
    c.parameters["window"] = tokens(random, 1, 6);
    c.parameters["kernel"] = one_of<std::string>(random, {"1", "3", "7"});
    c.parameters["bounds"] = one_of<std::string>(random, {"formed", "stored"});
    if (pick(random, 0, 1) == 0)
      c.parameters["r"] = one_of<std::string>(random, {"0", "0.3", "0.7"});
  });
}

TEST_CASE("retroattention agrees with its twin", "[twin_catalogue_decode]") {
  check("retroattention", {}, 80, true, [](Random& random, Case& c, int prompt) {
    draw_pages(random, c.parameters, "", prompt);
    c.parameters["window"] = tokens(random, 1, 5);
  });
}

TEST_CASE("refreshkv agrees with its twin", "[twin_catalogue_decode]") {
  check("refreshkv", {}, 120, true, [](Random& random, Case& c, int prompt) {
    c.parameters["budget"] = budget(random, prompt);
    c.parameters["stride"] = tokens(random, 1, 7);
    c.parameters["kernel"] = one_of<std::string>(random, {"1", "3", "7"});
    c.parameters["threshold"] = one_of<std::string>(random, {"0", "0.1", "0.3", "0.95"});
    if (pick(random, 0, 3) == 0) c.parameters["schedule"] = "fixed";
  });
}

TEST_CASE("infinigen(scores=exact) agrees with its twin", "[twin_catalogue_decode]") {
  check("infinigen", {}, 100, true, [](Random& random, Case& c, int prompt) {
    c.parameters["scores"] = "exact";
    c.parameters["cap"] = budget(random, prompt);
    c.parameters["alpha"] = one_of<std::string>(random, {"0.3", "0.5", "1", "1.25", "2.1", "4"});
  });
}

TEST_CASE("minference agrees with its twin", "[twin_catalogue_decode]") {
  Shape shape;
  shape.tokens_low = 100;
  shape.tokens_high = 140;
  shape.sinks = false;
  shape.softcap = false;
  check("minference", shape, 24, true, [](Random& random, Case& c, int) {
    c.parameters["verticals"] = tokens(random, 0, 20);
    c.parameters["slashes"] = tokens(random, 0, 70);
    c.parameters["last"] = tokens(random, 1, 20);
    c.parameters["first"] = tokens(random, 0, 5);
    c.parameters["forced_slash"] = tokens(random, 1, 30);
    if (pick(random, 0, 3) == 0) c.parameters["pattern"] = "a_shape";
  });
}

TEST_CASE("clusterkv agrees with its twin", "[twin_catalogue_decode]") {
  check("clusterkv", {}, 100, true, [](Random& random, Case& c, int prompt) {
    const int sinks = pick(random, 0, 4);
    c.parameters["sinks"] = fmt::format("{}", sinks);
    c.parameters["budget"] = tokens(random, sinks + 1, prompt);
    c.parameters["clusters"] = tokens(random, 1, 6);
    c.parameters["iterations"] = one_of<std::string>(random, {"0", "1", "3", "20"});
    c.parameters["every"] = tokens(random, 2, 9);
    c.parameters["added"] = tokens(random, 1, 3);
    c.parameters["skip"] = tokens(random, 0, 2);
    c.parameters["offload"] = one_of<std::string>(random, {"on", "off"});
    c.parameters["buffers"] = one_of<std::string>(random, {"query", "kv"});
    c.parameters["seed"] = tokens(random, 0, 1000);
  });
}

TEST_CASE("scores behind minference agree with their twin", "[twin_catalogue_decode]") {
  Shape shape;
  shape.tokens_low = 100;
  shape.tokens_high = 140;
  shape.sinks = false;
  shape.softcap = false;
  for (const std::string evicts : {"h2o", "scissorhands", "keyformer"}) {
    check(evicts + "+minference", shape, 12, true, [&](Random& random, Case& c, int prompt) {
      c.parameters = {{"verticals", tokens(random, 0, 20)},
                      {"slashes", tokens(random, 0, 30)},
                      {"last", tokens(random, 1, 20)},
                      {"first", tokens(random, 0, 5)},
                      {"forced_slash", tokens(random, 1, 10)}};
      const std::string sparse = written("minference", c.parameters);
      const std::string size = tokens(random, 10, prompt);
      c.parameters["budget"] = size;
      c.text = sparse + "+" + evicts + "(budget=" + size + ")";
    });
  }
}

// ---- What the twins found -----------------------------------------------------------------------

TEST_CASE("entries read include those of layers that a policy leaves alone",
          "[twin_catalogue_decode]") {
  const Trace trace = test::make_trace(
      test::random_spec({.layers = 3, .tokens = 12, .prompt_tokens = 8, .query_heads = 2}));
  const RunResult full = test::run_one(trace, "full", {});
  for (const char* policy : {"clusterkv(budget=12)", "clusterkv(budget=12,skip=0)"}) {
    CHECK(test::run_one(trace, policy, {}).metrics.entries_read == full.metrics.entries_read);
  }
}

TEST_CASE("sagekv(dup=union) leaves a prompt within the budget alone", "[twin_catalogue_decode]") {
  const Trace trace =
      test::make_trace(test::random_spec({.tokens = 11, .prompt_tokens = 10, .query_heads = 2}));
  const RunResult run = test::run_one(trace, "sagekv(budget=10,dup=union)", {});
  for (const std::uint32_t death : run.ledger.deaths(0, 0)) CHECK(death == 11);
}

TEST_CASE("a prompt too short for the shares of h2o(variant=ratio) keeps its newest token",
          "[twin_catalogue_decode]") {
  const Trace trace = test::make_trace(test::random_spec({.tokens = 7, .prompt_tokens = 5}));
  const RunResult run = test::run_one(trace, "h2o(variant=ratio)", {});
  CHECK(run.ledger.deaths(0, 0)[3] == 5);
  CHECK(run.ledger.deaths(0, 0)[4] == 6);
}

TEST_CASE("an A-shape reads as few tokens as it is told", "[twin_catalogue_decode]") {
  const Trace trace = test::make_trace(test::random_spec({.tokens = 60, .query_heads = 1}));
  const RunResult run =
      test::run_one(trace, "minference(pattern=a_shape,verticals=4,slashes=3)", {});
  CHECK(run.metrics.timeline.active_entries[5] == 6);
  CHECK(run.metrics.timeline.active_entries[50] == 7);
}

TEST_CASE("summed logits that are equal on paper tie", "[twin_catalogue_decode]") {
  test::TraceSpec spec;
  spec.meta.tokens = 8;
  spec.meta.prompt_tokens = 7;
  spec.meta.query_heads = 2;
  spec.meta.kv_heads = 1;
  spec.meta.head_dim = 2;
  test::LayerSpec layer;
  for (int t = 0; t < 8; ++t) layer.q.insert(layer.q.end(), {1, 0, 0, 1});
  // Sums of token 1, 2 and 4 are 0: of these, two stay beside the two newest.
  layer.k = {-1, -1, 0.3, -0.3, 3, -3, -1, -1, 1, -1, 0, 0, 0, 0, 0, 0};
  spec.layers = {layer};
  const RunResult run =
      test::run_one(test::make_trace(spec), "sagekv(budget=4,sinks=0,recent=50,agg=sum)", {});
  const auto deaths = run.ledger.deaths(0, 0);
  CHECK(std::vector<std::uint32_t>(deaths.begin(), deaths.begin() + 5) ==
        std::vector<std::uint32_t>{7, 8, 8, 7, 7});
}

TEST_CASE("entries outside the model's window are not read by a sparse prompt either",
          "[twin_catalogue_decode]") {
  test::TraceSpec spec = test::random_spec({.tokens = 12, .prompt_tokens = 10});
  spec.meta.sliding_window = {4};
  const Trace trace = test::make_trace(spec);
  CHECK(test::run_one(trace, "minference", {}).metrics.entries_read ==
        test::run_one(trace, "full", {}).metrics.entries_read);
}

TEST_CASE("infinigen(scores=exact) leaves out an entry that lies alpha below the best",
          "[twin_catalogue_decode]") {
  // One dimension, logits 3, 1, ..., 3: alpha = 2 excludes the ones, in every row.
  test::TraceSpec spec;
  spec.meta.tokens = 12;
  spec.meta.prompt_tokens = 6;
  spec.meta.query_heads = spec.meta.kv_heads = spec.meta.head_dim = 1;
  spec.meta.layer_ids = {1};
  spec.meta.model_layers = 2;
  test::LayerSpec layer;
  layer.q.assign(12, 1);
  layer.k = {3, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1};
  spec.layers = {layer};
  const RunResult run =
      test::run_one(test::make_trace(spec), "infinigen(alpha=2,cap=100%,scores=exact)", {});
  for (std::size_t row = 6; row < 12; ++row) {
    CHECK(run.metrics.timeline.active_entries[row] == 3);  // two, and its own
  }
}
