// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outputs.h"
#include "cli/validators.h"
#include "cli/viewer_program.h"
#include "sim/base/error.h"
#include "sim/policy/spec.h"
#include "sim/report/json.h"
#include "sim/run/request.h"
#include "sim/sweep/report_forms.h"
#include "sim/sweep/search.h"
#include "tracegen/eval/eval_files.h"
#include "tracegen/eval/eval_forms.h"

namespace kvspan::cli {
namespace {

constexpr int kChanged = 7;

struct ReportSettings {
  std::vector<std::string> sources;  // one folder, or files
  std::string against, least = "90%", search, sample;
  int threads = 0;
  std::string json, csv, svg, png, markdown;
  sweep::ReportOptions options;
  double tolerance = 1e-6;
  bool quiet = false;
};

// "90%" or "0.9", of an option.
double parse_share(const std::string& text, const char* option) {
  double value = 0;
  const bool percent = text.ends_with('%');
  const std::string number = percent ? text.substr(0, text.size() - 1) : text;
  if (!CLI::detail::lexical_cast(number, value)) value = 0;
  if (percent) value /= 100;
  const bool is_share = value > 0 && value <= 1;
  if (!is_share)
    throw ConfigError(fmt::format("{}: found '{}', expected a share such as 90%", option, text));
  return value;
}

// A schema lies beside a table that is a file.
std::string schema_path(const ReportSettings& s) {
  return s.csv.empty() || s.csv.starts_with("/dev/") ? "" : s.csv + ".schema.json";
}

Outputs outputs_of(const ReportSettings& s, const std::vector<std::filesystem::path>& inputs) {
  return {{{"--out", s.json},
           {"--csv", s.csv},
           {"--csv schema", schema_path(s)},
           {"--svg", s.svg},
           {"--png", s.png, false},
           {"--markdown", s.markdown}},
          inputs};
}

// The program that makes --png; empty: none is wanted.
std::string viewer_for(const ReportSettings& s) {
  if (s.png.empty()) return {};
  if (!s.png.ends_with(".png"))
    throw ConfigError(fmt::format("--png: found '{}', expected a name that ends in .png", s.png));
  return find_viewer("--png");
}

void compare(const ReportSettings& s, const std::string& folder) {
  constexpr std::size_t kShown = 30;
  const sweep::SweepFolder before = sweep::open_sweep(s.against);
  const sweep::SweepFolder after = sweep::open_sweep(folder);
  const sweep::Comparison comparison = sweep::compare(before, after, s.tolerance);
  fmt::print("{}", to_markdown(comparison, kShown));
  if (comparison.changed())
    throw Error(fmt::format("'{}' differs from '{}'", folder, s.against), kChanged);
}

// Of files of evaluations.
void report_evaluations(const ReportSettings& s) {
  if (!s.against.empty() || !s.search.empty()) {
    throw ConfigError(fmt::format("{} is of sweeps; '{}' is a file, expected a sweep's folder",
                                  s.against.empty() ? "--search" : "--against", s.sources.front()));
  }
  const std::string viewer = viewer_for(s);
  if (!viewer.empty() && s.sources.size() > 1)
    throw ConfigError(fmt::format("--png shows one file; found {}", s.sources.size()));
  const std::vector<std::filesystem::path> files(s.sources.begin(), s.sources.end());
  Outputs outputs = outputs_of(s, files);
  const tracegen::EvalResult result = tracegen::read_evaluations(
      files, {parse_share(s.least, "--at"), s.options.draws, s.options.seed});
  outputs.write_text("--out",
                     [&] { return file_text(tracegen::critical_json(result, s.sources)); });
  outputs.write_text("--csv", [&] { return tracegen::critical_csv(result); });
  outputs.write_text("--csv schema", [] { return tracegen::critical_csv_schema().dump(1) + "\n"; });
  outputs.write_text("--svg", [&] { return tracegen::critical_svg(result); });
  outputs.write("--png", [&](const std::filesystem::path& path) {
    run_viewer(viewer, {"--export", path.string(), "--view", "scores", s.sources.front()});
  });
  outputs.write_text("--markdown", [&] { return tracegen::critical_markdown(result); });
  if (s.markdown.empty()) fmt::print("{}", tracegen::critical_markdown(result));
  outputs.finish(s.quiet);
}

void report(const ReportSettings& s) {
  const std::string& source = s.sources.front();
  const auto is_file = [](const std::string& path) {
    return std::filesystem::is_regular_file(path);
  };
  if (std::ranges::all_of(s.sources, is_file)) return report_evaluations(s);
  if (s.sources.size() > 1) {
    throw ConfigError(
        fmt::format("'{}' is no file; expected one folder of a sweep, or files of "
                    "eval --out",
                    *std::ranges::find_if_not(s.sources, is_file)));
  }
  if (!s.against.empty()) return compare(s, source);
  const std::string viewer = viewer_for(s);
  Outputs outputs = outputs_of(s, {});
  sweep::ReportOptions options = s.options;
  options.least = parse_share(s.least, "--at");
  sweep::SearchOptions search;
  if (!s.search.empty()) search.least = parse_share(s.search, "--search");
  if (s.search.empty() && !s.sample.empty())
    throw ConfigError(
        "--sample: found no --search, whose replays measure on the sample; of a "
        "sweep's cells it belongs to kvspan sweep");
  EngineOptions sampled;
  apply_sample(s.sample, sampled);
  search.sample = s.sample;
  const sweep::SweepFolder folder = sweep::open_sweep(source);
  const sweep::SweepReport made = make_report(folder, options);
  std::vector<sweep::CriticalBudget> found;
  if (!s.search.empty()) {
    Progress progress("searching", s.quiet);
    search.threads = s.threads;
    search.progress = [&](double done) { progress(done); };
    search.cancelled = [] { return interrupted(); };
    found = search_budgets(folder, made, search);
  }
  const auto markdown = [&] {
    return to_markdown(made, folder.plan) +
           (s.search.empty() ? "" : "\n" + to_markdown(found, made, folder.plan, search.least));
  };
  outputs.write_text("--out", [&] {
    nlohmann::json all = to_json(made, folder.plan);
    if (!s.search.empty())
      all["search"] = {{"at", search.least}, {"budgets", to_json(found, made, folder.plan)}};
    return file_text(all);
  });
  outputs.write_text("--csv", [&] { return to_csv(made, folder.plan); });
  outputs.write_text("--csv schema", [] { return sweep::critical_schema().dump(1) + "\n"; });
  outputs.write_text("--svg", [&] { return to_svg(made, folder.plan); });
  outputs.write("--png", [&](const std::filesystem::path& path) {
    run_viewer(viewer, {"--export", path.string(), "--view", "curves", "--threshold",
                        fmt::format("{}", 100 * options.least), source});
  });
  outputs.write_text("--markdown", markdown);
  if (s.markdown.empty()) fmt::print("{}", markdown());
  outputs.finish(s.quiet);
}

}  // namespace

void add_report(CLI::App& app) {
  auto s = std::make_shared<ReportSettings>();
  CLI::App* sub = app.add_subcommand(
      "report",
      "Critical footprints, Pareto fronts and rankings of a sweep or evaluations; two sweeps "
      "compared");
  sub->add_option("source", s->sources, "Folder of a sweep, or files that eval --out wrote")
      ->required();
  sub->add_option("--at", s->least,
                  "Share of attention, or of the full cache's score, that has to be left")
      ->type_name("F");
  sub->add_option("--out", s->json, "Everything, as JSON")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--csv", s->csv, "A line a trace, setting and method; its schema beside it")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--svg", s->svg, "Picture: footprint against retained attention, or score")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--png", s->png,
                  "Picture of the viewer's, by kvspan-viewer where that was built: of the first "
                  "setting, means over the traces; of the first task, at the evaluation's own F")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--markdown", s->markdown, "The tables into a file, not to standard output")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--search", s->search,
                  "Also the smallest budget that keeps this share, by bisection on the traces")
      ->type_name("F");
  sub->add_option("--sample", s->sample,
                  "Let --search measure in K random rows of each phase, KV heads or layers only")
      ->type_name("rows=K|heads=K|layers=K");
  sub->add_option("--threads", s->threads, "Threads of the search; 0: all cores")
      ->check(CLI::Range(0, 4096))
      ->type_name("T");
  sub->add_option("--draws", s->options.draws, "Bootstrap samples of the traces, or of samples")
      ->check(CLI::Range(1, 1'000'000))
      ->type_name("N");
  sub->add_option("--seed", s->options.seed, "Seed of the bootstrap")
      ->check(a_seed())
      ->type_name("S");
  sub->add_option("--against", s->against, "Say what changed since another sweep")
      ->type_name("DIR");
  sub->add_option("--tolerance", s->tolerance, "Relative change that --against lets pass")
      ->check(at_least(0))
      ->type_name("X");
  sub->add_flag("--quiet", s->quiet, "Nothing about files on stderr");
  sub->footer(R"help(
Examples:
  kvspan report results
  kvspan report results --at 95% --csv critical.csv --svg curves.svg --out report.json
  kvspan report results --png curves.png
  kvspan report results --search 90%       the critical budgets themselves
  kvspan report new --against old          exit code 7 if anything changed
  kvspan report eval.json --svg scores.svg  of the model's own answers
  kvspan report seed0.json seed1.json other_model.json   of several evaluations together

The cells themselves are in results/cells.csv, a line each, with their columns in cells.schema.json.)help");
  sub->callback([s] { report(*s); });
}

}  // namespace kvspan::cli
