// SPDX-License-Identifier: Apache-2.0
// Write-Gated KV: a small network looks at the key of a new token alone and decides, at birth,
// whether the entry will be written to the long-term cache when it leaves the local window. Nothing
// is ranked: admission has a rate, not a budget. While the prompt is read, a row reads its window
// and the admitted keys before it (masks_prefill).
// Source: arXiv 2512.17452; code EMCLab-Sinica/WG-KV (modeling_layers.py, configuration_*.py).
//   g = sigmoid(w2 . gelu(W1 [rms(k before rotary); rms(k)] + b1) + b2) > tau, tau 0.1, window 256.
//   The authors train it end to end on the error of the last hidden state; here
// gate=logit, mlp: stand-ins: the same features, fitted on the first half of the prompt (or loaded)
//   to tell the entries that a row behind their window attends to, by at least the quantile that
//   admits `rate`; the threshold then admits `rate` of the prompt's entries outside the window
//   (that quantile looks at keys of the whole prompt, not at its attention). tau=X sets it instead.
// gate=oracle: the largest probability that any row behind the window gives the entry, over the
//   query heads of the group. gate=oracle_out: the squared change of those rows' outputs if this
//   entry alone were missing, sum (a / (1 - a))^2 |v - o|^2, divided by the paper's 1 - min(1, w /
//   (N - i)). Bounds.
// gate=adaea: the repository's training-free baseline AdaEA++: expected attention of a Gaussian
//   query per query head (mean and covariance before rotary of the first half of the prompt,
//   rotated to the middle of the prompt), one quantile for all heads, any head of the group admits;
//   4 sinks. The position and the common quantile are ours. call_sinks=true is a slip of the code:
//   the sinks are the first 4 positions of every call, so every generated token is admitted.
// gate=random: Bernoulli(rate). gate=file: `gates` [layers, heads, tokens] of `weights`, above tau.
// cap: whenever the heads of all layers (cap_over=model, as published) or of one (cap_over=layer)
//   hold more than that many entries beyond the window on average, each head drops its lowest
//   tenth: softmax over those entries of the last 256 queries, maximum over the group, mean,
//   max-pooled over 5.
// The oldest local entry is promoted or written over before a row attends: it reads `window` local
// ones with itself. mask=kernel: rows of the prompt share the local range of the first row of their
// block of 64, which gives the others up to 63 keys more.
// +quest: pages are 16 admitted entries of a head, chosen as the code does (quest.cpp); there is no
// cap in it then.
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/write_gate_rule.h"

namespace kvspan::policies {
namespace {

using Gates = WriteGate;

}  // namespace

// NOLINTNEXTLINE(readability-function-size): the parameters of seven gates.
PolicyEntry write_gate() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "write_gate";
  entry.kind = MethodKind::admission;
  entry.summary = "a gate on the key decides at birth what is written once it leaves the window";
  entry.source = "arXiv 2512.17452; code EMCLab-Sinica/WG-KV";
  entry.evidence = "code read; weights fitted here";
  entry.differs =
      "the authors train the gate end to end; oracles, fitted gates and a random control "
      "stand in for it; their prefill kernel lets a "
      "row read up to 63 keys more (mask=kernel), here each row's window is its own, as in their "
      "training; their AdaEA++ admits the first 4 positions of every call, so every generated "
      "token (a slip: call_sinks=true); +quest is theirs: pages of admitted "
      "entries, one choice per KV head, in every layer";
  entry.needs =
      "q and k (oracle_out: v, too; oracle: probabilities of all rows; random, file: "
      "nothing); rope_* tell k before rotary from k";
  entry.parameters = {
      {.name = "gate",
       .kind = Kind::word,
       .fallback = "logit",
       .help = "oracle and oracle_out: bounds; random: control",
       .choices = {"logit", "mlp", "oracle", "oracle_out", "adaea", "random", "file"}},
      weights_parameter(),
      {.name = "tau",
       .kind = Kind::real,
       .fallback = "auto",
       .help = "threshold of the gate; auto: by rate (file: 0.1)",
       .range = {0, 1}},
      {.name = "rate",
       .kind = Kind::amount,
       .fallback = "25%",
       .unit = "% of the prompt's entries outside the window",
       .help = "how many are admitted"},
      {.name = "window",
       .fallback = "256",
       .unit = "tokens",
       .help = "newest kept whatever their gate, the row itself included",
       .range = {1, 1e9}},
      {.name = "masks_prefill",
       .kind = Kind::flag,
       .fallback = "true",
       .help = "prompt rows read their window and admitted keys only"},
      {.name = "mask",
       .kind = Kind::word,
       .fallback = "row",
       .help = "whose window a prompt row reads: its own, or that of its block's first row",
       .choices = {"row", "kernel"}},
      {.name = "call_sinks",
       .kind = Kind::flag,
       .fallback = "false",
       .help = "adaea: the first 4 positions of every call are admitted, as in the code"},
      {.name = "cap",
       .fallback = "auto",
       .unit = "entries",
       .help = "beyond the window, mean over heads; auto: none",
       .range = {.lowest = 1}},
      {.name = "cap_over",
       .kind = Kind::word,
       .fallback = "layer",
       .help = "whose heads the cap is the mean of",
       .choices = {"layer", "model"}},
      seed_parameter("of random gates and fits"),
      {.name = "hidden",
       .kind = Kind::real,
       .fallback = "4",
       .unit = "x head_dim",
       .help = "width of the published gate, for its bytes (Llama 4, Qwen3 1.5)",
       .range = {0.01, 1024}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::string gate = arguments.text("gate");
    const bool learned = gate == "logit" || gate == "mlp";
    const TokenCount window = arguments.count("window");
    Gates::Settings s;
    s.gate = gate;
    s.call_sinks = arguments.flag("call_sinks");
    if (s.call_sinks && gate != "adaea")
      throw ConfigError(fmt::format("write_gate(gate={}): call_sinks=true is of gate=adaea", gate));
    s.geometry = geometry;
    s.fit.method = gate;
    s.fit.window = window;
    s.fit.seed = seed_of(arguments, geometry);
    if (arguments.given("tau") && arguments.given("rate"))
      throw ConfigError("write_gate: give either tau or rate");
    if (gate == "file" && !arguments.given("rate") && !arguments.given("tau"))
      arguments.set("tau", "0.1");
    if (arguments.has("tau")) {
      if (gate == "adaea" || gate == "random" || gate == "oracle_out") {
        throw ConfigError(
            fmt::format("write_gate(gate={}): it has no tau; give rate, such as rate=25%", gate));
      }
      const double tau = arguments.real("tau");
      // Gates are at least 1e-3; networks give log odds.
      s.threshold = tau;
      if (learned) {
        s.threshold = tau < 1e-3 ? -std::numeric_limits<double>::infinity()
                                 : std::log(tau) - std::log1p(-tau);
      }
      arguments.set("rate", "auto");
      s.rate = s.fit.rate = 0.25;  // of the labels
    } else {
      const Amount amount = arguments.amount("rate");
      if (amount.kind != Amount::Kind::share || amount.one_minus_share() < 0) {
        throw ConfigError(
            fmt::format("write_gate(rate): found {}, expected a share from 0% to 100%, such as "
                        "rate=25%",
                        amount.text));
      }
      s.rate = s.fit.rate = 1 - amount.one_minus_share();
      if (gate == "random") s.threshold = amount.one_minus_share();
    }
    if (gate == "file") {
      if (arguments.is("weights", "self")) {
        throw ConfigError(
            "write_gate(gate=file): found weights=self, expected a safetensors file with `gates` "
            "[layers, heads, tokens]");
      }
      s.table = std::make_shared<LayerTable>(
          read_layer_table(arguments.text("weights"), {"gates", "scores"}, geometry, "write_gate"));
      if (s.table->heads != geometry.kv_heads)
        throw ConfigError("write_gate(gate=file): gates are per KV head, found one per query head");
    } else if (learned) {
      s.weights = load_weights(arguments, gate);
    } else if (arguments.given("weights")) {
      throw ConfigError(
          fmt::format("write_gate(gate={}) has no weights: leave out weights=", gate));
    }

    Needs needs;
    needs.k = learned || gate == "adaea";
    needs.q = gate == "adaea";
    needs.v = gate == "oracle_out";
    Recipe recipe;
    const auto gates = std::make_shared<Gates>(s);
    Admission admission;
    admission.make = [gates, needs](const LayerShape&) {
      return std::make_unique<Gate>(gates, needs);
    };
    admission.window = window - 1;  // beside the next row
    admission.own_pages = true;
    recipe.admission = own(admission);
    if (arguments.flag("masks_prefill")) {
      const RowIndex block = arguments.is("mask", "kernel") ? 64 : 1;
      recipe.prefill_reads = own(SelectorFactory([gates, window, block](const LayerShape&) {
        return std::make_unique<WindowAndAdmitted>(gates, window, block);
      }));
    }
    if (arguments.has("cap")) {
      const bool model = arguments.is("cap_over", "model");
      const auto cap =
          std::make_shared<Cap>(arguments.count("cap"), window, model ? gates : nullptr, geometry);
      Rule rule;
      rule.schedule = Schedule::every_pass();
      rule.scorer = [cap](const LayerShape&) { return std::make_unique<CapScorer>(cap); };
      rule.budget = std::make_shared<CapBudget>(cap);
      rule.sizing = [n = geometry.evict_point](const Pass&) { return Sizing{kAll, n}; };
      rule.protect = [window](const Pass&, TokenCount) { return Protect{0, window}; };
      recipe.more_rules.push_back(rule);
      if (!model)
        recipe.notes.emplace_back(
            "the cap is the mean over the heads of a layer, not of the model");
    }
    recipe.closed_form = false;
    if (gate == "oracle" || gate == "oracle_out") {
      recipe.bound = true;
      recipe.notes.emplace_back("bound: reads the future");
    }
    if (learned) recipe.notes.push_back(fitted_note(arguments, gate, geometry));
    if (gate == "adaea") {
      recipe.notes.emplace_back(
          "stand-in: mean and covariance of the queries of the first half of this prompt");
    }
    if (!arguments.has("tau")) {
      recipe.knob = Knob{"rate", 1, 100, !learned,
                         [](TokenCount percent) { return fmt::format("{}%", percent); }};
    }
    // Block table of 16-entry blocks, 4 bytes a block; one byte a window slot for its decision.
    const std::int64_t heads = std::int64_t{geometry.layers()} * geometry.kv_heads;
    const std::int64_t d = geometry.k_dim;
    recipe.charge.once = 4 * heads * ((geometry.tokens + 15) / 16) + heads * window;
    if (gate == "adaea") {  // mean, covariance and threshold of every query head
      recipe.charge.once +=
          geometry.layers() * geometry.query_heads * (d * d + d + 1) * geometry.kv_bytes;
    } else if (gate != "random") {
      // [2d, hidden] and its bias, [hidden] and its bias, for each KV head; two norms for the
      // layer.
      const auto hidden = std::llrint(arguments.real("hidden") * static_cast<double>(d));
      recipe.charge.once += geometry.kv_bytes *
                            (heads * (2 * d * hidden + 2 * hidden + 1) + geometry.layers() * 2 * d);
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
