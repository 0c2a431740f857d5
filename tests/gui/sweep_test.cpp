// SPDX-License-Identifier: Apache-2.0
#include "gui/model/sweep.h"

#include <QAbstractItemModelTester>
#include <QClipboard>
#include <QComboBox>
#include <QLabel>
#include <QPushButton>
#include <QSignalSpy>
#include <QTabWidget>
#include <QTableView>
#include <cmath>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/csv.h"
#include "gui/model/sweep_curves.h"
#include "gui/model/sweep_state.h"
#include "gui/model/sweep_table.h"
#include "gui/paint/theme.h"
#include "gui/views/view.h"
#include "gui/window/exports.h"
#include "gui/window/main_window.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/sweep/journal.h"
#include "sim/sweep/sweep.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

// Folders of sweeps: made up, with figures to reckon with by hand, and a real one of tiny traces.
class SweepTest : public QObject {
  Q_OBJECT
 private slots:
  void columns_are_those_of_the_cells();
  void a_filter_takes_what_it_names();
  void curves_are_means_over_traces();
  void a_setting_without_a_crossing_has_no_mean();
  void a_matrix_holds_means_of_all_that_differs();
  void critical_footprints_have_a_matrix_too();
  void views_choose_cells_and_copy_commands();
  void a_cell_opens_its_run();
  void every_view_is_exported();
};

namespace {

struct Figures {
  const char* method;
  const char* budget;  // "": none
  double footprint, retained;
};

// Two traces, chunks 0 and 4; specifications as below. Of chunk 4 only what trace a has of snapkv
// at 10 % is done, and tova at 10 % failed there.
constexpr const char* kSpecs[] = {"full", "snapkv(budget=10%)", "snapkv(budget=50%)",
                                  "tova(budget=10%)", "tova(budget=50%)"};
constexpr Figures kOnA[] = {{"full", "", 1, 1},
                            {"snapkv", "10%", 0.2, 0.8},
                            {"snapkv", "50%", 0.6, 1},
                            {"tova", "10%", 0.1, 0.5},
                            {"tova", "50%", 0.5, 0.7}};
constexpr Figures kOnB[] = {{"full", "", 1, 1},
                            {"snapkv", "10%", 0.3, 0.6},
                            {"snapkv", "50%", 0.7, 1},
                            {"tova", "10%", 0.2, 0.95},
                            {"tova", "50%", 0.6, 1}};

std::string figures_text(const Figures& f) {
  const nlohmann::json budget = *f.budget == '\0' ? nlohmann::json(nullptr) : f.budget;
  return nlohmann::json{{"method", f.method},
                        {"budget", budget},
                        {"bound", false},
                        {"footprint_share", f.footprint},
                        {"peak_kv_share", f.footprint},
                        {"peak_bytes", 1000},
                        {"retained_attention_mean_share", f.retained},
                        {"notes", nlohmann::json::array()},
                        {"canonical", f.method}}
      .dump();
}

QString made_folder() {
  static const QString path = [] {
    const QString folder = work_folder().filePath("made");
    QDir().mkpath(folder + "/journals");
    sweep::Plan plan;
    plan.version = "made";
    plan.config.chunks = {0, 4};
    for (const char* name : {"a", "b"})
      plan.traces.push_back(
          {std::string("/no/such/") + name + ".safetensors", name, "model", 12, 8, 1, 1, 1, 1});
    for (const char* spec : kSpecs) plan.specs.push_back({spec, false, {}});
    write_file_atomically((folder + "/sweep.json").toStdString(), to_json(plan).dump());
    const sweep::Grid grid = sweep::make_grid(plan);
    std::string journal;
    using Status = sweep::CellRecord::Status;
    for (const sweep::Cell& cell : grid.cells) {
      const sweep::Setting& setting = grid.settings[cell.setting];
      const Figures& f = (setting.trace == 0 ? kOnA : kOnB)[cell.spec];
      const bool snapkv_on_a = setting.trace == 0 && cell.spec == 1;
      if (setting.chunk == 0 || snapkv_on_a)
        journal += sweep::journal_line(cell_record(cell.id, Status::done, figures_text(f)));
      else if (setting.trace == 0 && cell.spec == 3)
        journal += sweep::journal_line(cell_record(cell.id, Status::failed, "no room"));
    }
    write_file_atomically((folder + "/journals/one.journal").toStdString(), journal);
    return folder;
  }();
  return path;
}

SweepPtr made() { return open_sweep_folder(made_folder().toStdString()); }

// What `kvspan sweep` writes, of two traces of 8 and 12 tokens.
QString real_folder() {
  static const QString path = [] {
    const QString folder = work_folder().filePath("real");
    sweep::Config config;
    config.traces = {KVSPAN_TRACES_DIR "/tiny-paper.safetensors",
                     KVSPAN_TRACES_DIR "/tiny-picture.safetensors"};
    config.policies = {"full", "streaming_llm", "tova"};
    config.budgets = {"2", "50%"};
    config.chunks = {0, 4};
    sweep::SweepOptions options;
    options.threads = 1;
    (void)run_sweep(config, folder.toStdString(), options);
    return folder;
  }();
  return path;
}

const Sweep::Figure& figure_of(const Sweep& sweep, const std::string& key) {
  const auto at = std::find_if(sweep.figures.begin(), sweep.figures.end(),
                               [&](const Sweep::Figure& figure) { return figure.key == key; });
  if (at == sweep.figures.end()) throw Error("no figure " + key, 1);
  return *at;
}

SweepFilter where(const Sweep& sweep, const std::vector<std::string>& texts) {
  SweepFilter filter;
  for (const std::string& text : texts) apply_where(text, sweep, filter);
  return filter;
}

std::size_t count(const Sweep& sweep, const SweepFilter& filter) {
  std::size_t taken = 0;
  for (std::size_t c = 0; c < sweep.cells(); ++c) taken += filter.takes(sweep, c) ? 1 : 0;
  return taken;
}

View* find_view(const std::vector<View*>& views, const QString& name) {
  for (View* view : views) {
    if (view->name() == name) return view;
  }
  return nullptr;
}

bool near(double a, double b) { return std::abs(a - b) < 1e-12; }

}  // namespace

void SweepTest::columns_are_those_of_the_cells() {
  const SweepPtr sweep = open_sweep_folder(real_folder().toStdString());
  SweepTable table;
  const QAbstractItemModelTester tester(&table);
  table.set(sweep);
  QFile file(real_folder() + "/cells.csv");
  QVERIFY(file.open(QIODevice::ReadOnly));
  const auto lines = parse_csv(file.readAll().toStdString());
  QCOMPARE(lines.size(), sweep->cells() + 1);
  std::map<std::string, std::size_t> column;
  for (std::size_t i = 0; i < lines[0].size(); ++i) column[lines[0][i]] = i;
  const std::map<Sweep::Parameter, const char*> names{{Sweep::trace, "trace"},
                                                      {Sweep::method, "method"},
                                                      {Sweep::budget, "budget"},
                                                      {Sweep::chunk, "chunk_tokens"},
                                                      {Sweep::status, "status"}};
  for (std::size_t c = 0; c < sweep->cells(); ++c) {
    const auto& line = lines[c + 1];
    for (const auto& [parameter, name] : names) {
      const Sweep::Values& values = sweep->parameters[parameter];
      QCOMPARE(values.words[static_cast<std::size_t>(values.of_cell[c])], line[column[name]]);
    }
    for (const Sweep::Figure& figure : sweep->figures) {
      const std::string& written = line[column[figure.key]];
      QCOMPARE(std::isnan(figure.of_cell[c]), written.empty());
      if (!written.empty()) QCOMPARE(figure.of_cell[c], std::stod(written));
    }
  }
  // "2" is tokens, and comes behind shares; words of numbers are sorted as such.
  QCOMPARE(sweep->parameters[Sweep::budget].words, (std::vector<std::string>{"", "50%", "2"}));
  QVERIFY_THROWS_EXCEPTION(ConfigError,
                           (void)open_sweep_folder(work_folder().path().toStdString()));

  // What is not done is named after its specification, and says why.
  const SweepPtr other = made();
  QCOMPARE(other->cells(), std::size_t{20});
  QCOMPARE(other->parameters[Sweep::method].words,
           (std::vector<std::string>{"full", "snapkv", "tova"}));
  QCOMPARE(count(*other, where(*other, {"status=failed"})), std::size_t{1});
  QCOMPARE(count(*other, where(*other, {"status=left"})), std::size_t{8});
  for (std::size_t c = 0; c < other->cells(); ++c) {
    if (other->text(Sweep::status, c) == "failed")
      QVERIFY(cell_text(*other, c).contains("failed, no room"));
  }
}

void SweepTest::a_filter_takes_what_it_names() {
  const SweepPtr sweep = made();
  QCOMPARE(count(*sweep, {}), std::size_t{20});
  QCOMPARE(count(*sweep, where(*sweep, {"chunk=4"})), std::size_t{10});
  QCOMPARE(count(*sweep, where(*sweep, {"chunk=one pass"})), std::size_t{10});  // as it is shown
  QCOMPARE(count(*sweep, where(*sweep, {"budget=10%,50%"})), std::size_t{16});
  QCOMPARE(count(*sweep, where(*sweep, {"method=SNAP", "chunk=0", "trace=b"})), std::size_t{2});
  QCOMPARE(count(*sweep, where(*sweep, {"method=snap, ful"})), std::size_t{12});
  QCOMPARE(scope_text(where(*sweep, {"chunk=4", "budget=10%"}), *sweep),
           QString("budget 10 %, chunk 4"));
  Sweep sampled = *sweep;
  sampled.folder.plan.config.sample = "heads=4";
  QCOMPARE(scope_text(where(sampled, {"chunk=4"}), sampled),
           QString("chunk 4, attention estimated from a sample (heads=4)"));
  for (const char* wrong : {"chunk", "chunks=4", "chunk=8", "method=zzz", "=1"})
    QVERIFY_THROWS_EXCEPTION(ConfigError, where(*sweep, {wrong}));
  SweepTable table;
  table.set(sweep);
  TakenCells taken(table, nullptr);
  taken.set_filter(where(*sweep, {"status=done"}));
  QCOMPARE(taken.rowCount(), 11);
  // Sorted by retained attention, the largest first.
  int retained = 0;
  while (taken.headerData(retained, Qt::Horizontal).toString() != "retained attention") ++retained;
  taken.sort(retained, Qt::DescendingOrder);
  QCOMPARE(taken.index(0, retained).data(Qt::EditRole).toDouble(), 1.0);
  QCOMPARE(taken.index(10, retained).data(Qt::EditRole).toDouble(), 0.5);
}

void SweepTest::curves_are_means_over_traces() {
  const SweepPtr sweep = made();
  QCOMPARE(groups_of(*sweep, sweep->report, {}).size(), std::size_t{2});
  const SweepCurves curves = make_sweep_curves(*sweep, sweep->report, {}, 0);
  QCOMPARE(curves.traces.size(), std::size_t{2});
  QCOMPARE(curves.methods.size(), std::size_t{3});
  const SweepCurves::Method& snapkv = curves.methods[0];
  QCOMPARE(snapkv.name, std::string("snapkv"));
  // On a half of the way from 0.2 to 0.6, on b three quarters of that from 0.3 to 0.7.
  QVERIFY(near(snapkv.critical[0]->x, 0.4));
  QVERIFY(near(snapkv.critical[1]->x, 0.6));
  QVERIFY(near(*snapkv.mean, 0.5));
  QVERIFY(near(*snapkv.line.critical, 0.5));
  QVERIFY(near(snapkv.interval->low, 0.4) && near(snapkv.interval->high, 0.6));
  QCOMPARE(snapkv.line.points.size(), std::size_t{2});
  const CurveChart::Point& p = snapkv.line.points[0];
  QVERIFY(near(p.x, 0.25) && near(p.left, 0.2) && near(p.right, 0.3));
  QVERIFY(near(p.y, 0.7) && near(p.low, 0.6) && near(p.high, 0.8));
  QCOMPARE(p.item, -1);  // of two traces
  QVERIFY(!p.front);     // tova has less and retains more
  QCOMPARE(curves.methods[1].name, std::string("full"));
  QVERIFY(near(*curves.methods[1].mean, 1));
  QVERIFY(!curves.methods[1].line.critical);  // below what was measured
  const std::vector<QPointF> front{{0.15, 0.725}, {0.55, 0.85}, {0.65, 1}};
  QCOMPARE(curves.chart.front.size(), front.size());
  for (std::size_t i = 0; i < front.size(); ++i)
    QVERIFY(near(curves.chart.front[i].x(), front[i].x()) &&
            near(curves.chart.front[i].y(), front[i].y()));
  // The report's own ranking says the same of means and intervals.
  for (const sweep::Ranked& ranked : sweep->report.ranking) {
    if (ranked.group != 0 || !ranked.mean_critical) continue;
    const auto at = std::find_if(curves.methods.begin(), curves.methods.end(),
                                 [&](const auto& method) { return method.name == ranked.method; });
    QCOMPARE(*at->mean, *ranked.mean_critical);
    QCOMPARE(at->interval->low, ranked.critical_interval->low);
    QCOMPARE(at->interval->high, ranked.critical_interval->high);
  }
  const auto lines = parse_csv(curves_csv(curves, sweep->report, 0));
  QCOMPARE(lines.size(), std::size_t{6});
  QCOMPARE(lines[1][1], std::string("snapkv"));
  QVERIFY(near(std::stod(lines[1][5]), 0.25));
  // Of one trace a point is a cell, and opens.
  const SweepCurves alone =
      make_sweep_curves(*sweep, sweep->report, where(*sweep, {"trace=a", "budget=10%"}), 0);
  QCOMPARE(alone.methods[0].line.points.size(), std::size_t{1});
  const auto cell = static_cast<std::size_t>(alone.methods[0].line.points[0].item);
  QCOMPARE(sweep->text(Sweep::trace, cell), QString("a"));
  QCOMPARE(figure_of(*sweep, "footprint_share").of_cell[cell], 0.2);
  QVERIFY(near(*alone.methods[0].mean, 0.4));  // of all budgets, whatever is drawn
}

void SweepTest::a_setting_without_a_crossing_has_no_mean() {
  const SweepPtr sweep = made();
  const SweepCurves curves = make_sweep_curves(*sweep, sweep->report, {}, 0);
  const SweepCurves::Method& tova = curves.methods[2];
  QCOMPARE(tova.name, std::string("tova"));
  QVERIFY(!tova.mean && !tova.interval && !tova.line.critical);
  QCOMPARE(tova.critical[0]->kind, sweep::Critical::Kind::above);
  QCOMPARE(tova.critical[1]->kind, sweep::Critical::Kind::below);
  PlainTable table;
  const QAbstractItemModelTester tester(&table);
  set_criticals(curves, *sweep, table);
  QCOMPARE(table.columnCount(), 5);  // method, mean, interval, a, b
  QCOMPARE(table.index(0, 1).data().toString(), QString("50.0 %"));
  QCOMPARE(table.index(2, 1).data().toString(), QString(QChar(0x2013)));
  QCOMPARE(table.index(2, 3).data().toString(), QString("> 50.0 %"));
  QCOMPARE(table.index(2, 4).data().toString(), QString("< 20.0 %"));
  // Many methods: the first are named, then some are grey, the rest is in the table only.
  QVERIFY(!curves.chart.lines[0].faint);
}

void SweepTest::a_matrix_holds_means_of_all_that_differs() {
  const SweepPtr sweep = made();
  const MatrixAxes axes = default_axes(*sweep);
  QCOMPARE(axes.columns, Sweep::budget);
  const SweepMatrix matrix = make_matrix(*sweep, sweep->report, {}, axes);
  std::map<std::pair<QString, QString>, std::vector<double>> wanted;
  const Sweep::Figure& retained = figure_of(*sweep, "retained_attention_mean_share");
  for (std::size_t c = 0; c < sweep->cells(); ++c) {
    if (std::isnan(retained.of_cell[c])) continue;
    wanted[{sweep->text(Sweep::method, c), sweep->text(Sweep::budget, c)}].push_back(
        retained.of_cell[c]);
  }
  std::size_t known = 0;
  for (std::size_t r = 0; r < matrix.rows.size(); ++r) {
    for (std::size_t c = 0; c < matrix.columns.size(); ++c) {
      const auto text = [&](Sweep::Parameter parameter, std::int32_t value) {
        return sweep->parameters[parameter].texts[static_cast<std::size_t>(value)];
      };
      const auto at = wanted.find(
          {text(Sweep::method, matrix.rows[r]), text(Sweep::budget, matrix.columns[c])});
      const SweepMatrix::Cell& cell = matrix.at(r, c);
      QCOMPARE(cell.count, at == wanted.end() ? 0 : static_cast<int>(at->second.size()));
      if (cell.count == 0) continue;
      ++known;
      double sum = 0;
      for (const double value : at->second) sum += value;
      QVERIFY(near(cell.value, sum / cell.count));
      QCOMPARE(cell.low, *std::min_element(at->second.begin(), at->second.end()));
      QCOMPARE(cell.high, *std::max_element(at->second.begin(), at->second.end()));
    }
  }
  QCOMPARE(known, wanted.size());
  // Best first: full 1, then snapkv (its 10 % of three cells: 11 / 15), then tova.
  QCOMPARE(sweep->parameters[Sweep::method].texts[static_cast<std::size_t>(matrix.rows[0])],
           QString("full"));
  QCOMPARE(sweep->parameters[Sweep::method].texts[static_cast<std::size_t>(matrix.rows[1])],
           QString("snapkv"));
  const auto lines = parse_csv(matrix_csv(*sweep, matrix, axes));
  QCOMPARE(lines[0], (std::vector<std::string>{"method", "", "10%", "50%"}));
  QVERIFY(near(std::stod(lines[2][2]), 11.0 / 15));
  QCOMPARE(lines[2][1], std::string());
  for (const char* wrong : {"method", "method,method", "method,size", "method,chunk,beauty"})
    QVERIFY_THROWS_EXCEPTION(ConfigError, (void)parse_axes(wrong, *sweep));
}

void SweepTest::critical_footprints_have_a_matrix_too() {
  const SweepPtr sweep = made();
  const MatrixAxes axes = parse_axes("method,trace,critical_footprint", *sweep);
  const SweepMatrix matrix = make_matrix(*sweep, sweep->report, where(*sweep, {"chunk=0"}), axes);
  QCOMPARE(matrix.rows.size(), std::size_t{3});
  QVERIFY(near(matrix.at(0, 0).value, 0.4));  // the smallest first: snapkv on a
  QCOMPARE(value_text(matrix, matrix.at(0, 1)), QString("60.0 %"));
  QCOMPARE(value_text(matrix, matrix.at(1, 0)), QString("< 100.0 %"));
  QCOMPARE(value_text(matrix, matrix.at(2, 0)), QString("> 50.0 %"));  // never there: last
}

void SweepTest::views_choose_cells_and_copy_commands() {
  Document document;
  QWidget window;
  const std::vector<View*> views = make_views(document, &window);
  for (std::size_t i = kRunViews; i < views.size(); ++i) QVERIFY(!views[i]->has_content());
  document.sweep().set(made());
  QSignalSpy wanted(&document.sweep(), &SweepState::run_wanted);
  for (const char* name : {"curves", "matrix", "cells"}) {
    View* view = find_view(views, name);
    view->setParent(nullptr);
    view->resize(1000, 500);
    view->show();
    QVERIFY(view->has_content());
    QCOMPARE(view->findChild<QLabel*>("count")->text(), QString("20 of 20 cells"));
  }
  View* cells = find_view(views, "cells");
  auto* table = cells->findChild<QTableView*>();
  table->setCurrentIndex(table->model()->index(1, 0));
  QCOMPARE(document.sweep().cell(), 1);
  const QString text = cells->hovered_text();
  QVERIFY2(text.contains("snapkv(budget=10%)") && text.contains("KV footprint 20.0 %"),
           qPrintable(text));
  cells->findChild<QPushButton*>("copy_command")->click();
  QCOMPARE(QApplication::clipboard()->text(),
           QString("kvspan run /no/such/a.safetensors --policy 'snapkv(budget=10%)'"));
  emit table->activated(table->currentIndex());
  QCOMPARE(wanted.size(), 1);
  // The box of one view filters all of them.
  auto* chunk = cells->findChild<QComboBox*>("chunk");
  QCOMPARE(chunk->itemText(2), QString("4"));
  chunk->setCurrentIndex(2);
  emit chunk->activated(2);
  QCOMPARE(table->model()->rowCount(), 10);
  QCOMPARE(find_view(views, "matrix")->findChild<QLabel*>("count")->text(),
           QString("10 of 20 cells"));
  // A point of one trace chooses its cell by key.
  document.sweep().set_filter(where(*document.sweep().sweep(), {"trace=b"}));
  View* curves = find_view(views, "curves");
  QWidget* plot = nullptr;
  for (QWidget* child : curves->findChildren<QWidget*>()) {
    if (child->accessibleName() == "curves of quality against footprint") plot = child;
  }
  QVERIFY(plot != nullptr);
  for (const auto key : {Qt::Key_Right, Qt::Key_Right}) QTest::keyClick(plot, key);
  QTest::keyClick(plot, Qt::Key_Return);
  const auto cell = static_cast<std::size_t>(document.sweep().cell());
  QCOMPARE(document.sweep().sweep()->text(Sweep::trace, cell), QString("b"));
  // Another threshold is another report.
  QSignalSpy changed(&document.sweep(), &SweepState::changed);
  document.sweep().set_threshold(0.8);
  QTRY_COMPARE_WITH_TIMEOUT(changed.size(), 1, 10'000);
  QCOMPARE(document.sweep().report().options.least, 0.8);
  QVERIFY(near(document.sweep().report().curves[0].footprint.x, 0.2));  // snapkv on a
  for (View* view : views) delete view;
}

void SweepTest::a_cell_opens_its_run() {
  MainWindow window{QString()};
  window.resize(1280, 800);
  window.show();
  QSignalSpy opened(&window, &MainWindow::opened);
  auto* tabs = window.findChild<QTabWidget*>("views");
  const auto tab = [&](const QString& name) {
    return tabs->isTabVisible(tabs->indexOf(find_view(window.views(), name)));
  };
  QVERIFY(!tab("curves") && tab("peak"));
  window.open({real_folder()});
  QTRY_COMPARE_WITH_TIMEOUT(opened.size(), 1, 20'000);
  QVERIFY(tab("curves") && tab("matrix") && tab("cells") && !tab("scores"));
  QVERIFY(!window.views().front()->isVisible());  // no memory over time yet
  SweepState& state = window.document().sweep();
  const Sweep& sweep = *state.sweep();
  const Sweep::Figure& footprint = figure_of(sweep, "footprint_share");
  const Sweep::Figure& retained = figure_of(sweep, "retained_attention_mean_share");
  for (std::size_t c = 1; c < sweep.cells(); c += 3) {
    const std::size_t results = window.document().results().size();
    for (const bool again : {false, true}) {
      state.set_cell(static_cast<int>(c));
      state.open_run();
      QTRY_COMPARE_WITH_TIMEOUT(window.document().results().size(), results + 1, 20'000);
      const auto is_shown = [&] {
        const ShownRun* shown = window.document().current_run();
        return shown != nullptr && figure(shown->run(), "footprint") == footprint.of_cell[c] &&
               retained_mass(shown->run()) == retained.of_cell[c];
      };
      QTRY_VERIFY_WITH_TIMEOUT(is_shown(), 20'000);
      QVERIFY(!again || window.message().isEmpty());
    }
  }
  QVERIFY(window.views().front()->isVisible());
  window.show_view("curves");
  QApplication::processEvents();
  QVERIFY(window.grab().save(picture_folder().filePath("window-sweep.png")));
  // A trace that is gone: the command says what to run.
  window.open({made_folder()});
  QTRY_COMPARE_WITH_TIMEOUT(opened.size(), 2, 20'000);
  state.set_cell(1);
  state.open_run();
  QVERIFY2(window.message().contains("kvspan run /no/such/a.safetensors"),
           qPrintable(window.message()));
}

void SweepTest::every_view_is_exported() {
  for (const bool dark : {false, true}) {
    set_theme(dark);
    const QDir folder(picture_folder().filePath(dark ? "sweep-dark" : "sweep"));
    Settings settings;
    settings.files = {made_folder().toStdString()};
    settings.export_all = folder.path().toStdString();
    settings.where = {"chunk=0"};
    settings.matrix = "method,budget";
    settings.threshold = 80;
    run_exports(settings);
    QCOMPARE(folder.entryList(QDir::Files).size(), 9);
    QFile csv(folder.filePath("curves.csv"));
    QVERIFY(csv.open(QIODevice::ReadOnly));
    const auto lines = parse_csv(csv.readAll().toStdString());
    QCOMPARE(lines.size(), std::size_t{6});
    QCOMPARE(lines[1].back(), std::string("0.8"));
    for (const QString& name : folder.entryList({"*.png"})) {
      const QImage picture(folder.filePath(name));
      QVERIFY2(picture.width() > 300 && picture.height() > 80, qPrintable(name));
    }
  }
  set_theme(false);
  Settings settings;
  settings.files = {small_result().toStdString()};
  settings.exports = {work_folder().filePath("x.png").toStdString()};
  settings.where = {"chunk=0"};
  QVERIFY_THROWS_EXCEPTION(ConfigError, run_exports(settings));  // of no sweep
}

KVSPAN_GUI_TEST(SweepTest, "sweep");

}  // namespace kvspan::gui::test

#include "sweep_test.moc"
