// SPDX-License-Identifier: Apache-2.0
#include <QAbstractItemModelTester>
#include <QCheckBox>
#include <QComboBox>
#include <cmath>

#include <nlohmann/json.hpp>

#include "gui/model/csv.h"
#include "gui/model/head_table.h"
#include "gui/paint/theme.h"
#include "gui/views/view.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

class HeadsTest : public QObject {
  Q_OBJECT
 private slots:
  void the_table_equals_the_json();
  void clicks_and_arrows_select_everywhere();
  void eighty_layers_of_64_heads_fit();
};

namespace {

constexpr HeadFigure kAll[] = {HeadFigure::footprint, HeadFigure::peak_kv,
                               HeadFigure::retained_mass};

// A result of as many layers and heads as a large model has; only what the table reads.
ResultPtr large_result() {
  auto root = std::make_shared<nlohmann::json>();
  auto result = std::make_shared<Result>();
  result->path = "large.json";
  result->trace.tokens = result->trace.prompt = 100;
  nlohmann::json layers = nlohmann::json::array();
  for (int l = 0; l < 80; ++l) {
    result->trace.layer_ids.push_back(l);
    nlohmann::json heads = nlohmann::json::array();
    for (int h = 0; h < 64; ++h) heads.push_back(0.5 + 0.5 * std::sin(0.1 * l) * std::cos(0.2 * h));
    layers.push_back(heads);
  }
  (*root)["per_head"]["footprint"] = layers;
  Run run;
  run.policy = run.label = "large";
  run.heads = 64;
  run.figures = root.get();
  result->runs.push_back(run);
  result->json = root;
  return result;
}

}  // namespace

void HeadsTest::the_table_equals_the_json() {
  Document document;
  document.add(open_result(bundled_result().toStdString()));
  HeadTable table;
  const QAbstractItemModelTester tester(&table);
  const ShownRun& base = document.runs()[0];
  for (const ShownRun& shown : document.runs()) {
    for (const HeadFigure figure : kAll) {
      const auto& values = (*shown.run().figures)["per_head"][head_key(figure)];
      const auto& others = (*base.run().figures)["per_head"][head_key(figure)];
      table.set(&shown, nullptr, figure);
      QCOMPARE(table.layers(), 3);
      QCOMPARE(table.heads(), static_cast<int>(values[0].size()));
      double sum = 0;
      for (int l = 0; l < 3; ++l) {
        for (int h = 0; h < table.heads(); ++h) {
          QCOMPARE(table.index(l, h).data(Qt::EditRole).toDouble(),
                   values.at(kvspan::index(l)).at(kvspan::index(h)).get<double>());
          sum += values.at(kvspan::index(l)).at(kvspan::index(h)).get<double>();
        }
      }
      QVERIFY(std::abs(table.mean(-1, -1) - sum / (3 * table.heads())) < 1e-12);
      table.set(&shown, &base, figure);
      QCOMPARE(table.is_difference(), values[0].size() == others[0].size());
      if (table.is_difference()) {
        QCOMPARE(table.at(2, 1), values[2][1].get<double>() - others[2][1].get<double>());
      }
    }
  }
  QCOMPARE(table.headerData(0, Qt::Vertical).toString(), QString("layer 14"));
  table.set(nullptr, nullptr, HeadFigure::footprint);
  QCOMPARE(table.rowCount(), 0);
}

void HeadsTest::clicks_and_arrows_select_everywhere() {
  Document document;
  QWidget window;
  View* view = make_head_view(document, &window);
  view->resize(920, 300);
  view->grab();  // nothing is open
  QVERIFY(view->csv() == "layer\n");
  document.add(open_result(bundled_result().toStdString()));
  document.set_current(2);  // h2o
  view->grab();
  QWidget* map = nullptr;
  for (QWidget* child : view->findChildren<QWidget*>()) {
    if (child->accessibleName() == "layers and heads") map = child;
  }
  QVERIFY(map != nullptr);
  QTest::keyClick(map, Qt::Key_Home);
  QCOMPARE(document.focus(), (Focus{0, 0, -1}));
  QTest::keyClick(map, Qt::Key_Down);
  QTest::keyClick(map, Qt::Key_Right);
  QCOMPARE(document.focus(), (Focus{1, 1, -1}));
  QTest::keyClick(map, Qt::Key_Escape);
  QCOMPARE(document.focus(), (Focus{-1, -1, -1}));
  QTest::mouseClick(map, Qt::LeftButton, {}, QPoint(90, 40));
  QCOMPARE(document.focus(), (Focus{0, 0, -1}));
  // Query heads select the stored head that they share.
  auto* figure = view->findChild<QComboBox*>("figure");
  figure->setCurrentIndex(2);
  QCOMPARE(document.display().head_figure, HeadFigure::retained_mass);
  QTest::keyClick(map, Qt::Key_End);
  QCOMPARE(document.focus(), (Focus{2, 2, -1}));
  // The numbers of the CSV are those that are shown.
  const auto lines = parse_csv(view->csv());
  QCOMPARE(lines.size(), std::size_t{4});
  QCOMPARE(lines[0].size(), std::size_t{10});
  const auto& mass = (*document.runs()[2].run().figures)["per_head"]["retained_mass"];
  QCOMPARE(lines[3][0], std::string("26"));
  QCOMPARE(lines[3][9], csv_field(mass[2][8].get<double>()));
  for (const bool dark : {false, true}) {
    set_theme(dark);
    QCoreApplication::processEvents();
    const QString end = dark ? "-dark.png" : ".png";
    figure->setCurrentIndex(2);
    view->resize(920, 300);
    QVERIFY(view->grab().save(picture_folder().filePath("heads" + end)));
    view->findChild<QCheckBox*>("difference")->setChecked(true);
    QVERIFY(view->grab().save(picture_folder().filePath("heads-difference" + end)));
    view->findChild<QCheckBox*>("difference")->setChecked(false);
    figure->setCurrentIndex(0);
    export_view(*view, picture_folder().filePath("heads-large" + end), {1280, 800}, 1);
  }
  set_theme(false);
}

void HeadsTest::eighty_layers_of_64_heads_fit() {
  Document document;
  document.add(large_result());
  QWidget window;
  View* view = make_head_view(document, &window);
  view->resize(920, 300);
  QVERIFY(view->grab().save(picture_folder().filePath("heads-80x64.png")));
  export_view(*view, picture_folder().filePath("heads-80x64-large.png"), {1280, 800}, 1);
  QCOMPARE(parse_csv(view->csv()).size(), std::size_t{81});
}

KVSPAN_GUI_TEST(HeadsTest, "heads");

}  // namespace kvspan::gui::test

#include "heads_test.moc"
