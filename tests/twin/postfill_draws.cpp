// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/postfill_draws.h"

#include <algorithm>
#include <fstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace kvspan::test {

bool coin(Random& random, int of) { return pick(random, 1, of) == 1; }

TraceSpec small_trace(Random& random, bool integers, int tokens) {
  RandomShape shape;
  shape.layers = 2;
  shape.tokens = pick(random, tokens, 3 * tokens);
  shape.prompt_tokens =
      pick(random, 3 * tokens / 5, std::min(9 * tokens / 4, static_cast<int>(shape.tokens)));
  shape.kv_heads = pick(random, 1, 3);
  shape.query_heads = shape.kv_heads * pick(random, 1, 2);
  if (shape.query_heads == 1) shape.query_heads = 2;
  shape.head_dim = 2 * pick(random, 2, 4);
  shape.v_head_dim = coin(random) ? shape.head_dim : pick(random, 4, 8);
  shape.seed = random();
  TraceSpec spec = random_spec(shape);
  for (LayerSpec& layer : spec.layers) {
    if (!integers) break;
    for (std::vector<double>* values : {&layer.q, &layer.k, &layer.v}) {
      for (double& x : *values) x = pick(random, -2, 2);
    }
    const auto copy = [&](std::vector<double>& values, int dim, int token, int from) {
      const int width = shape.kv_heads * dim;
      std::copy_n(values.begin() + from * width, width, values.begin() + token * width);
    };
    for (int token = 1; token < shape.tokens; ++token) {  // some tokens repeat earlier ones
      if (!coin(random, 3)) continue;
      const int from = pick(random, 0, token - 1);
      copy(layer.k, shape.head_dim, token, from);
      if (coin(random)) copy(layer.v, shape.v_head_dim, token, from);
    }
  }
  if (coin(random, 6)) {
    for (LayerSpec& layer : spec.layers) {
      for (int q = 0; q < shape.query_heads; ++q) {
        layer.sink_logits.push_back(pick(random, -2, 2));
      }
    }
  }
  if (coin(random, 6)) spec.meta.logit_softcap = 2.0;
  if (coin(random, 8)) {
    spec.meta.sliding_window = {0, pick(random, 8, 30)};
  }
  if (!coin(random, 4)) spec.meta.rope = Rope{10000.0, shape.head_dim, coin(random), {}};
  if (coin(random, 4)) {
    spec.meta.model_layers = pick(random, 3, 5);
    const int first = pick(random, 0, spec.meta.model_layers - 2);
    spec.meta.layer_ids = {first, pick(random, first + 1, spec.meta.model_layers - 1)};
  }
  return spec;
}

std::string Drawn::text() const {
  const auto list = [](const auto& pairs) {
    std::string out;
    for (const auto& [key, value] : pairs) {
      out += fmt::format("{}{}={}", out.empty() ? "" : ",", key, value);
    }
    return out;
  };
  const auto inside = parameters.find("inner");
  if (inside == parameters.end())
    return fmt::format("{}{}({}){}", before, policy, list(own), after);
  return fmt::format("{}{}({}({}){}{}){}", before, policy, inside->second, list(inner),
                     own.empty() ? "" : ",", list(own), after);
}

std::string some_budget(Random& random, const Drawn& d, int heads, bool no_share) {
  const int kind = pick(random, no_share ? 1 : 0, 3);
  if (kind == 0) {
    return one_of(random, {"5%", "10%", "12.5%", "20%", "33%", "50%", "70%", "90%"});
  }
  if (kind == 1) {
    const int entry = (d.meta.head_dim + d.meta.v_head_dim) * 2;
    return fmt::format("{}B", d.meta.layers * (heads > 0 ? heads : d.meta.kv_heads) * entry *
                                      pick(random, 1, d.prompt()) +
                                  pick(random, 0, 7));
  }
  return std::to_string(pick(random, 1, d.prompt() + 2));
}

namespace {

// Window, kernel, pool, group and order of SnapKV's votes; returns the stored heads.
int some_votes(Random& random, Drawn& d, bool inside = false) {
  const auto set = [&](const std::string& key, const std::string& value) {
    inside ? d.set_inner(key, value) : d.set(key, value);
  };
  set("window", std::to_string(pick(random, 1, 8)));
  set("kernel", one_of(random, {"1", "3", "5"}));
  set("pool", one_of(random, {"max", "avg"}));
  const std::string group = one_of(random, {"mean", "max", "sum", "none"});
  set("group", group);
  set("order", one_of(random, {"group_then_pool", "pool_then_group"}));
  return group == "none" ? d.meta.query_heads : d.meta.kv_heads;
}

std::string write_gates(const Drawn& d, const std::string& folder) {
  static int counter = 0;
  const std::string path = fmt::format("{}/gates{}.tsv", folder, counter++);
  std::ofstream file(path);
  for (const std::vector<double>& row : d.tables.gates) {
    for (std::size_t h = 0; h < row.size(); ++h) {
      file << fmt::format("{:.17g}", row[h]) << (h + 1 < row.size() ? "\t" : "\n");
    }
  }
  return path;
}

void some_gates(Random& random, Drawn& d, int heads, int levels) {
  for (int l = 0; l < d.meta.model_layers; ++l) {
    d.tables.gates.emplace_back();
    for (int h = 0; h < heads; ++h) {
      d.tables.gates.back().push_back(pick(random, 1, levels) / 64.0);
    }
  }
}

// Weights of `kvspan fit` for a drop score that is one statistic of one query head, negated: inputs
// are the 8 statistics of the group's query heads, k and v; the last parameter is the bias.
std::string one_statistic(Random& random, Drawn& d, const std::string& folder) {
  static int counter = 0;
  static const std::vector<std::string> names = {"max",  "min",   "sum", "sum16",
                                                 "sum8", "sum32", "acc", "accd"};
  const int group = d.meta.query_heads / d.meta.kv_heads;
  const int statistic = pick(random, 0, 7), head = pick(random, 0, group - 1);
  d.parameters["feature"] = names[static_cast<std::size_t>(statistic)];
  d.parameters["feature_head"] = std::to_string(head);
  const int width = 8 * group + d.meta.head_dim + d.meta.v_head_dim;
  const auto heads = d.meta.layers * d.meta.kv_heads;
  std::vector<double> mean, scale, parameters;
  for (int i = 0; i < heads; ++i) {
    for (int x = 0; x <= width; ++x) {
      if (x < width) {
        mean.push_back(0);
        scale.push_back(1);
      }
      parameters.push_back(x == statistic * group + head ? -1 : 0);
    }
  }
  const std::string path = fmt::format("{}/statistic{}.safetensors", folder, counter++);
  TensorMap tensors;
  const auto add = [&](const std::string& name, const std::vector<double>& values, int last) {
    tensors[name] = {
        Dtype::f32, {d.meta.layers, d.meta.kv_heads, last}, encode(values, Dtype::f32)};
  };
  add("mean", mean, width);
  add("scale", scale, width);
  add("parameters", parameters, width + 1);
  write_tensors(path,
                {{"kvspan_models", "1"},
                 {"scorer", "foresightkv"},
                 {"method", "ridge"},
                 {"hidden", "0"},
                 {"outputs", "1"},
                 {"width", std::to_string(width)},
                 {"seed", "0"},
                 {"layer_ids", fmt::format("[{}]", fmt::join(d.meta.layer_ids, ","))}},
                tensors);
  return path;
}

void set_statistic(Random& random, Drawn& d, const std::string& folder, int interval) {
  d.set("budget", pick(random, interval + 2, d.prompt() + 4));
  d.set("scorer", "file");
  d.set("select", "topk");
  d.set("interval", interval);
  d.set_file("weights", one_statistic(random, d, folder));
  d.plan.evict_point = -1;
}

}  // namespace

std::string some_table(Random& random, Drawn& d, const std::string& tensor,
                       const std::string& folder) {
  static int counter = 0;
  const auto size = d.meta.layers * d.meta.kv_heads * static_cast<int>(d.meta.tokens);
  for (int i = 0; i < size; ++i) d.tables.scores.push_back(pick(random, 0, 40) * 0.025);
  for (double& s : d.tables.scores) s = rounded_to(s, Dtype::f32);
  const std::string path = fmt::format("{}/table{}.safetensors", folder, counter++);
  TensorMap tensors;
  tensors[tensor] = {Dtype::f32,
                     {d.meta.layers, d.meta.kv_heads, d.meta.tokens},
                     encode(d.tables.scores, Dtype::f32)};
  write_tensors(path, {{"format", "test"}}, tensors);
  return path;
}

void inner_policy(Random& random, Drawn& d, const std::string& name, bool sized) {
  d.parameters["inner"] = name;
  int heads = d.meta.kv_heads;
  if (name == "snapkv") heads = some_votes(random, d, true);
  if (name == "expected_attention" || name == "cur" || name == "lagkv") {
    d.set_inner("sinks", pick(random, 0, 3));
  }
  if (name == "expected_attention") d.set_inner("future", pick(random, 1, 9));
  if (name == "cur") d.set_inner("window", pick(random, 2, 8));
  if (name == "lagkv") d.set_inner("lag", pick(random, 2, 8));
  if (sized) d.set_inner("budget", some_budget(random, d, heads));
}

const Draws& postfill_draws() {
  static const Draws all = {
      {"knorm",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         if (coin(r, 3)) d.set("skip", pick(r, 0, 2));
       }},
      {"keydiff",
       [](Random& r, Drawn& d, const std::string&) { d.set("budget", some_budget(r, d)); }},
      {"lagkv",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("sinks", pick(r, 0, 4));
         d.set("lag", pick(r, 1, 8));
         d.set("cross", one_of(r, {"true", "false"}));
       }},
      {"expected_attention",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("sinks", pick(r, 0, 4));
         d.set("future", pick(r, 1, 20));
         d.set("covariance", one_of(r, {"true", "false"}));
         d.set("vnorm", one_of(r, {"true", "false"}));
         d.set("epsilon", one_of(r, {"0", "0.01"}));
       }},
      {"cur",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("sinks", pick(r, 0, 4));
         d.set("window", pick(r, 1, 10));
         d.set("leverage", one_of(r, {"kv_product", "key", "value", "kv_avg"}));
       }},
      {"observed_attention",
       [](Random& r, Drawn& d, const std::string&) { d.set("budget", some_budget(r, d)); }},
      {"simlayerkv",
       [](Random& r, Drawn& d, const std::string&) {
         if (coin(r)) {
           d.set("threshold", one_of(r, {"0.4", "0.6", "0.8", "0.9", "1"}));
           d.set("recent", pick(r, 1, 12));
         } else {
           const int last = pick(r, 1, 3);
           d.set("variant", "kvpress");
           d.set("threshold", one_of(r, {"0.2", "0.4", "0.5", "0.6", "0.8"}));
           d.set("recent", pick(r, last + 1, 12));
           d.set("last", last);
         }
         d.set("sinks", pick(r, 0, 4));
         d.set("decode", one_of(r, {"stream", "append"}));
       }},
      {"adakv",
       [](Random& r, Drawn& d, const std::string&) {
         const int heads = some_votes(r, d);
         d.set("alpha", one_of(r, {"0", "0.2", "0.5", "1"}));
         d.set("normalize", one_of(r, {"false", "true"}));
         d.set("skip", pick(r, 0, 1));
         if (!coin(r, 3)) {
           d.set("budget", some_budget(r, d, heads));
           d.set("form", one_of(r, {"code", "kvpress"}));
           return;
         }
         d.plan.evict_point = -1;  // Ada-PyramidKV, up to a budget of the prompt
         d.set("budget", coin(r, 4) ? d.prompt() : pick(r, 1, d.prompt()));
         d.parameters["pyramid"] = one_of(r, {"1", "2", "5", "20"});
         d.before = fmt::format("pyramid(beta={})+", d.parameters["pyramid"]);
       }},
      {"chunkkv",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("preset", one_of(r, {"paper", "kvpress"}));
         d.set("length", pick(r, 1, 8));
         d.set("window", pick(r, 1, 10));
         d.set("reuse", one_of(r, {"1", "2", "4"}));
       }},
      {"dbudgetkv",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("threshold", one_of(r, {"0", "0.01", "0.05", "0.2", "0.5"}));
         d.set("sinks", pick(r, 0, 4));
         d.set("norm", one_of(r, {"code", "paper"}));
         d.set("rows", pick(r, 1, 4));
         d.set("skip", pick(r, 0, 2));
       }},
      {"headkv",
       [](Random& r, Drawn& d, const std::string& folder) {
         const int heads = some_votes(r, d);
         // 11 // 1.1 and 22 // 1.1 are no quotients rounded down.
         const bool python = coin(r, 4);
         const int edge = std::stoi(d.parameters["window"]) + 11 * pick(r, 1, 2);
         d.set("budget", python ? std::to_string(edge) : some_budget(r, d, heads));
         const bool queries = heads == d.meta.query_heads || coin(r);
         some_gates(r, d, queries ? d.meta.query_heads : d.meta.kv_heads, 500);
         d.set_file("heads", write_gates(d, folder));
         d.set("beta", python ? "1.1" : one_of(r, {"1", "1.2", "1.5", "2", "4"}));
         d.set("temp", one_of(r, {"1", "0", "2"}));
       }},
      {"prulong",
       [](Random& r, Drawn& d, const std::string& folder) {
         d.set("sparsity", one_of(r, {"0", "0.1", "0.25", "0.5", "0.7", "1"}));
         some_gates(r, d, d.meta.kv_heads, 4);
         d.set_file("heads", write_gates(d, folder));
         d.set("full", one_of(r, {"mask", "quantile"}));
         d.set("sinks", pick(r, 0, 4));
         d.set("window", pick(r, 1, 12));
       }},
      {"baklava",
       [](Random& r, Drawn& d, const std::string& folder) {
         d.set("budget", some_budget(r, d));
         some_gates(r, d, d.meta.kv_heads, 500);
         d.set_file("profile", write_gates(d, folder));
         d.set("power", one_of(r, {"0", "0.5", "1", "2"}));
         d.set("sinks", pick(r, 0, 4));
       }},
      {"pyramidkv",
       [](Random& r, Drawn& d, const std::string&) {
         const int heads = some_votes(r, d);
         d.set("budget", some_budget(r, d, heads));
         d.set("beta", one_of(r, {"1", "2", "5", "20"}));
         d.set("rounding", "kvpress");
       }},
      {"criticalkv",
       [](Random& r, Drawn& d, const std::string&) {
         inner_policy(r, d,
                      one_of(r, {"snapkv", "snapkv", "observed_attention", "expected_attention"}),
                      true);
         d.set("ratio", one_of(r, {"0", "0.25", "0.5", "1"}));
         d.set("epsilon", one_of(r, {"0.0001", "0.01"}));
         if (coin(r)) return;
         const int hidden = pick(r, 2, 6);
         for (LayerSpec& layer : d.trace.layers) {
           for (int i = 0; i < hidden * d.meta.query_heads * d.meta.v_head_dim; ++i) {
             layer.wo.push_back(pick(r, -8, 8) * 0.125);
           }
           d.tables.wo.push_back(layer.wo);
         }
       }},
      {"chunk",
       [](Random& r, Drawn& d, const std::string&) {
         inner_policy(r, d,
                      one_of(r, {"snapkv", "knorm", "keydiff", "expected_attention", "cur",
                                 "observed_attention"}),
                      true);
         d.set("length", pick(r, 3, 20));
       }},
      {"block",
       [](Random& r, Drawn& d, const std::string&) {
         inner_policy(r, d, one_of(r, {"knorm", "keydiff", "snapkv", "cur"}), true);
         d.set("size", pick(r, 1, 12));
       }},
      {"dms",
       [](Random& r, Drawn& d, const std::string&) {
         inner_policy(r, d, "knorm", false);
         if (coin(r, 4)) d.set_inner("skip", 1);
         d.set("threshold", fmt::format("{:.4f}", -0.1 * pick(r, 10, 40)));
         const bool code = !coin(r, 3);
         d.set("window", pick(r, code ? 2 : 0, 12));
         if (!code) d.set("variant", "kvpress");
         if (coin(r, 3)) d.set("per", "layer");
       }},
      {"decoding",
       [](Random& r, Drawn& d, const std::string&) {
         inner_policy(r, d, one_of(r, {"knorm", "snapkv", "snapkv", "keydiff", "cur", "lagkv"}),
                      false);
         // The buffer of kvpress spans the window.
         const int window = std::stoi(d.parameters.count("inner.window") > 0 &&
                                              d.parameters.at("inner") == "snapkv"
                                          ? d.parameters.at("inner.window")
                                          : "0");
         d.set("every", pick(r, window + 1, window + 6));
         d.plan.evict_point = -1;
         d.set("target", pick(r, 4, 40));
         if (d.ties || coin(r, 3)) d.set("order", "token");  // ties lie in a device's order
       }},
      {"judgeq",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("scorer", "oracle");
         d.set("pool", one_of(r, {"1", "3", "5"}));
         d.set("window", pick(r, 0, 6));
         d.set("group", one_of(r, {"mean", "max"}));
       }},
      {"write_gate",
       [](Random& r, Drawn& d, const std::string& folder) {
         const std::string gate = one_of(r, {"oracle", "oracle_out", "random", "file"});
         d.set("gate", gate);
         d.set("window", pick(r, 1, 12));
         d.set("masks_prefill", one_of(r, {"true", "false"}));
         if (gate == "file") {
           d.set_file("weights", some_table(r, d, "gates", folder));
           if (coin(r)) d.set("tau", "0.6");
         } else {
           d.set("rate", one_of(r, {"10%", "25%", "50%"}));
           if (gate == "random") d.set("seed", pick(r, 0, 1000));
         }
         if (d.plan.chunk == 0 && coin(r, 3)) d.set("mask", "kernel");
         if (!coin(r, 3)) return;
         Drawn pages;
         pages.set("page", pick(r, 1, 5));
         pages.set("budget", pick(r, 1, d.prompt()));
         pages.set("skip", pick(r, 0, 1));
         pages.set("least", pick(r, 0, 3));
         pages.set("per", "kv");
         for (const auto& [key, value] : pages.own) d.parameters["quest." + key] = value;
         pages.policy = "quest";
         d.after = "+" + pages.text();
       }},
      {"locret",
       [](Random& r, Drawn& d, const std::string& folder) {
         d.set("budget", some_budget(r, d, 0, true));
         d.set("scorer", "file");
         d.set_file("weights", some_table(r, d, "scores", folder));
         d.set("local", pick(r, 0, 6));
         if (!coin(r, 3)) d.set("stabilizers", pick(r, 0, 6));
         d.plan.chunk = pick(r, 2, 12);
       }},
      {"foresightkv",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("scorer", "golden");
         d.set("select", "topk");
         d.set("interval", pick(r, 1, 8));
         d.plan.evict_point = -1;
       }},
      {"foresightkv",
       [](Random& r, Drawn& d, const std::string& folder) {
         set_statistic(r, d, folder, pick(r, 2, 9));
       }},
  };
  return all;
}

const Draws& long_draws() {
  static const auto preset = [](Random& r, Drawn& d, bool inside) {
    const auto set = [&](const std::string& key, const std::string& value) {
      inside ? d.set_inner(key, value) : d.set(key, value);
    };
    set("preset", "prulong");
    const bool edge = !inside && coin(r, 4) && d.meta.tokens > 131;  // 65 of 130, 64 of 129
    if (edge) d.trace.meta.prompt_tokens = d.meta.prompt_tokens = 130;
    std::vector<std::string> budgets = {"20%", "33%", "50%", "70%"};
    if (!inside) budgets.insert(budgets.end(), {"90", "130"});
    set("budget", edge ? "50%" : one_of(r, budgets));
    if (coin(r, 3)) set("kernel", one_of(r, {"1", "3", "7"}));
    if (coin(r, 3)) set("group", "mean");
    if (inside || coin(r, 3)) set("window", std::to_string(pick(r, 3, 20)));
  };
  static const Draws all = {
      {"snapkv", [](Random& r, Drawn& d, const std::string&) { preset(r, d, false); }},
      {"pyramidkv",
       [](Random& r, Drawn& d, const std::string&) {
         preset(r, d, false);
         if (coin(r)) d.set("beta", one_of(r, {"1", "2", "5", "20"}));
       }},
      {"chunked",
       [](Random& r, Drawn& d, const std::string&) {
         d.parameters["inner"] = one_of(r, {"snapkv", "pyramidkv"});
         preset(r, d, true);
         if (coin(r)) d.set("variant", "patched");
         d.plan.chunk = pick(r, 25, 80);
       }},
      {"locret",
       [](Random& r, Drawn& d, const std::string& folder) {
         d.set("budget", one_of(r, {"10%", "33%", "50%", "70%"}));
         d.set("scorer", "file");
         d.set_file("weights", some_table(r, d, "scores", folder));
         d.set("local", pick(r, 1, 60));
         if (!coin(r, 3)) d.set("stabilizers", pick(r, 1, 90));
         d.plan.chunk = pick(r, 20, 90);
       }},
      // Its last 8, 16 and 32 rows, too, in an interval.
      {"foresightkv",
       [](Random& r, Drawn& d, const std::string& folder) {
         set_statistic(r, d, folder, pick(r, 33, 40));
       }},
  };
  return all;
}

}  // namespace kvspan::test
