// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outputs.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/trace/safetensors.h"
#include "tracegen/synth/synth.h"
#include "tracegen/synth/synth_fit.h"

namespace kvspan::cli {
namespace {

using tracegen::SynthOptions;

struct SynthSettings {
  SynthOptions options{.topics = 8};
  std::string profile = "llama-like", out;
  bool no_values = false, show = false, quiet = false;
};

void synth(SynthSettings s) {
  const tracegen::SynthProfile profile = tracegen::find_profile(s.profile);
  if (s.show) {
    fmt::print("{}\n", to_json(profile).dump(1));
    return;
  }
  if (s.out.empty()) throw ConfigError("synth: --out FILE is required");
  const Outputs outputs({{"--out", s.out, false}}, {s.profile});
  s.options.values = !s.no_values;
  const SynthOptions options = tracegen::checked(s.options);
  const tracegen::SynthPlan plan = tracegen::draw_plan(options);
  (void)interrupted();
  {
    Progress progress("synth", s.quiet);
    tracegen::write_synth(options, plan, profile, s.out, [&](double done) {
      if (interrupted()) throw Interrupted();
      progress(done);
    });
  }
  if (s.quiet) return;
  fmt::print(stderr, "kvspan: wrote {}, {}: {} tokens, synthetic, profile {}, seed {}\n", s.out,
             human_bytes(static_cast<std::int64_t>(std::filesystem::file_size(s.out))),
             options.tokens, profile.name, options.seed);
}

struct FitTraceSettings {
  std::string trace, out, json, synthetic;
  std::uint64_t seed = 1;
  bool quiet = false;
};

void synth_fit(const FitTraceSettings& s) {
  const Trace trace = Trace::open(s.trace);
  Outputs outputs({{"--out", s.out}, {"--trace-out", s.synthetic, false}, {"--json", s.json}},
                  trace.tensors().files());
  (void)interrupted();
  const std::string stem = std::filesystem::path(s.trace).stem().string();
  const tracegen::SynthFit fit = [&] {
    Progress progress("fitting", s.quiet);
    return tracegen::fit_synth(trace, stem, s.seed, [&](double done) {
      if (interrupted()) throw Interrupted();
      progress(done);
    });
  }();
  outputs.write("--trace-out", [&](const auto& path) {
    tracegen::write_synth(fit.options, fit.plan, fit.profile, path);
  });
  outputs.write_text("--json", [&] { return to_json(fit).dump(1) + "\n"; });
  outputs.write_text("--out", [&] { return to_json(fit.profile).dump(1) + "\n"; });

  fmt::print("{}: real / synthetic, and the mean over heads of their absolute difference\n\n",
             s.trace);
  std::vector<std::vector<std::string>> rows = {{""}};
  std::vector<std::vector<tracegen::FitLine>> layers;
  for (std::size_t l = 0; l < fit.real.layers.size(); ++l) {
    layers.push_back(fit_lines(fit, l));
    rows[0].push_back(fmt::format("layer {}", fit.real.layers[l].layer));
  }
  for (std::size_t i = 0; i < layers[0].size(); ++i) {
    rows.push_back({(layers[0][i].fitted ? "* " : "  ") + layers[0][i].what});
    for (const auto& lines : layers) {
      const tracegen::FitLine& line = lines[i];
      rows.back().push_back(
          line.real == 0 && line.synthetic == 0
              ? fmt::format("{:.2f}", line.difference)
              : fmt::format("{:.2f} / {:.2f}  {:.2f}", line.real, line.synthetic, line.difference));
    }
  }
  fmt::print(
      "{}\n* fitted; the others show what is not. Prompt rows where nothing else is said.\n"
      "Not followed at all: which keys are important (the text), values, how heads of a group "
      "or layers\ndepend on each other, changes over the sequence beyond needles and "
      "questions.\n",
      align(rows));
  outputs.finish(s.quiet);
}

}  // namespace

void add_synth(CLI::App& app) {
  auto s = std::make_shared<SynthSettings>();
  CLI::App* sub = app.add_subcommand(
      "synth", "Make a synthetic trace with named structure; fit one to a real trace");
  std::string names;
  for (const tracegen::SynthProfile& profile : tracegen::built_in_profiles())
    names += fmt::format("\n  {:<13} {}", profile.name, profile.description);
  sub->add_option("--tokens", s->options.tokens, "Tokens, prompt and decode rows together")
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--prompt", s->options.prompt_tokens, "Where the prompt ends; default: 15/16 N")
      ->type_name("n");
  sub->add_option("--layers", s->options.layers, "Layers")->capture_default_str()->type_name("L");
  sub->add_option("--query-heads", s->options.query_heads, "Query heads")
      ->capture_default_str()
      ->type_name("H");
  sub->add_option("--kv-heads", s->options.kv_heads, "KV heads")
      ->capture_default_str()
      ->type_name("G");
  sub->add_option("--head-dim", s->options.head_dim, "Channels of a head")
      ->capture_default_str()
      ->type_name("D");
  sub->add_option("--profile", s->profile, "Built-in profile, or FILE.json")
      ->transform(input_file())
      ->capture_default_str()
      ->type_name("NAME");
  sub->add_option("--seed", s->options.seed, "Seed: the same bits on every machine")
      ->check(a_seed())
      ->capture_default_str()
      ->type_name("S");
  sub->add_option("--needles", s->options.needles,
                  "Needles in the prompt, asked for at its end and by the decode rows")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str()
      ->type_name("K");
  sub->add_option("--turns", s->options.turns, "Turns of a conversation")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str()
      ->type_name("K");
  sub->add_option("--topics", s->options.topics, "Segments with a topic of their own")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str()
      ->type_name("K");
  sub->add_flag("--no-values", s->no_values, "Leave out v: smaller, no output error");
  sub->add_option("--out", s->out, "Where to write it")
      ->transform(output_file())
      ->type_name("TRACE");
  sub->add_flag("--show-profile", s->show, "Print the profile as JSON, and stop");
  sub->add_flag("--quiet", s->quiet, "No progress on stderr");
  sub->footer("\nProfiles:" + names + R"help(

Examples:
  kvspan synth --tokens 4096 --needles 3 --turns 4 --out synthetic.safetensors
  kvspan run synthetic.safetensors --policy all --budget 20%
  kvspan synth --profile streaming --show-profile > mine.json
  kvspan synth --profile mine.json --tokens 1048576 --layers 1 --no-values --out long.safetensors
  kvspan synth fit traces/smollm2-passkey.safetensors --out fitted.json)help");

  auto f = std::make_shared<FitTraceSettings>();
  CLI::App* fit = sub->add_subcommand(
      "fit", "Follow a real trace's statistics, head by head; report real against synthetic");
  fit->add_option("trace", f->trace, "Real trace with q and k")->required();
  fit->add_option("--out", f->out, "The profile, for kvspan synth --profile")
      ->transform(output_file())
      ->type_name("FILE");
  fit->add_option("--trace-out", f->synthetic, "The synthetic trace of the same shape and spans")
      ->transform(output_file())
      ->type_name("TRACE");
  fit->add_option("--json", f->json, "Profile, both statistics and differences, as JSON")
      ->transform(output_file())
      ->type_name("FILE");
  fit->add_option("--seed", f->seed, "Seed")
      ->check(a_seed())
      ->capture_default_str()
      ->type_name("S");
  fit->add_flag("--quiet", f->quiet, "No progress on stderr");
  fit->callback([f] { synth_fit(*f); });

  sub->callback([s, sub] {
    if (sub->get_subcommands().empty()) synth(*s);
  });
}

}  // namespace kvspan::cli
