// SPDX-License-Identifier: Apache-2.0
#include <QApplication>
#include <QFile>
#include <QStandardPaths>
#include <algorithm>
#include <cstdio>
#include <fstream>

#include <nlohmann/json.hpp>

#include "sim/report/json.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/report/timeline_writer.h"
#include "sim/run/run.h"
#include "tests/gui/gui_test.h"
#include "tests/support/chosen_target.h"

namespace kvspan::gui::test {

std::vector<TestClass>& test_classes() {
  static std::vector<TestClass> classes;
  return classes;
}

QDir work_folder() {
  static const QTemporaryDir folder;
  return {folder.path()};
}

QDir picture_folder() {
  QDir().mkpath(KVSPAN_PICTURES_DIR);
  return {KVSPAN_PICTURES_DIR};
}

nlohmann::json timelines_of(const QString& path) {
  std::ifstream in(path.toStdString());
  const nlohmann::json result = nlohmann::json::parse(in);
  nlohmann::json timelines;
  for (const nlohmann::json& run : result["runs"]) timelines.push_back(run["timeline"]);
  return timelines;
}

namespace {

// The result of runs on a bundled trace, with timeline and lifetimes.
QString result_of(const QString& name, const std::string& trace_name,
                  const std::vector<RecipeSpec>& specs, EngineOptions options) {
  RunReport report;
  report.trace_path = KVSPAN_TRACES_DIR "/" + trace_name + ".safetensors";
  const Trace trace = Trace::open(report.trace_path);
  options.keep_scores = true;
  options.keep_reads = std::int64_t{8} << 20U;
  options.fidelity_rows = 64;
  report.runs = run_policies(trace, specs, options, report.accounting);
  report.trace = trace.meta();
  if (options.prompt > 0) report.trace.prompt_tokens = options.prompt;
  report.chunk = options.chunk;
  report.trace_sha256 = trace.sha256();
  report.timeline_path = work_folder().filePath(name + ".timeline.safetensors").toStdString();
  report.lifetimes_path = work_folder().filePath(name + ".lifetimes.safetensors").toStdString();
  write_timeline(report, report.timeline_path);
  write_lifetimes(report, report.lifetimes_path);
  const QString json = work_folder().filePath(name + ".json");
  write_file_atomically(json.toStdString(), to_json(report).dump(1));
  return json;
}

}  // namespace

QString bundled_result() {
  static const QString path = [] {
    EngineOptions options;
    options.prompt = 512;
    options.chunk = 128;
    return result_of(
        "bundled", "smollm2-passkey",
        expand_policies({"full", "streaming_llm", "h2o", "chunked(snapkv)", "quest", "kivi"},
                        {"20%"}),
        options);
  }();
  return path;
}

QString small_result() {
  static const QString path = result_of(
      "tiny", "tiny-picture", expand_policies({"full", "streaming_llm", "h2o"}, {"50%"}), {});
  return path;
}

QString bundled_json_alone() {
  const QString path = work_folder().filePath("alone.json");
  QFile file(bundled_result());
  if (!file.open(QIODevice::ReadOnly)) return {};
  auto json = nlohmann::json::parse(file.readAll().toStdString());
  json["files"] = {{"timeline", nullptr}, {"lifetimes", nullptr}};
  write_file_atomically(path.toStdString(), json.dump());
  return path;
}

QString result_of_deaths(const QString& name, const std::vector<std::uint32_t>& deaths) {
  RunReport report;
  const auto tokens = static_cast<RowIndex>(deaths.size());
  report.trace.tokens = report.trace.prompt_tokens = tokens;
  report.trace.layer_ids = {0};
  report.trace.model_layers = report.trace.layers = 1;
  RunResult& run = report.runs.emplace_back();
  run.spec = run.label = "made";
  run.ledger.layers = run.ledger.heads = 1;
  run.ledger.plan.tokens = tokens;
  run.ledger.representations = {{}};
  run.ledger.death = deaths;
  Timeline& line = run.metrics.timeline;
  for (RowIndex row = 0; row < tokens; ++row) {
    const auto held = std::count_if(deaths.begin(), deaths.begin() + row + 1,
                                    [&](std::uint32_t death) { return death > row; });
    for (auto* series : {&line.resident_entries, &line.active_entries}) series->push_back(held);
    line.resident_bytes.push_back(256 * held);
    line.overhead_bytes.push_back(0);
    line.host_bytes.push_back(0);
  }
  const QString path = work_folder().filePath(name);
  write_timeline(report, path.toStdString());
  return path;
}

}  // namespace kvspan::gui::test

// kvspan_gui_tests CLASS [QTEST_ARGUMENT...]
int main(int argc, char** argv) {
  if (const int refused = kvspan::test::choose_target(); refused != 0) return refused;
  QStandardPaths::setTestModeEnabled(true);
  QApplication app(argc, argv);
  QApplication::setApplicationName("kvspan-viewer-test");
  for (const auto& [name, make] : kvspan::gui::test::test_classes()) {
    if (argc < 2 || name != argv[1]) continue;
    argv[1] = argv[0];
    const auto object = make();
    return QTest::qExec(object.get(), argc - 1, argv + 1);
  }
  std::fprintf(stderr, "usage: kvspan_gui_tests CLASS [QTEST_ARGUMENT...]; classes:");
  for (const auto& test : kvspan::gui::test::test_classes()) {
    std::fprintf(stderr, " %s", test.name.c_str());
  }
  std::fprintf(stderr, "\n");
  return 2;
}
