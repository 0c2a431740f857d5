// SPDX-License-Identifier: Apache-2.0
#include <QAbstractItemModelTester>
#include <QComboBox>
#include <QFile>
#include <QLabel>
#include <QLineEdit>
#include <QListWidget>
#include <QPushButton>
#include <QSignalSpy>
#include <QSlider>
#include <QSpinBox>
#include <QTabWidget>
#include <QTableView>
#include <filesystem>
#include <set>

#include <nlohmann/json.hpp>

#include "gui/model/policy_form.h"
#include "gui/model/simulation.h"
#include "gui/paint/theme.h"
#include "gui/window/simulate_panel.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_reader.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

class SimulateTest : public QObject {
  Q_OBJECT
 private slots:
  void every_policy_has_a_form_whose_spec_it_reads_back();
  void forms_say_what_is_wrong();
  void the_numbers_are_those_of_a_run_on_the_command_line();
  void results_appear_as_they_finish();
  void cancelling_keeps_what_is_finished();
  void errors_are_one_line();
  void saved_results_stand_alone();
  void of_slider_positions_the_latest_wins();
  void knobs_are_found_where_specs_have_them();
  void the_panel_runs_cancels_and_slides();
  void long_words_do_not_widen_the_panel();
};

namespace {

constexpr int kWaitMs = 60'000;

SimulationRequest small_request() {
  SimulationRequest request;
  request.trace = KVSPAN_TRACES_DIR "/smollm2-passkey.safetensors";
  request.specs = {"streaming_llm"};
  request.budgets = {"20%"};
  request.prompt = 512;
  request.chunk = 128;
  request.fidelity = false;
  return request;
}

QString trace_copy(const QString& name) {
  const QString path = work_folder().filePath(name);
  QFile::copy(KVSPAN_TRACES_DIR "/smollm2-passkey.safetensors", path);
  return path;
}

QString text_of(const std::filesystem::path& path) {
  QFile file(QString::fromStdString(path.string()));
  return file.open(QIODevice::ReadOnly) ? QString::fromUtf8(file.readAll()) : QString();
}

}  // namespace

void SimulateTest::every_policy_has_a_form_whose_spec_it_reads_back() {
  PolicyList list;
  const QAbstractItemModelTester list_tester(&list);
  PolicyForm form;
  const QAbstractItemModelTester tester(&form);
  PolicyForm again;
  for (const PolicyEntry& entry : registry()) {
    const QString name = QString::fromStdString(entry.name);
    if (entry.wrapper) {
      form.set_policy("snapkv");
      form.set_wrapper(name);
    } else {
      QVERIFY(list.find(name).isValid());
      form.set_wrapper("");
      form.set_policy(name);
      QCOMPARE(form.spec(), name);
      QCOMPARE(form.rowCount(), static_cast<int>(entry.parameters.size()));
    }
    // One value that is not the default's, in every row that has one.
    for (int row = 0; row < form.rowCount(); ++row) {
      const Parameter& p = form.parameter(row);
      const QString value = !p.words().empty() ? QString::fromStdString(p.words().back())
                            : p.kind == Parameter::Kind::text ? "a file, with {odd} name"
                                                              : "17";
      QVERIFY(form.setData(form.index(row, PolicyForm::kValue), value));
      QVERIFY(again.set_spec(form.spec()));
      QCOMPARE(again.spec(), form.spec());
      QVERIFY(again.index(row, PolicyForm::kValue).data().toString() == value);
    }
  }
  QVERIFY(!again.set_spec("pyramid+snapkv"));
  QVERIFY(!again.set_spec("snapkv(budget={5%,10%})"));
  QVERIFY(!again.set_spec("snapkv(nonsense=1)"));
  QVERIFY(!again.set_spec("snapkv("));
  QCOMPARE(again.spec(), form.spec());
}

void SimulateTest::forms_say_what_is_wrong() {
  QCOMPARE(spec_error("snapkv(budget=10%)", std::nullopt), QString());
  QVERIFY(spec_error("snapvk", std::nullopt).contains("snapkv"));
  QVERIFY(spec_error("snapkv(kernel=-1)", std::nullopt).contains("kernel"));
  const Trace trace = Trace::open(small_request().trace);
  const Geometry geometry = geometry_of(trace, small_request().options());
  QCOMPARE(spec_error("snapkv(budget={5%,10%})", geometry), QString());
  QVERIFY(!spec_error("pyramid", geometry).isEmpty());  // needs scores of another policy
  QVERIFY(!spec_error("@/no/such/list.json", geometry).isEmpty());
}

void SimulateTest::the_numbers_are_those_of_a_run_on_the_command_line() {
  // What bundled_result() runs in one pass is run here in batches.
  SimulationRequest request = small_request();
  request.specs = {"full", "streaming_llm", "h2o", "chunked(snapkv)", "quest", "kivi"};
  request.fidelity = true;
  request.fidelity_rows = 64;
  Simulation simulation("equal");
  QSignalSpy finished(&simulation, &Simulation::finished);
  simulation.start(request);
  QVERIFY(finished.wait(kWaitMs));
  const auto result = finished[0][0].value<ResultPtr>();
  const ResultPtr other = open_result(bundled_result().toStdString());
  QCOMPARE(result->runs.size(), other->runs.size());
  QVERIFY((*result->json)["runs"] == (*other->json)["runs"]);
  QVERIFY((*result->json)["accounting"] == (*other->json)["accounting"]);
  QCOMPARE(result->trace.sha256, other->trace.sha256);
  QCOMPARE(result->warnings.size(), std::size_t{0});
  for (std::size_t r = 0; r < result->runs.size(); ++r) {
    QVERIFY(!result->runs[r].heads_over_time.empty());  // the timeline file is there
  }
  const auto lifetimes = LifetimesFile::open((*result->json)["files"]["lifetimes"]);
  QCOMPARE(lifetimes.runs().size(), result->runs.size());
}

void SimulateTest::results_appear_as_they_finish() {
  SimulationRequest request = small_request();
  request.budgets = {"5%", "10%", "20%", "40%", "80%"};
  Simulation simulation("grows");
  QSignalSpy grown(&simulation, &Simulation::grown);
  QSignalSpy finished(&simulation, &Simulation::finished);
  QSignalSpy progressed(&simulation, &Simulation::progressed);
  Document document;
  connect(&simulation, &Simulation::grown, &document,
          [&](const ResultPtr& result) { document.add(result); });
  simulation.start(request);
  QVERIFY(finished.wait(kWaitMs));
  QCOMPARE(grown.size(), 3);  // after 1, 3 and 5
  int last = 0;
  for (const auto& arguments : grown) {
    const int runs = static_cast<int>(arguments[0].value<ResultPtr>()->runs.size());
    QCOMPARE(arguments[1].toInt(), runs);
    QCOMPARE(arguments[2].toInt(), 5);
    QVERIFY(runs > last);
    last = runs;
  }
  QCOMPARE(document.runs().size(), std::size_t{5});  // replaced, not added to
  QCOMPARE(document.results().size(), std::size_t{1});
  std::set<int> colours;
  for (const ShownRun& run : document.runs()) colours.insert(run.colour);
  QCOMPARE(colours.size(), std::size_t{5});
  double share = 0;
  for (const auto& arguments : progressed) {
    QVERIFY(arguments[0].toDouble() >= 0 && arguments[0].toDouble() <= 1);
    share = std::max(share, arguments[0].toDouble());
  }
  QCOMPARE(share, 1.0);
}

void SimulateTest::cancelling_keeps_what_is_finished() {
  SimulationRequest request = small_request();
  request.specs = {"full", "all"};
  request.fidelity = true;
  Simulation simulation("cancelled");
  QSignalSpy cancelled(&simulation, &Simulation::cancelled);
  QSignalSpy finished(&simulation, &Simulation::finished);
  QSignalSpy grown(&simulation, &Simulation::grown);
  simulation.start(request);
  QVERIFY(grown.wait(kWaitMs));
  simulation.cancel();
  QVERIFY(!simulation.busy());
  QCOMPARE(cancelled.size(), 1);
  QTest::qWait(200);
  QCOMPARE(finished.size(), 0);
  const auto kept = grown[0][0].value<ResultPtr>();
  QCOMPARE(kept->runs.size(), std::size_t{1});
  QCOMPARE(open_result(kept->path)->runs[0].policy, kept->runs[0].policy);
  simulation.start(small_request());  // and it can go on
  QVERIFY(finished.wait(kWaitMs));
}

void SimulateTest::errors_are_one_line() {
  const QString cut = trace_copy("cut.safetensors");
  QVERIFY(QFile::resize(cut, 100'000));
  struct Case {
    std::string trace, spec, budget;
    RowIndex prompt;
    const char* said;
  };
  const std::string good = small_request().trace;
  for (const Case& c :
       {Case{"/no/such/trace.safetensors", "full", "", 0, "/no/such"},
        Case{cut.toStdString(), "full", "", 0, "cut.safetensors"},
        Case{good, "snapvk", "", 0, "snapkv"}, Case{good, "snapkv", "minus", 0, "minus"},
        Case{good, "full", "", 100'000, "100000"}, Case{good, "", "", 0, ""}}) {
    SimulationRequest request = small_request();
    request.trace = c.trace;
    request.specs = {c.spec};
    request.budgets.clear();
    if (c.budget[0] != '\0') request.budgets = {c.budget};
    request.prompt = c.prompt;
    Simulation simulation("wrong");
    QSignalSpy failed(&simulation, &Simulation::failed);
    simulation.start(request);
    QVERIFY(failed.wait(kWaitMs));
    const QString line = failed[0][0].toString();
    QVERIFY2(line.contains(c.said) && !line.isEmpty() && !line.contains('\n'), qPrintable(line));
    QVERIFY(!simulation.busy());
  }
}

void SimulateTest::saved_results_stand_alone() {
  std::filesystem::path gone;
  const auto target = std::filesystem::path(work_folder().path().toStdString()) / "kept";
  nlohmann::json runs;
  {
    Simulation simulation("to save");
    QSignalSpy finished(&simulation, &Simulation::finished);
    simulation.start(small_request());
    QVERIFY(finished.wait(kWaitMs));
    const auto result = finished[0][0].value<ResultPtr>();
    runs = (*result->json)["runs"];
    save_result(*result, target);
    QVERIFY_THROWS_EXCEPTION(Error, save_result(*result, "/no/such/folder/kept.json"));
    for (const char* end : {".json", ".timeline.safetensors", ".lifetimes.safetensors"}) {
      std::filesystem::remove(std::filesystem::path(result->path).replace_extension(end));
    }
  }
  const ResultPtr saved = open_result(target.string() + ".json");
  QVERIFY((*saved->json)["runs"] == runs);
  QVERIFY(!timelines_of(QString::fromStdString(target.string() + ".json"))[0]["row"].empty());
  QCOMPARE((*saved->json)["files"]["timeline"].get<std::string>(),
           target.string() + ".timeline.safetensors");
  QVERIFY(saved->warnings.empty());
  QVERIFY(!saved->runs[0].heads_over_time.empty());
  QVERIFY(text_of(target.string() + ".json").contains("kept.lifetimes.safetensors"));
}

void SimulateTest::of_slider_positions_the_latest_wins() {
  LiveSimulation live("slider");
  QSignalSpy shown(&live, &LiveSimulation::shown);
  SimulationRequest request = small_request();
  for (int budget = 10; budget < 60; ++budget) {
    request.budgets = {std::to_string(budget)};
    live.show(request, true);
  }
  request.budgets = {"60"};
  live.show(request, false);
  QTRY_VERIFY_WITH_TIMEOUT(!live.busy(), kWaitMs);
  QCOMPARE(shown.size(), 2);  // the one that ran, and the one that waited
  QCOMPARE(shown[0][1].toBool(), true);
  QCOMPARE(shown[1][1].toBool(), false);
  // Only what rests is worth scores and reads on the disk: 12 bytes an entry and more.
  const auto plain = [](const SimulationRequest& of) {
    return !of.options().keep_scores && of.options().keep_reads == 0 && !of.options().fidelity;
  };
  QVERIFY(!plain(request));
  request.coarse = true;
  QVERIFY(plain(request));
  const auto last = shown[1][0].value<ResultPtr>();
  QCOMPARE(last->runs[0].label, std::string("streaming_llm(budget=60)"));
}

void SimulateTest::knobs_are_found_where_specs_have_them() {
  const Trace trace = Trace::open(small_request().trace);
  const Geometry geometry = geometry_of(trace, small_request().options());
  const auto tunable = make_tunable(parse_spec("chunked(snapkv(budget=20%))"), geometry);
  QVERIFY(tunable.has_value());
  // A share of each chunk, in steps of 0.01 %, is another method than so many entries in all.
  QCOMPARE(knob_position(*tunable, 512), TokenCount{2000});
  QCOMPARE(to_text(tunable->at(1250)), std::string("chunked(snapkv(budget=12.5%))"));
  QCOMPARE(knob_text(*tunable, 1250, 512), QString("budget 12.5%"));
  const auto finer = make_tunable(parse_spec("chunked(snapkv(budget=12.50%))"), geometry);
  QCOMPARE(knob_position(*finer, 512), TokenCount{1250});
  const auto total = make_tunable(parse_spec("chunked(snapkv(budget=102))"), geometry);
  QCOMPARE(knob_position(*total, 512), TokenCount{102});
  QCOMPARE(to_text(total->at(64)), std::string("chunked(snapkv(budget=64))"));
  QCOMPARE(knob_text(*total, 128, 512), QString("budget 128 (25 % of the prompt)"));
  const auto plain = make_tunable(parse_spec("snapkv(budget=20%)"), geometry);
  QCOMPARE(knob_position(*plain, 512), TokenCount{102});
  QVERIFY(!make_tunable(parse_spec("full"), geometry).has_value());
  for (const RecipeSpec& spec : all_policies()) {
    const auto any = make_tunable(spec, geometry);
    if (!any) continue;
    const TokenCount position = knob_position(*any, 512);
    QVERIFY(position >= any->knob.lowest && position <= any->knob.highest);
    QVERIFY(!knob_text(*any, position, 512).isEmpty());
  }
}

void SimulateTest::the_panel_runs_cancels_and_slides() {
  Document document;
  QWidget window;
  auto* panel = new SimulatePanel(document, &window);
  panel->resize(340, 800);
  window.resize(340, 800);
  window.show();
  QSignalSpy finished(panel, &SimulatePanel::finished);
  QSignalSpy failed(panel, &SimulatePanel::failed);
  auto* search = panel->findChild<QLineEdit*>("search");
  auto* spec = panel->findChild<QLineEdit*>("specification");
  auto* list = panel->findChild<QListWidget*>("runs");
  auto* message = panel->findChild<QLabel*>("message");
  auto* form = panel->findChild<QTableView*>("parameters");

  window.activateWindow();
  QVERIFY(QTest::qWaitForWindowActive(&window));
  search->setFocus();
  QTest::keyClick(search, Qt::Key_Return, Qt::ControlModifier);
  QVERIFY(message->text().contains("trace"));
  panel->set_trace(QString::fromStdString(small_request().trace));
  QTRY_COMPARE(panel->recent_traces().size(), 1);

  QTest::keyClicks(search, "streaming_llm");
  QCOMPARE(spec->text(), QString("streaming_llm"));
  const auto* model = form->model();
  QCOMPARE(model->index(2, PolicyForm::kName).data().toString(), QString("budget"));
  form->setCurrentIndex(model->index(2, PolicyForm::kValue));
  auto* editor = form->viewport()->findChild<QLineEdit*>();
  QVERIFY(editor != nullptr);
  editor->selectAll();
  QTest::keyClicks(editor, "30%");
  QTest::keyClick(editor, Qt::Key_Return);
  QTRY_COMPARE(spec->text(), QString("streaming_llm(budget=30%)"));
  auto* add = panel->findChild<QPushButton*>("add_to_list");
  QTRY_VERIFY(add->isEnabled());
  QTest::mouseClick(add, Qt::LeftButton);
  QCOMPARE(list->count(), 1);
  // What cannot be is refused before it is on the list.
  spec->selectAll();
  QTest::keyClicks(spec, "pyramid");
  QTRY_VERIFY(!add->isEnabled());
  spec->selectAll();
  QTest::keyClicks(spec, "chunked(snapkv)");
  QTRY_VERIFY(add->isEnabled());
  QTest::keyClick(spec, Qt::Key_Return);
  QCOMPARE(list->count(), 2);
  QCOMPARE(panel->findChild<QComboBox*>("wrapper")->currentData().toString(), QString("chunked"));
  auto* budgets = panel->findChild<QLineEdit*>("budgets");
  auto* budgets_note = panel->findChild<QLabel*>("budgets_note");
  QVERIFY(budgets_note->isHidden());
  budgets->setText("5%");
  QVERIFY(!budgets_note->isHidden());
  QVERIFY2(budgets_note->text().startsWith("1 of 2 policies"), qPrintable(budgets_note->text()));
  budgets->clear();
  QVERIFY(budgets_note->isHidden());
  panel->findChild<QSpinBox*>("prompt")->setValue(512);
  panel->findChild<QSpinBox*>("chunk")->setValue(128);
  auto* rows = panel->findChild<QComboBox*>("rows_measured");
  rows->setCurrentText("64 rows");
  const auto picture = [&](const QString& name) {
    for (const bool dark : {false, true}) {
      set_theme(dark);
      QCoreApplication::processEvents();
      QVERIFY(panel->grab().save(picture_folder().filePath(name + (dark ? "-dark.png" : ".png"))));
    }
    set_theme(false);
  };
  picture("simulate");
  QTest::keyClick(list, Qt::Key_Return, Qt::ControlModifier);
  QVERIFY(finished.wait(kWaitMs));
  QCOMPARE(document.runs().size(), std::size_t{2});
  QCOMPARE(document.runs()[0].run().label, std::string("streaming_llm(budget=30%)"));
  list->setCurrentRow(0);
  list->setFocus();
  QTest::keyClick(list, Qt::Key_Delete);
  QCOMPARE(list->count(), 1);

  // The trace vanishes: a message, and nothing else changes.
  const QString lost = trace_copy("lost.safetensors");
  panel->set_trace(lost);
  QTRY_COMPARE(panel->recent_traces().size(), 2);
  QVERIFY(QFile::remove(lost));
  panel->run();
  QVERIFY(failed.wait(kWaitMs));
  QVERIFY(message->text().contains("lost.safetensors"));
  QCOMPARE(document.runs().size(), std::size_t{2});
  panel->set_trace(QString::fromStdString(small_request().trace));

  // The sliders run the current run again, as a result of its own.
  document.set_current(1);
  panel->findChild<QTabWidget*>()->setCurrentIndex(1);
  auto* budget = panel->findChild<QSlider*>("budget_slider");
  auto* what = panel->findChild<QLabel*>("what_message");
  QTRY_VERIFY(budget->isEnabled());
  budget->setSliderDown(true);
  budget->setValue(budget->value() + 40);
  QTRY_VERIFY_WITH_TIMEOUT(what->text().contains("coarse"), kWaitMs);
  QCOMPARE(document.runs().size(), std::size_t{3});
  const int colour = document.runs()[2].colour;
  QCOMPARE(document.current(), 2);
  QVERIFY(!figure(document.runs()[2].run(), "fidelity.rows_measured").has_value());
  budget->setSliderDown(false);  // released
  QTRY_VERIFY_WITH_TIMEOUT(what->text().contains("measured"), kWaitMs);
  QVERIFY(figure(document.runs()[2].run(), "fidelity.rows_measured").has_value());
  QVERIFY(document.runs()[2].run().policy != document.runs()[1].run().policy);
  budget->setValue(budget->value() - 40);  // back where it was bound
  QTRY_VERIFY_WITH_TIMEOUT(document.runs()[2].run().policy == document.runs()[1].run().policy,
                           kWaitMs);
  auto* chunk = panel->findChild<QSlider*>("chunk_slider");
  chunk->setFocus();
  QTest::keyClick(chunk, Qt::Key_Right);
  QTRY_VERIFY_WITH_TIMEOUT(document.current_run()->result->chunk != 128, kWaitMs);
  QTRY_VERIFY_WITH_TIMEOUT(!panel->busy() && what->text().contains("measured"), kWaitMs);
  QCOMPARE(document.runs().size(), std::size_t{3});
  QCOMPARE(document.runs()[2].colour, colour);
  QCOMPARE(document.runs()[2].run().policy, document.runs()[1].run().policy);  // the chunk only
  QCOMPARE(document.runs()[1].run().label, std::string("chunked(snapkv)"));
  picture("what-if");

  // Closed, its files are gone.
  const ResultPtr first = document.runs()[0].result;
  QVERIFY(std::filesystem::exists(first->path));
  document.close(first);
  QVERIFY(!std::filesystem::exists(first->path));
  QVERIFY(std::filesystem::exists(document.runs()[0].result->path));  // of the sliders

  // Destroyed while it runs.
  panel->findChild<QTabWidget*>()->setCurrentIndex(0);
  panel->run();
  delete panel;
}

void SimulateTest::long_words_do_not_widen_the_panel() {
  Document document;
  SimulatePanel panel(document, nullptr);
  panel.resize(340, 800);
  panel.show();
  auto* spec = panel.findChild<QLineEdit*>("specification");
  const auto* page = spec->parentWidget();
  const int wide = page->width();
  const QString word(300, 'w');
  spec->setFocus();
  QTest::keyClicks(spec, word);
  const auto said = [&] {
    for (const QLabel* label : page->findChildren<QLabel*>()) {
      if (label->text().remove(QChar(0x200B)).contains(word)) return true;
    }
    return false;
  };
  QTRY_VERIFY(said());
  QCoreApplication::processEvents();
  QCOMPARE(page->width(), wide);
  QVERIFY(wide <= 340);
}

KVSPAN_GUI_TEST(SimulateTest, "simulate");

}  // namespace kvspan::gui::test

#include "simulate_test.moc"
