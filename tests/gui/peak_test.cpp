// SPDX-License-Identifier: Apache-2.0
#include <QAbstractItemModelTester>
#include <QComboBox>
#include <QFile>
#include <QLabel>
#include <QSignalSpy>

#include <nlohmann/json.hpp>

#include "gui/model/csv.h"
#include "gui/model/peak_table.h"
#include "gui/model/simulation.h"
#include "gui/paint/theme.h"
#include "gui/views/view.h"
#include "sim/ledger/metrics.h"
#include "sim/report/lifetimes_reader.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

class PeakTest : public QObject {
  Q_OBJECT
 private slots:
  void layers_add_up_to_the_total_of_the_json();
  void layer_by_layer_the_copies_take_the_difference();
  void state_that_an_older_file_does_not_list_is_overhead();
  void a_replay_says_what_was_measured_of_a_peak();
  void the_view_switches_run_phase_and_layout();
};

namespace {

constexpr int kWaitMs = 60'000;
const std::function<bool()> kGoOn = [] { return false; };

std::int64_t sum_of(const PeakParts& parts) {
  std::int64_t sum = parts.state + parts.once;
  for (const PeakParts::Part& part : parts.layers) sum += part.total();
  return sum;
}

QString companion_of(const Result& result, const char* which) {
  const std::string named = (*result.json)["files"][which];
  return QString::fromStdString(companion_path(result.path, named).string());
}

}  // namespace

void PeakTest::layers_add_up_to_the_total_of_the_json() {
  const ResultPtr result = open_result(bundled_result().toStdString());
  QVERIFY(result->lifetimes != nullptr);
  PeakTable table;
  const QAbstractItemModelTester tester(&table);
  for (std::size_t run = 0; run < result->runs.size(); ++run) {
    const nlohmann::json& figures = *result->runs[run].figures;
    for (const std::string& layout : peak_layouts(*result, run)) {
      const nlohmann::json& said =
          layout == "ideal" ? figures["peak_bytes"] : figures["layouts"][layout];
      for (const auto& [phase, key] :
           {std::pair(PeakPhase::peak, "total"), std::pair(PeakPhase::prefill, "prefill"),
            std::pair(PeakPhase::decode, "decode")}) {
        const PeakParts parts = peak_parts(*result, run, layout, phase, kGoOn);
        QCOMPARE(sum_of(parts), said[key].get<std::int64_t>());
        QCOMPARE(parts.rest, std::int64_t{0});
        QCOMPARE(parts.total, said[key].get<std::int64_t>());
        QCOMPARE(parts.row < result->trace.prompt,
                 phase == PeakPhase::prefill ||
                     (phase == PeakPhase::peak && said["prefill"] == said["total"]));
        std::int64_t overhead = parts.state + parts.once;
        for (const PeakParts::Part& part : parts.layers) {
          overhead += part.overhead;
          QVERIFY(part.prompt >= 0 && part.generated >= 0 && part.overhead >= 0);
          if (layout == "ideal") QCOMPARE(part.layout, std::int64_t{0});
          if (parts.row < result->trace.prompt) QCOMPARE(part.generated, std::int64_t{0});
        }
        if (phase == PeakPhase::peak) {
          QCOMPARE(parts.row, said["row"].get<RowIndex>());
          QCOMPARE(overhead, said["overhead"].get<std::int64_t>());
        }
        table.set(parts);
        const int last = table.rowCount() - 1;
        QCOMPARE(table.index(last, PeakTable::kTotal).data(Qt::EditRole).toLongLong(),
                 said[key].get<qlonglong>());
        qlonglong columns = 0;
        for (int c = PeakTable::kPrompt; c <= PeakTable::kOverhead; ++c) {
          columns += table.index(last, c).data(Qt::EditRole).toLongLong();
        }
        QCOMPARE(columns, said[key].get<qlonglong>());
      }
    }
  }
}

void PeakTest::layer_by_layer_the_copies_take_the_difference() {
  SimulationRequest request;
  request.trace = KVSPAN_TRACES_DIR "/smollm2-passkey.safetensors";
  request.specs = {"snapkv"};
  request.budgets = {"80%"};
  request.fidelity = false;
  request.layerwise = true;
  Simulation simulation("layerwise");
  QSignalSpy finished(&simulation, &Simulation::finished);
  simulation.start(request);
  QVERIFY(finished.wait(kWaitMs));
  const auto result = finished[0][0].value<ResultPtr>();
  const PeakParts parts = peak_parts(*result, 0, "ideal", PeakPhase::prefill, kGoOn);
  QCOMPARE(parts.total, (*result->json)["runs"][0]["peak_bytes"]["prefill"].get<std::int64_t>());
  QVERIFY(parts.rest != 0);
  QCOMPARE(parts.total, sum_of(parts) + parts.rest);
  PeakTable table;
  table.set(parts);
  QVERIFY(table.index(table.rowCount() - 2, 0).data().toString().contains("copies"));
}

void PeakTest::state_that_an_older_file_does_not_list_is_overhead() {
  const ResultPtr result = open_result(bundled_result().toStdString());
  // The same file with the tensors of another name, which nobody reads.
  QFile file(companion_of(*result, "lifetimes"));
  QVERIFY(file.open(QIODevice::ReadOnly));
  QByteArray bytes = file.readAll();
  QVERIFY(bytes.contains(".state\""));
  bytes.replace(".state\"", ".stats\"");
  const QString path = work_folder().filePath("older.lifetimes.safetensors");
  QFile older(path);
  QVERIFY(older.open(QIODevice::WriteOnly) && older.write(bytes) == bytes.size());
  older.close();
  Result bare = *result;
  bare.lifetimes = open_result(path.toStdString())->lifetimes;
  std::int64_t most = 0;
  for (std::size_t run = 0; run < result->runs.size(); ++run) {
    QVERIFY(bare.lifetimes->state(static_cast<int>(run)).empty());
    for (const PeakPhase phase : {PeakPhase::peak, PeakPhase::prefill, PeakPhase::decode}) {
      const PeakParts known = peak_parts(*result, run, "ideal", phase, kGoOn);
      const PeakParts parts = peak_parts(bare, run, "ideal", phase, kGoOn);
      QCOMPARE(parts.total, known.total);
      QCOMPARE(parts.state, known.state);
      QCOMPARE(parts.rest, std::int64_t{0});
      most = std::max(most, parts.state);
    }
  }
  QVERIFY(most > 0);
}

void PeakTest::a_replay_says_what_was_measured_of_a_peak() {
  QFile file(bundled_result());
  QVERIFY(file.open(QIODevice::ReadOnly));
  nlohmann::json replay = nlohmann::json::parse(file.readAll().toStdString());
  const nlohmann::json run = replay["runs"][2], full = replay["runs"][0];
  const auto layout_of = [](const nlohmann::json& predicted, std::int64_t backed) {
    return nlohmann::json{
        {"predicted", predicted},
        {"measured", predicted},
        {"most_backed", {{"backed", backed}, {"row", predicted["row"]}, {"measured", nullptr}}},
        {"out_of_memory", nullptr}};
  };
  const nlohmann::json& blocks = run["layouts"]["paged16_per_head"];
  const std::int64_t total = blocks["total"];
  nlohmann::json other = full["layouts"]["padded"];
  other["total"] = other["total"].get<std::int64_t>() + 1;  // as of another accounting
  replay["trace"]["layer_ids"] = nlohmann::json::array({0});
  replay["device"] = {{"name", "host"}, {"granule", 4096}, {"limit", nullptr}};
  replay["runs"] =
      nlohmann::json::array({{{"policy", run["policy"]},
                              {"label", run["label"]},
                              {"layouts", {{"paged16_per_head", layout_of(blocks, total + 388)}}}},
                             {{"policy", full["policy"]},
                              {"label", full["label"]},
                              {"layouts", {{"padded", layout_of(other, total)}}}}});
  const QString path = work_folder().filePath("peak-replay.json");
  QFile written(path);
  QVERIFY(written.open(QIODevice::WriteOnly));
  written.write(QByteArray::fromStdString(replay.dump()));
  written.close();

  Document document;
  document.add(open_result(bundled_result().toStdString()));
  const auto measured = [&](std::size_t of, const char* layout, PeakPhase phase) {
    return measured_peak(document.runs(), document.runs()[of], layout, phase);
  };
  QVERIFY(!measured(2, "paged16_per_head", PeakPhase::peak));
  document.add(open_result(path.toStdString()));
  QCOMPARE(measured(2, "paged16_per_head", PeakPhase::peak), total + 388);
  QCOMPARE(measured(2, "paged16_per_head", PeakPhase::decode),
           blocks["decode"].get<std::int64_t>());  // used: what was backed is known of the whole
  QVERIFY(!measured(2, "padded", PeakPhase::peak));
  QVERIFY(!measured(1, "paged16_per_head", PeakPhase::peak));
  QVERIFY(!measured(0, "padded", PeakPhase::peak));
}

void PeakTest::the_view_switches_run_phase_and_layout() {
  Document document;
  QWidget window;
  View* view = make_peak_view(document, &window);
  view->resize(920, 300);
  view->grab();  // nothing is open
  const ResultPtr result = open_result(bundled_result().toStdString());
  document.add(result);
  document.set_current(3);  // chunked(snapkv)
  QTRY_VERIFY_WITH_TIMEOUT(view->is_ready(), kWaitMs);
  auto* phase = view->findChild<QComboBox*>("phase");
  auto* layout = view->findChild<QComboBox*>("layout");
  const nlohmann::json& figures = *document.current_run()->run().figures;
  const auto total = [&] {
    const auto lines = parse_csv(view->csv());
    return std::stoll(lines.back()[PeakTable::kTotal]);
  };
  QCOMPARE(total(), figures["peak_bytes"]["total"].get<long long>());
  layout->setCurrentText("paged16_per_layer");
  phase->setCurrentIndex(2);
  QTRY_VERIFY_WITH_TIMEOUT(view->is_ready(), kWaitMs);
  QCOMPARE(total(), figures["layouts"]["paged16_per_layer"]["decode"].get<long long>());
  QCOMPARE(parse_csv(view->csv()).size(), std::size_t{5});  // names, three layers, total
  document.set_current(2);
  QCOMPARE(layout->currentText(), QString("paged16_per_layer"));  // stays
  QTRY_VERIFY_WITH_TIMEOUT(view->is_ready(), kWaitMs);
  for (const bool dark : {false, true}) {
    set_theme(dark);
    QCoreApplication::processEvents();
    QTRY_VERIFY_WITH_TIMEOUT(view->is_ready(), kWaitMs);
    const QString end = dark ? "-dark.png" : ".png";
    view->resize(920, 300);
    QVERIFY(view->grab().save(picture_folder().filePath("peak" + end)));
    export_view(*view, picture_folder().filePath("peak-large" + end), {1280, 800}, 1);
  }
  set_theme(false);
  // Without lifetimes: the total, and how to get the rest.
  Result bare = *result;
  bare.path = "bare.json";
  bare.lifetimes = nullptr;
  document.close(result);
  document.add(std::make_shared<const Result>(bare));
  QVERIFY(view->findChild<QLabel*>("note")->text().contains("--lifetimes"));
  QCOMPARE(parse_csv(view->csv()).size(), std::size_t{2});
}

KVSPAN_GUI_TEST(PeakTest, "peak");

}  // namespace kvspan::gui::test

#include "peak_test.moc"
