// SPDX-License-Identifier: Apache-2.0
#include <QAbstractItemModelTester>
#include <QSignalSpy>
#include <cmath>
#include <fstream>

#include <nlohmann/json.hpp>

#include "gui/model/csv.h"
#include "gui/model/run_table.h"
#include "gui/model/session.h"
#include "sim/base/error.h"
#include "sim/report/json.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/run/run.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

using nlohmann::json;

// What views share, without widgets.
class ModelsTest : public QObject {
  Q_OBJECT
 private slots:
  void the_table_of_runs_shows_the_numbers_of_the_json();
  void csv_reads_back_equal();
  void zoom_and_selection_stay_inside_what_is_open();
  void a_replaced_result_keeps_colours_and_what_is_hidden();
  void runs_are_found_again_when_others_come_and_go();
  void views_never_see_a_head_that_a_run_does_not_have();
  void a_session_brings_back_what_was_looked_at();
  void a_malformed_session_changes_nothing();
};

void ModelsTest::the_table_of_runs_shows_the_numbers_of_the_json() {
  Document document;
  RunTable table(document);
  const QAbstractItemModelTester tester(&table,
                                        QAbstractItemModelTester::FailureReportingMode::Fatal);
  document.add(open_result(bundled_result().toStdString()));
  std::ifstream in(bundled_result().toStdString());
  const json root = json::parse(in);
  QCOMPARE(table.rowCount(), static_cast<int>(root["runs"].size()));
  document.set_selection({100, 700});
  for (int r = 0; r < table.rowCount(); ++r) {
    const json& run = root["runs"][static_cast<std::size_t>(r)];
    const auto exact = [&](int column) { return table.index(r, column).data(Qt::EditRole); };
    QCOMPARE(exact(RunTable::label).toString().toStdString(), run["policy"].get<std::string>());
    QCOMPARE(exact(RunTable::footprint).toDouble(), run["footprint"].get<double>());
    QCOMPARE(exact(RunTable::peak_kv).toDouble(), run["peak_kv"].get<double>());
    QCOMPARE(exact(RunTable::peak_memory).toDouble(), run["peak_bytes"]["total"].get<double>());
    QCOMPARE(exact(RunTable::retained).toDouble(),
             run["fidelity"]["decode"]["retained_mass"]["mean"].get<double>());
    QCOMPARE(exact(RunTable::error).toDouble(),
             run["fidelity"]["decode"]["output_error"]["mean"].get<double>());
    // The JSON's timeline holds every row where something changes: all of them, here.
    const auto bytes_at = [&](RowIndex row) {
      const json& line = run["timeline"];
      double value = 0;
      for (std::size_t i = 0; i < line["row"].size() && line["row"][i] <= row; ++i) {
        value = line["resident_bytes"][i].get<double>();
      }
      return value;
    };
    QCOMPARE(exact(RunTable::at_begin).toDouble(), bytes_at(100));
    QCOMPARE(exact(RunTable::at_end).toDouble(), bytes_at(699));
    QCOMPARE(exact(RunTable::delta).toDouble(), bytes_at(699) - bytes_at(100));
  }
  QVERIFY(table.setData(table.index(1, 0), Qt::Unchecked, Qt::CheckStateRole));
  QVERIFY(!document.runs()[1].visible);
  // What tells runs of the same label apart: nothing, the file, its chunk, its folder.
  const QString label = table.index(0, 0).data().toString();
  QCOMPARE(label.toStdString(), document.runs()[0].run().label);
  const int runs = table.rowCount();
  auto other = std::make_shared<Result>(*document.runs()[0].result);
  for (const auto& [path, chunk] : {std::pair("a/other.json", 0), std::pair("b/other.json", 64),
                                    std::pair("c/other.json", 64)}) {
    other = std::make_shared<Result>(*other);
    other->path = path;
    other->chunk = chunk;
    document.add(other);
  }
  const auto name = [&](int r) { return table.index(r, 0).data().toString(); };
  QCOMPARE(name(runs), label + " (other, whole prompt)");
  QCOMPARE(name(2 * runs), label + " (other, chunk 64, b)");
  QCOMPARE(name(3 * runs), label + " (other, chunk 64, c)");
  QCOMPARE(table.index(runs, RunTable::file).data().toString(), QString("other.json"));
  for (const ResultPtr& result : document.results()) {
    if (result != document.runs()[0].result) document.close(result);
  }
  document.close(ResultPtr(document.runs()[0].result));
  QCOMPARE(table.rowCount(), 0);
}

void ModelsTest::csv_reads_back_equal() {
  const std::string text =
      csv_line({csv_field(std::string_view("a,\"b\"\nc")), csv_field(0.1), csv_field(1e300),
                csv_field(NAN), csv_field(std::int64_t{-7})}) +
      csv_line({"", "x"});
  const auto lines = parse_csv(text);
  QCOMPARE(lines.size(), std::size_t{2});
  QCOMPARE(lines[0][0], std::string("a,\"b\"\nc"));
  QCOMPARE(std::stod(lines[0][1]), 0.1);
  QCOMPARE(std::stod(lines[0][2]), 1e300);
  QCOMPARE(lines[0][3], std::string());
  QCOMPARE(lines[0][4], std::string("-7"));
  QCOMPARE(lines[1].size(), std::size_t{2});
  QVERIFY_THROWS_EXCEPTION(Error, (void)parse_csv("\"open"));

  Document document;
  document.add(open_result(bundled_result().toStdString()));
  const RunTable table(document);
  const auto read = parse_csv(csv_of(table));
  QCOMPARE(read.size(), static_cast<std::size_t>(table.rowCount()) + 1);
  for (int r = 0; r < table.rowCount(); ++r) {
    for (int c = 1; c < RunTable::file; ++c) {
      QCOMPARE(std::stod(read[static_cast<std::size_t>(r) + 1][static_cast<std::size_t>(c)]),
               table.index(r, c).data(Qt::EditRole).toDouble());
    }
  }
}

void ModelsTest::zoom_and_selection_stay_inside_what_is_open() {
  Document document;
  document.set_zoom({5, 10});
  document.set_selection({-3, 1000});
  QVERIFY(document.selection().empty());
  document.add(open_result(bundled_result().toStdString()));
  const RowIndex rows = document.rows();
  QCOMPARE(rows, RowIndex{1880});
  QVERIFY((document.zoom() == Rows{0, rows}));
  QVERIFY(!document.selection().empty());  // the current run's peak
  QCOMPARE(document.instant(), peak_row(*document.current_run()));
  document.set_zoom({-100, 50});
  QVERIFY((document.zoom() == Rows{0, 150}));
  document.set_zoom({1870, 5000});
  QVERIFY((document.zoom() == Rows{0, rows}));
  document.set_zoom({1000, 1000});
  QVERIFY((document.zoom() == Rows{1000, 1002}));
  document.set_selection({5000, 6000});
  QVERIFY((document.selection() == Rows{rows - 1, rows}));
  document.set_current(99);
  document.set_baseline(-5);
  QCOMPARE(document.current(), 1);  // what evicts, not `full`
  QCOMPARE(document.baseline(), 0);
  document.set_focus({99, 99, 99'999});
  QCOMPARE(document.focus().layer, document.current_run()->result->trace.layers() - 1);
  document.close(ResultPtr(document.runs()[0].result));
  QCOMPARE(document.current(), -1);
  QVERIFY(document.zoom().empty() && document.selection().empty());
}

void ModelsTest::a_replaced_result_keeps_colours_and_what_is_hidden() {
  Document document;
  document.add(open_result(bundled_result().toStdString()));
  const std::size_t runs = document.runs().size();
  document.set_visible(2, false);
  document.set_colour(2, 77);
  document.add(open_result(bundled_result().toStdString()));
  QCOMPARE(document.runs().size(), runs);
  QVERIFY(!document.runs()[2].visible);
  QCOMPARE(document.runs()[2].colour, 77);
}

namespace {

// A result of the paper's tiny picture: fewer layers, heads and tokens than the bundled one.
QString tiny_result() {
  RunReport report;
  report.trace_path = KVSPAN_TRACES_DIR "/tiny-picture.safetensors";
  const Trace trace = Trace::open(report.trace_path);
  report.runs =
      run_policies(trace, expand_policies({"full", "streaming_llm(sinks=1,window=2)"}, {}),
                   EngineOptions(), report.accounting);
  report.trace = trace.meta();
  report.lifetimes_path = work_folder().filePath("tiny.lifetimes.safetensors").toStdString();
  write_lifetimes(report, report.lifetimes_path);
  const QString json = work_folder().filePath("tiny.json");
  write_file_atomically(json.toStdString(), to_json(report).dump());
  return json;
}

}  // namespace

// Bug: current and baseline were kept as numbers, and closing a result moved them to other runs.
void ModelsTest::runs_are_found_again_when_others_come_and_go() {
  Document document;
  document.add(open_result(tiny_result().toStdString()));
  document.add(open_result(bundled_result().toStdString()));
  document.set_current(5);
  document.set_baseline(4);
  const std::string current = document.current_run()->run().policy;
  const std::string baseline = document.baseline_run()->run().policy;
  document.close(ResultPtr(document.runs()[0].result));
  QCOMPARE(document.current(), 3);
  QCOMPARE(document.current_run()->run().policy, current);
  QCOMPARE(document.baseline_run()->run().policy, baseline);
  document.add(open_result(bundled_result().toStdString()));
  QCOMPARE(document.current_run()->run().policy, current);
}

// Bug: views were told of another run before layer, head and token were inside what it has.
void ModelsTest::views_never_see_a_head_that_a_run_does_not_have() {
  Document document;
  document.add(open_result(bundled_result().toStdString()));
  document.set_focus({2, 2, 1800});
  int checked = 0;
  const auto check = [&] {
    const ShownRun* shown = document.current_run();
    const Focus focus = document.focus();
    QVERIFY(focus.layer < shown->result->trace.layers());
    QVERIFY(focus.head < shown->run().heads);
    QVERIFY(focus.token < shown->result->trace.tokens);
    ++checked;
  };
  connect(&document, &Document::runs_changed, this, check);
  connect(&document, &Document::current_changed, this, check);
  document.add(open_result(tiny_result().toStdString()));
  document.set_current(static_cast<int>(document.runs().size()) - 1);
  QVERIFY(document.focus().token < document.current_run()->result->trace.tokens);
  document.close(ResultPtr(document.runs()[0].result));
  QVERIFY(checked >= 5);
}

void ModelsTest::a_session_brings_back_what_was_looked_at() {
  Document document;
  document.add(open_result(bundled_result().toStdString()));
  document.set_visible(3, false);
  document.set_colour(1, 9);
  document.set_current(2);
  document.set_baseline(4);
  document.set_zoom({100, 900});
  document.set_selection({200, 300});
  document.set_focus({1, 2, 77});
  document.set_display({Quantity::percent, true, Stack::state, HeadFigure::retained_mass});
  const json session = json::parse(session_of(document).dump());

  Document again;
  for (const auto& file : files_of(session)) again.add(open_result(file));
  restore(session, again);
  QCOMPARE(session_of(again).dump(), session.dump());
  QVERIFY(!again.runs()[3].visible);
  QCOMPARE(again.runs()[1].colour, 9);
  QVERIFY((again.zoom() == Rows{100, 900}));
  QVERIFY((again.focus() == Focus{1, 2, 77}));
  QVERIFY(again.display() == document.display());
}

void ModelsTest::a_malformed_session_changes_nothing() {
  Document document;
  document.add(open_result(bundled_result().toStdString()));
  const std::string before = session_of(document).dump();
  for (const char* text :
       {"null", "[]", "{}", R"({"runs": 5, "zoom": "x", "focus": [], "display": {"quantity": 7}})",
        R"({"runs": [{"policy": 5}], "current": "a", "selection": {"begin": 1.5}})"}) {
    const json session = json::parse(text);
    QVERIFY(files_of(session).empty());
    restore(session, document);
    QCOMPARE(session_of(document).dump(), before);
  }
}

KVSPAN_GUI_TEST(ModelsTest, "models");

}  // namespace kvspan::gui::test

#include "models_test.moc"
