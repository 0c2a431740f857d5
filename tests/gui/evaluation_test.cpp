// SPDX-License-Identifier: Apache-2.0
#include "gui/model/evaluation.h"

#include <QAbstractItemModelTester>
#include <QLabel>
#include <QLineEdit>
#include <QTableView>
#include <cmath>

#include <nlohmann/json.hpp>

#include "gui/model/csv.h"
#include "gui/model/session.h"
#include "gui/model/several.h"
#include "gui/views/view.h"
#include "gui/window/exports.h"
#include "sim/base/error.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

// What `kvspan eval --out` writes, with figures to reckon with by hand: two samples of one task
// under full, streaming_llm and h2o.
class EvaluationTest : public QObject {
  Q_OBJECT
 private slots:
  void scores_are_those_of_the_file();
  void answers_stand_side_by_side();
  void a_task_without_a_critical_footprint_says_why();
  void what_is_malformed_is_named();
  void views_show_runs_and_are_exported();
};

namespace {

using nlohmann::json;

json policy(const char* label, const char* method, double score, double footprint) {
  return {{"label", label},         {"method", method},
          {"class", "evict"},       {"notes", json::array()},
          {"score", score},         {"score_interval", {score - 0.1, score + 0.1}},
          {"footprint", footprint}, {"footprint_interval", {footprint, footprint}},
          {"peak_kv", footprint},   {"nll", 1.5},
          {"delta_nll", 0.25},      {"kl", nullptr},
          {"retained_mass", 0.7}};
}

json evaluation() {
  const QString path = small_result();
  QFile file(path);
  if (!file.open(QIODevice::ReadOnly)) return {};
  json one = json::parse(file.readAll().toStdString());
  one["files"] = {{"timeline", nullptr}, {"lifetimes", nullptr}};
  json whole{{"schema_version", 1}, {"results", {one, one}}};
  const char* const answers[2][3] = {{"4711", "4711", "nothing of this"}, {"12", "1", ""}};
  const double scores[2][3] = {{1, 1, 0}, {1, 0.5, 0}};
  for (std::size_t s = 0; s < 2; ++s) {
    json& result = whole["results"][s];
    result["sample"] = {{"name", s == 0 ? "first" : "second"},
                        {"task", "keys"},
                        {"answers", s == 0 ? json::array({"4711"}) : json::array({"12", "13"})},
                        {"prompt_tokens", 8}};
    for (std::size_t r = 0; r < 3; ++r) {
      result["runs"][r]["eval"] = {{"answer", answers[s][r]},
                                   {"score", scores[s][r]},
                                   {"nll", 1.5},
                                   {"delta_nll", r == 0 ? json(0) : json(0.25)},
                                   {"kl", nullptr}};
      result["runs"][r]["spans"] = {{{"name", "needle"}, {"resident_share", 0.5}}};
    }
  }
  json critical = json::array();
  critical.push_back({{"method", "streaming_llm"},
                      {"footprint", {{"kind", "exact"}, {"value", 0.52}}},
                      {"footprint_interval", {0.5, nullptr}},
                      {"peak_kv", {{"kind", "below"}, {"value", 0.5}}}});
  critical.push_back({{"method", "h2o"},
                      {"footprint", {{"kind", "above"}, {"value", 0.6}}},
                      {"footprint_interval", {nullptr, nullptr}},
                      {"peak_kv", {{"kind", "above"}, {"value", 0.6}}}});
  whole["eval"] = {{"at", 0.9},
                   {"tasks",
                    {{{"task", "keys"},
                      {"samples", 2},
                      {"policies",
                       {policy("full", "full", 1, 1),
                        policy("streaming_llm(budget=50%)", "streaming_llm", 0.75, 0.5),
                        policy("h2o(budget=50%)", "h2o", 0, 0.6)}},
                      {"critical", critical},
                      {"no_critical", nullptr},
                      {"proxies", json::array()},
                      {"refused", json::array()}}}}};
  return whole;
}

QString written(const QString& name, const json& content) {
  const QString path = work_folder().filePath(name);
  write_file_atomically(path.toStdString(), content.dump());
  return path;
}

}  // namespace

void EvaluationTest::scores_are_those_of_the_file() {
  const EvaluationPtr read = read_evaluation("eval.json", evaluation());
  QVERIFY(read != nullptr);
  const CurveChart chart = score_chart(*read, 0);
  QCOMPARE(chart.lines.size(), std::size_t{3});  // the full cache, then by critical footprint
  QCOMPARE(chart.lines[0].name, QString("full"));
  QCOMPARE(chart.lines[1].name, QString("streaming_llm"));
  QCOMPARE(*chart.lines[1].critical, 0.52);
  QVERIFY(!chart.lines[2].critical);
  QCOMPARE(chart.lines[1].points[0].y, 0.75);
  QCOMPARE(chart.lines[1].points[0].low, 0.65);
  QCOMPARE(*chart.threshold, 0.9);
  PlainTable table;
  const QAbstractItemModelTester tester(&table);
  set_criticals(*read, 0, table);
  QCOMPARE(table.rowCount(), 2);
  QCOMPARE(table.index(0, 1).data().toString(), QString("52.0 %"));
  QCOMPARE(table.index(0, 2).data().toString(), QString("50.0 to ? %"));
  QCOMPARE(table.index(0, 3).data().toString(), QString("< 50.0 %"));
  QCOMPARE(table.index(1, 1).data().toString(), QString("> 60.0 %"));
  QCOMPARE(table.index(1, 0).data(PlainTable::item_role).toInt(), 2);  // its line
  const auto lines = parse_csv(scores_csv(*read, 0));
  QCOMPARE(lines.size(), std::size_t{4});
  QCOMPARE(std::stod(lines[2][7]), 0.75);
  QCOMPARE(lines[2][14], std::string("exact"));
  QCOMPARE(lines[1][14], std::string());  // the full cache has none
  QVERIFY(read_evaluation("run.json", json{{"schema_version", 1}}) == nullptr);
}

void EvaluationTest::answers_stand_side_by_side() {
  const EvaluationPtr read = read_evaluation("eval.json", evaluation());
  PlainTable table;
  const QAbstractItemModelTester tester(&table);
  set_answers(*read, 0, {0, 2}, table);
  QCOMPARE(table.rowCount(), 2);
  QCOMPARE(table.columnCount(), 4);
  QCOMPARE(table.headerData(3, Qt::Horizontal).toString(), QString("h2o(budget=50%)"));
  QCOMPARE(table.index(0, 2).data().toString(), QString("needle 50 % left\n4711"));
  QCOMPARE(table.index(1, 3).data().toString(), QString("needle 50 % left\n(nothing)"));
  QCOMPARE(table.index(1, 1).data().toString(), QString("12 | 13"));
  QCOMPARE(table.index(1, 3).data(PlainTable::item_role).toInt(), 5);  // sample 1, policy 2
  QCOMPARE(table.index(0, 2).data(PlainTable::good_role).toDouble(), 1.0);
  const auto lines = parse_csv(answers_csv(*read, 0, {0, 2}));
  QCOMPARE(lines.size(), std::size_t{5});
  QCOMPARE(lines[2][5], std::string("nothing of this"));
  QCOMPARE(lines[2].back(), std::string("needle=0.5"));
}

void EvaluationTest::a_task_without_a_critical_footprint_says_why() {
  json whole = evaluation();
  whole["eval"]["tasks"][0]["critical"] = json::array();
  whole["eval"]["tasks"][0]["no_critical"] = "the model does not do this task";
  const EvaluationPtr read = read_evaluation("eval.json", whole);
  PlainTable table;
  set_criticals(*read, 0, table);
  QCOMPARE(table.rowCount(), 1);
  QCOMPARE(table.index(0, 0).data().toString(), QString("the model does not do this task"));
  const CurveChart chart = score_chart(*read, 0);
  QVERIFY(!chart.threshold);
  QCOMPARE(chart.lines.size(), std::size_t{3});
}

void EvaluationTest::what_is_malformed_is_named() {
  const auto error_of = [](const json& whole) -> QString {
    try {
      (void)read_evaluation("eval.json", whole);
    } catch (const TraceError& error) {
      return error.what();
    }
    return "none";
  };
  json whole = evaluation();
  whole["eval"]["tasks"][0]["samples"] = 3;
  QCOMPARE(error_of(whole),
           QString("eval.json: results: found 2 results, expected the samples of all tasks"));
  whole = evaluation();
  whole["eval"]["tasks"][0]["critical"][0]["footprint"]["kind"] = "about";
  QVERIFY(error_of(whole).contains("kind: found 'about', expected exact, below, above or unknown"));
  whole = evaluation();
  whole["results"][1]["runs"][2].erase("eval");
  QVERIFY(error_of(whole).contains("'eval' is missing"));
  whole = evaluation();
  whole["eval"]["tasks"][0]["policies"][1]["score"] = nullptr;
  QVERIFY(error_of(whole).contains("eval.tasks.0.policies.1.score: found null"));
  whole = evaluation();
  whole["results"][0]["runs"].erase(2);
  QVERIFY(error_of(whole).contains("found 2 values, expected 3"));
}

void EvaluationTest::views_show_runs_and_are_exported() {
  const QString path = written("eval.json", evaluation());
  Document document;
  QWidget window;
  View* scores = make_scores_view(document, &window);
  View* answers = make_answers_view(document, &window);
  QVERIFY(!scores->has_content());
  for (const ResultPtr& result : open_results(path.toStdString())) document.add(result);
  QCOMPARE(document.runs().size(), std::size_t{6});
  // Only the first sample's lines are drawn at first.
  for (std::size_t r = 0; r < 6; ++r) QCOMPARE(document.runs()[r].visible, r < 3);
  QVERIFY(scores->has_content() && answers->has_content());
  // The file is opened again as a whole, once.
  const json session = session_of(document);
  QCOMPARE(files_of(session).size(), std::size_t{1});
  auto* table = answers->findChild<QTableView*>();
  QCOMPARE(table->model()->columnCount(), 5);
  table->setCurrentIndex(table->model()->index(1, 4));  // second sample, h2o
  QCOMPARE(document.current(), 5);
  answers->findChild<QLineEdit*>("words")->setText("stream");
  QCOMPARE(table->model()->columnCount(), 3);
  // Of a sample alone there is no evaluation.
  QVERIFY(open_results(path.toStdString() + "[1]")[0]->evaluation == nullptr);

  Settings settings;
  settings.files = {path.toStdString()};
  for (const char* view : {"scores", "answers"}) {
    for (const char* ending : {".png", ".svg", ".csv"}) {
      settings.views.emplace_back(view);
      settings.exports.push_back(
          picture_folder().filePath(QString("eval-") + view + ending).toStdString());
    }
  }
  run_exports(settings);
  QFile csv(picture_folder().filePath("eval-answers.csv"));
  QVERIFY(csv.open(QIODevice::ReadOnly));
  QCOMPARE(parse_csv(csv.readAll().toStdString()).size(), std::size_t{7});
}

KVSPAN_GUI_TEST(EvaluationTest, "evaluation");

}  // namespace kvspan::gui::test

#include "evaluation_test.moc"
