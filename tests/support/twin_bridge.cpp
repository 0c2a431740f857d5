// SPDX-License-Identifier: Apache-2.0
#include "tests/support/twin_bridge.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>

#include "sim/policy/registry.h"

namespace kvspan::test {
namespace {

bool coin(Random& random) { return pick(random, 0, 1) == 1; }

// A budget below, at or above the prompt; as tokens, share or bytes.
void random_budget(Random& random, Case& c, int heads, bool share_only) {
  const TraceMeta meta = completed(c.trace);
  c.policy.has_budget = true;
  twin::Amount& budget = c.policy.budget;
  const int kind = share_only ? 1 : pick(random, 0, 2);
  std::string text;
  if (kind == 1) {
    budget.kind = twin::Amount::share;
    budget.decimal =
        one_of<std::string>(random, {"1", "10", "12.5", "33", "50", "70", "99", "100"});
    text = budget.decimal + "%";
  } else if (kind == 0) {
    budget.kind = twin::Amount::tokens;
    budget.value = pick(random, 1, static_cast<int>(meta.prompt_tokens) + 3);
    text = fmt::format("{}", static_cast<int>(budget.value));
  } else {
    budget.kind = twin::Amount::bytes;
    const int entry = (meta.head_dim + meta.v_head_dim) * 2;
    budget.value =
        meta.layers * heads * entry * pick(random, 1, static_cast<int>(meta.prompt_tokens)) +
        pick(random, 0, 7);
    text = fmt::format("{}B", static_cast<int>(budget.value));
  }
  c.text += fmt::format("budget={},", text);
}

std::string write_table(const std::string& folder, const char* tensor, Dtype dtype,
                        const TraceMeta& meta, int heads, std::vector<std::byte> bytes) {
  static int counter = 0;
  const std::string path = fmt::format("{}/table{}.safetensors", folder, counter++);
  TensorMap tensors;
  tensors[tensor] = {dtype, {meta.layers, heads, meta.tokens}, std::move(bytes)};
  write_tensors(path, {{"format", "test"}}, tensors);
  return path;
}

void random_votes(Random& random, Case& c) {
  twin::Spec& p = c.policy;
  p.obs_window = pick(random, 1, 6);
  p.kernel = one_of<int>(random, {1, 3, 5});
  p.max_pool = coin(random);
  p.group = one_of<std::string>(random, {"mean", "max", "sum", "none"});
  p.pool_then_group = coin(random);
  c.text += fmt::format("window={},kernel={},pool={},group={},order={}", p.obs_window, p.kernel,
                        p.max_pool ? "max" : "avg", p.group,
                        p.pool_then_group ? "pool_then_group" : "group_then_pool");
}

}  // namespace

int share_of_cases(int all) {
  if (std::getenv("KVSPAN_SIMD") != nullptr) return (all + 3) / 4;
  return std::getenv("KVSPAN_DEEP") != nullptr ? all : (all + 1) / 2;
}

int pick(Random& random, int lowest, int highest) {
  // Not std::uniform_int_distribution: its results differ between standard libraries.
  return lowest + static_cast<int>(random() % static_cast<std::uint64_t>(highest - lowest + 1));
}

TraceSpec random_trace(Random& random, bool integers) {
  const int kv_heads = pick(random, 1, 3);
  RandomShape shape;
  shape.layers = pick(random, 1, 3);
  shape.tokens = pick(random, 1, 40);
  shape.prompt_tokens =
      pick(random, 0, 3) == 0 ? shape.tokens : pick(random, 1, static_cast<int>(shape.tokens));
  shape.kv_heads = kv_heads;
  shape.query_heads = kv_heads * pick(random, 1, 3);
  shape.head_dim = one_of<int>(random, {2, 4, 6, 8});
  shape.v_head_dim = one_of<int>(random, {2, 4, 5});
  shape.seed = random();
  TraceSpec spec = random_spec(shape);
  if (integers) {
    for (LayerSpec& layer : spec.layers) {
      const auto small = [&](std::vector<double>& values) {
        for (double& v : values) v = pick(random, -1, 1);
      };
      small(layer.q);
      small(layer.k);
      // Repeated keys: whole tokens copied from earlier ones.
      const auto width = static_cast<std::size_t>(shape.kv_heads * shape.head_dim);
      for (std::int64_t t = 1; t < shape.tokens; ++t) {
        if (pick(random, 0, 2) == 0) continue;
        const auto from =
            static_cast<std::size_t>(pick(random, 0, static_cast<int>(t) - 1)) * width;
        std::copy_n(
            layer.k.begin() + static_cast<std::ptrdiff_t>(from), width,
            layer.k.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(t) * width));
      }
    }
  }
  if (pick(random, 0, 3) == 0) {
    for (LayerSpec& layer : spec.layers) {
      for (int q = 0; q < shape.query_heads; ++q) layer.sink_logits.push_back(pick(random, -2, 2));
    }
  }
  if (pick(random, 0, 4) == 0) spec.meta.logit_softcap = 2.0;
  if (pick(random, 0, 4) == 0) {
    for (int l = 0; l < shape.layers; ++l) spec.meta.sliding_window.push_back(pick(random, 0, 12));
  }
  if (coin(random)) {
    spec.meta.rope = Rope{10000.0, shape.head_dim, coin(random), {}};
  }
  if (coin(random)) {
    const int begin = pick(random, 0, static_cast<int>(shape.tokens) - 1);
    spec.meta.spans = {{"needle", begin, pick(random, begin + 1, static_cast<int>(shape.tokens))}};
  }
  if (coin(random)) {  // some layers of a deeper model
    spec.meta.model_layers = shape.layers + pick(random, 0, 4);
    std::vector<int> ids;
    for (int l = 0; l < spec.meta.model_layers; ++l) ids.push_back(l);
    while (static_cast<int>(ids.size()) > shape.layers) {
      ids.erase(ids.begin() + pick(random, 0, static_cast<int>(ids.size()) - 1));
    }
    spec.meta.layer_ids = ids;
  }
  return spec;
}

twin::Trace twin_trace(const TraceSpec& spec) {
  const TraceMeta meta = completed(spec);
  twin::Trace out;
  out.tokens = static_cast<int>(meta.tokens);
  out.prompt_tokens = static_cast<int>(meta.prompt_tokens);
  out.query_heads = meta.query_heads;
  out.kv_heads = meta.kv_heads;
  out.head_dim = meta.head_dim;
  out.v_head_dim = meta.v_head_dim;
  out.model_layers = meta.model_layers;
  out.score_scale = meta.score_scale;
  out.softcap = meta.logit_softcap;
  if (meta.rope) out.rope = {true, meta.rope->theta, meta.rope->dim, meta.rope->interleaved};
  for (std::size_t l = 0; l < spec.layers.size(); ++l) {
    const auto stored = [&](std::vector<double> values) {
      for (double& v : values) v = rounded_to(v, spec.dtype);
      return values;
    };
    twin::Layer layer;
    layer.model_layer = meta.layer_ids[l];
    layer.q = stored(spec.layers[l].q);
    layer.k = stored(spec.layers[l].k);
    layer.v = stored(spec.layers[l].v);
    layer.sink_logits = stored(spec.layers[l].sink_logits);
    if (!meta.sliding_window.empty())
      layer.sliding_window = static_cast<int>(meta.sliding_window[l]);
    out.layers.push_back(std::move(layer));
  }
  for (const Span& s : meta.spans)
    out.spans.push_back({s.name, static_cast<int>(s.begin), static_cast<int>(s.end)});
  return out;
}

Case random_case(Random& random, bool integers, const std::string& folder) {
  Case c;
  c.trace = random_trace(random, integers);
  const TraceMeta meta = completed(c.trace);
  const int prompt = pick(random, 0, 2) == 0 ? pick(random, 1, static_cast<int>(meta.tokens))
                                             : static_cast<int>(meta.prompt_tokens);
  c.plan.prompt = prompt;
  if (pick(random, 0, 3) == 0) c.plan.evict_point = pick(random, 1, prompt);
  if (coin(random)) c.plan.chunk = pick(random, 1, 12);

  twin::Spec& p = c.policy;
  static const std::vector<std::string> names = {
      "full",   "random",    "streaming_llm", "h2o",    "tova",
      "snapkv", "pyramidkv", "duoattention",  "scores", "deaths"};
  p.name = one_of(random, names);
  const bool can_chunk = p.name != "full" && p.name != "streaming_llm" &&
                         p.name != "duoattention" && p.name != "deaths";
  p.chunked = can_chunk && coin(random);
  bool share_only = false;
  std::string wrapper;
  if (p.chunked) {
    p.compete = pick(random, 0, 2);
    share_only = p.compete == 1;
    p.metric_count = coin(random);
    p.small_window = coin(random);
    p.patched = (p.name == "snapkv" || p.name == "pyramidkv") && pick(random, 0, 2) == 0 &&
                !c.trace.meta.rope == false;
    wrapper =
        fmt::format(",count={},variant={},compete={},small={}",
                    p.metric_count ? "metric" : "implementation", p.patched ? "patched" : "naive",
                    p.compete == 0   ? "auto"
                    : p.compete == 1 ? "frozen"
                                     : "all",
                    p.small_window ? "window" : "budget");
  }
  const int kv_heads = meta.kv_heads;
  c.text = p.name + "(";
  if (p.name == "full") {
    p.evict_model_window = coin(random);
    c.text += p.evict_model_window ? "model_window=evict" : "";
  } else if (p.name == "random") {
    random_budget(random, c, kv_heads, share_only);
    p.seed = static_cast<std::uint64_t>(pick(random, 0, 1000));
    c.text += fmt::format("seed={}", p.seed);
  } else if (p.name == "streaming_llm") {
    if (coin(random)) {
      random_budget(random, c, kv_heads, false);
    } else {
      p.sinks = pick(random, 0, 4);
      p.window = pick(random, 1, 12);
      c.text += fmt::format("sinks={},window={}", p.sinks, p.window);
    }
  } else if (p.name == "h2o") {
    p.group = coin(random) ? "sum" : "none";
    if (coin(random) || share_only) {
      random_budget(random, c, p.group == "none" ? meta.query_heads : kv_heads, share_only);
    } else {
      p.heavy = pick(random, 0, 8);
      p.recent = pick(random, 1, 8);
      c.text += fmt::format("heavy={},recent={},", p.heavy, p.recent);
    }
    c.text += "group=" + p.group;
  } else if (p.name == "tova") {
    random_budget(random, c, kv_heads, share_only);
  } else if (p.name == "snapkv" || p.name == "pyramidkv") {
    Case votes = c;
    random_votes(random, votes);
    p = votes.policy;
    const std::string tail = votes.text.substr(c.text.size());
    random_budget(random, c, p.group == "none" ? meta.query_heads : kv_heads, share_only);
    c.text += tail;
    if (p.name == "pyramidkv") {
      p.beta = one_of<double>(random, {1.0, 2.0, 5.0, 20.0});
      p.exact_rounding = coin(random);
      c.text += fmt::format(",beta={},rounding={}", p.beta, p.exact_rounding ? "exact" : "code");
    }
  } else if (p.name == "duoattention") {
    p.sinks = pick(random, 0, 3);
    p.window = pick(random, 1, 8);
    if (coin(random)) {
      p.sparsity = one_of<double>(random, {0.0, 0.25, 0.5, 0.75, 1.0});
      c.text += fmt::format("sparsity={},", p.sparsity);
    } else {
      const std::string path = folder + "/heads.tsv";
      std::ofstream file(path);
      for (int l = 0; l < meta.layers; ++l) {
        p.full_heads.emplace_back();
        for (int h = 0; h < kv_heads; ++h) {
          p.full_heads.back().push_back(pick(random, 0, 1));
          file << p.full_heads.back().back() << (h + 1 < kv_heads ? "\t" : "\n");
        }
      }
      c.text += fmt::format("heads=\"{}\",", path);
    }
    c.text += fmt::format("sinks={},window={}", p.sinks, p.window);
  } else {
    const int heads = coin(random) ? kv_heads : meta.query_heads;
    const auto entries =
        static_cast<std::size_t>(meta.layers * heads * static_cast<int>(meta.tokens));
    if (p.name == "scores") {
      for (std::size_t i = 0; i < entries; ++i) p.scores.push_back(pick(random, 0, 20) * 0.25);
      const std::string path =
          write_table(folder, "scores", Dtype::f32, meta, heads, encode(p.scores, Dtype::f32));
      c.text += fmt::format("file=\"{}\",", path);
      random_budget(random, c, heads, share_only);
      p.at_every_pass = coin(random) && !p.chunked;
      p.recent = pick(random, 0, 3);
      c.text +=
          fmt::format("at={},recent={}", p.at_every_pass ? "every_pass" : "prompt_end", p.recent);
    } else {
      std::vector<std::byte> bytes(entries * 4);
      for (std::size_t i = 0; i < entries; ++i) {
        const int token = static_cast<int>(i) % static_cast<int>(meta.tokens);
        p.deaths.push_back(pick(random, token + 1, static_cast<int>(meta.tokens)));
        const auto value = static_cast<std::uint32_t>(p.deaths.back());
        std::memcpy(bytes.data() + i * 4, &value, 4);
      }
      c.text += fmt::format(
          "file=\"{}\"", write_table(folder, "death", Dtype::u32, meta, heads, std::move(bytes)));
    }
  }
  if (c.text.back() == ',') c.text.pop_back();
  c.text += ")";
  if (p.chunked) c.text = "chunked(" + c.text + wrapper + ")";
  c.what = fmt::format(
      "{} | L={} ids={} N={} n={} chunk={} evict_at={} Hq={} Hk={} d={} sinks={} window={} cap={}",
      c.text, meta.layers, meta.model_layers, meta.tokens, c.plan.prompt, c.plan.chunk,
      c.plan.evict_point, meta.query_heads, meta.kv_heads, meta.head_dim,
      !c.trace.layers[0].sink_logits.empty(),
      meta.sliding_window.empty() ? 0 : meta.sliding_window[0], meta.logit_softcap);
  return c;
}

EngineOptions engine_options(const Case& c) {
  EngineOptions options;
  options.prompt = c.plan.prompt > 0 ? c.plan.prompt : 0;
  options.evict_point = c.plan.evict_point > 0 ? c.plan.evict_point : 0;
  options.chunk = c.plan.chunk;
  return options;
}

RunResult run_one(const Trace& trace, const std::string& policy, const EngineOptions& options,
                  const Accounting& accounting) {
  const Policy bound = make_policy(policy, geometry_of(trace, options));
  std::vector<Replay> replays = replay(trace, {bound}, options);
  RunResult out;
  out.spec = bound.spec;
  out.klass = bound.klass;
  out.notes = bound.notes;
  out.ledger = std::move(replays[0].ledger);
  out.fidelity = std::move(replays[0].fidelity);
  out.undecided = replays[0].undecided;
  out.metrics = compute_metrics(out.ledger, accounting);
  return out;
}

}  // namespace kvspan::test
