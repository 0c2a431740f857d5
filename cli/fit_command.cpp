// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outputs.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/policies/shared/fit_models.h"
#include "sim/trace/trace.h"

namespace kvspan::cli {
namespace {

struct FitSettings {
  std::string scorer;
  std::vector<std::string> train, test;
  std::string out, json, method;
  double rate = 25;
  policies::FitOptions options;
  bool window_given = false;
  bool quiet = false;
};

nlohmann::json to_json(const policies::FitOutcome& outcome) {
  nlohmann::json out;
  out["scorer"] = outcome.set.scorer;
  for (const auto& [key, value] : outcome.set.about) out[key] = value;
  out["layers"] = nlohmann::json::array();
  for (std::size_t l = 0; l < outcome.layers.size(); ++l) {
    const auto& layer = outcome.layers[l];
    out["layers"].push_back({{"layer", outcome.set.layer_ids[l]},
                             {"train_rows", layer.train_rows},
                             {"test_rows", layer.test_rows},
                             {"train_score", layer.train},
                             {"test_score", layer.test}});
  }
  return out;
}

void print_outcome(const policies::FittedScorer& scorer, const std::string& method,
                   const policies::FitOutcome& outcome) {
  const policies::FitOutcome::Layer total = outcome.total();
  const auto& about = outcome.set.about;
  fmt::print("{} {}: not the authors' weights\n", scorer.name, method);
  for (const char* key : {"features", "label", "regulariser", "train", "test"})
    fmt::print("  {:<12}  {}\n", key, about.at(key));
  fmt::print("\n");
  std::vector<std::vector<std::string>> rows = {{"layer", "heads", "train rows", "test rows",
                                                 "train " + outcome.measure,
                                                 "test " + outcome.measure}};
  for (std::size_t l = 0; l < outcome.layers.size(); ++l) {
    const auto& layer = outcome.layers[l];
    rows.push_back({std::to_string(outcome.set.layer_ids[l]),
                    std::to_string(outcome.set.regressors[l].size()),
                    std::to_string(layer.train_rows), std::to_string(layer.test_rows),
                    fmt::format("{:.3f}", layer.train), fmt::format("{:.3f}", layer.test)});
  }
  rows.push_back({"all", "", std::to_string(total.train_rows), std::to_string(total.test_rows),
                  fmt::format("{:.3f}", total.train), fmt::format("{:.3f}", total.test)});
  fmt::print("{}", align(rows));
}

void fit(FitSettings s) {
  const policies::FittedScorer& scorer = policies::fitted_scorer(s.scorer);
  s.options.method = s.method.empty() ? scorer.methods.front() : s.method;
  s.options.rate = s.rate / 100;
  if (!s.window_given) s.options.window = scorer.name == "locret" ? 100 : 256;
  std::vector<Trace> train;
  std::vector<Trace> test;
  for (const std::string& path : s.train) train.push_back(Trace::open(path));
  for (const std::string& path : s.test) test.push_back(Trace::open(path));
  std::vector<std::filesystem::path> inputs;
  for (const auto* traces : {&train, &test}) {
    for (const Trace& trace : *traces) {
      const auto& files = trace.tensors().files();
      inputs.insert(inputs.end(), files.begin(), files.end());
    }
  }
  Outputs outputs({{"--out", s.out, false}, {"--json", s.json}}, inputs);
  (void)interrupted();
  const policies::FitOutcome outcome = [&] {
    Progress progress("fitting", s.quiet);
    return policies::fit_models(
        scorer, train, test, s.options, [&](double done) { progress(done); },
        [] { return interrupted(); });
  }();
  outputs.write("--out", [&](const auto& path) { outcome.set.save(path); });
  outputs.write_text("--json", [&] { return to_json(outcome).dump(1) + "\n"; });
  print_outcome(scorer, s.options.method, outcome);
  outputs.finish(s.quiet);
}

}  // namespace

void add_fit(CLI::App& app) {
  auto s = std::make_shared<FitSettings>();
  CLI::App* sub = app.add_subcommand(
      "fit", "Fit a stand-in for a policy's trained weights on traces, and say how good it is");
  sub->add_option("scorer", s->scorer,
                  "Policy: foresightkv, write_gate, judgeq, locret, kvzap or fast_kvzip")
      ->required();
  sub->add_option("--train", s->train, "Traces to fit on; may be repeated")
      ->required()
      ->type_name("TRACE");
  sub->add_option("--test", s->test,
                  "Traces to test on; none: second half of every prompt, the first half trains")
      ->type_name("TRACE");
  sub->add_option("--out", s->out, "Weights, safetensors")
      ->transform(output_file())
      ->required()
      ->type_name("FILE");
  sub->add_option("--method", s->method,
                  "Model: ridge, logit, mlp or centres; default: the policy's first")
      ->type_name("METHOD");
  sub->add_option("--lambda", s->options.lambda, "Weight of the ridge, on standardised features")
      ->check(at_least(0))
      ->type_name("X");
  sub->add_option("--seed", s->options.seed, "Seed of networks and centres")
      ->check(a_seed())
      ->type_name("S");
  sub->add_option("--steps", s->options.steps, "Steps of a network's training")
      ->check(CLI::Range(1, 1000000))
      ->type_name("K");
  sub->add_option("--budget", s->options.budget,
                  "foresightkv: entries that golden evictions keep; 0: 20 % of the prompt")
      ->check(at_least(0))
      ->type_name("B");
  sub->add_option("--interval", s->options.interval, "foresightkv: rows between decisions")
      ->check(at_least(1))
      ->type_name("I");
  auto* window = sub->add_option("--window", s->options.window,
                                 "write_gate: local window (256); locret: local tokens (100)")
                     ->check(at_least(1))
                     ->type_name("W");
  sub->add_option("--rate", s->rate, "write_gate: percent of the entries with label 1")
      ->check(CLI::Range(0.0, 100.0))
      ->type_name("PERCENT");
  sub->add_option("--queries", s->options.queries, "judgeq: centres for each query head")
      ->check(CLI::Range(1, 4096))
      ->type_name("M");
  sub->add_option("--json", s->json, "The table as JSON")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_flag("--quiet", s->quiet, "No progress on stderr");
  sub->footer(R"help(
Examples:
  kvspan fit foresightkv --train TRACE --method mlp --out foresight.safetensors
  kvspan fit write_gate --train A --train B --test C --rate 25 --out gates.safetensors
  kvspan run C --policy "write_gate(gate=logit,weights=gates.safetensors)"
  kvspan fit judgeq --train TRACE --queries 32 --out queries.safetensors
  kvspan run C --policy "judgeq(weights=queries.safetensors)")help");
  sub->callback([s, window] {
    s->window_given = window->count() > 0;
    fit(*s);
  });
}

}  // namespace kvspan::cli
