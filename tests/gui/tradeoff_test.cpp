// SPDX-License-Identifier: Apache-2.0
#include "gui/model/tradeoff.h"

#include <QAbstractItemModelTester>
#include <QComboBox>
#include <QDoubleSpinBox>
#include <QLabel>
#include <QTableView>
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include <nlohmann/json.hpp>

#include "gui/model/csv.h"
#include "gui/paint/theme.h"
#include "gui/views/view.h"
#include "sim/report/run_names.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

class TradeoffTest : public QObject {
  Q_OBJECT
 private slots:
  void families_differ_in_more_than_numbers();
  void front_and_critical_footprints_equal_a_search_of_all_pairs();
  void another_trace_is_another_front();
  void what_overlaps_is_not_ranked();
  void a_frontier_is_that_of_its_result();
  void regrets_are_those_of_the_json();
  void chunk_sizes_are_families_of_one_front();
  void points_are_those_of_the_json();
  void the_view_opens_runs_by_key_and_click();
};

namespace {

// A sweep of random figures: ties are likely, some runs are bounds, some were not measured.
// intervals: about half of the runs are of a score trace.
ResultPtr random_sweep(unsigned seed, bool intervals = false) {
  std::mt19937 random(seed);
  const auto share = [&] { return static_cast<double>(1 + random() % 20) / 20; };
  auto json = std::make_shared<nlohmann::json>(nlohmann::json::array());
  auto result = std::make_shared<Result>();
  result->path = "sweep.json";
  result->trace.tokens = 100;
  result->trace.prompt = 50;
  const char* const names[] = {"snapkv", "h2o", "tova", "oracle"};
  for (int i = 0; i < 40; ++i) {
    Run run;
    const std::size_t which = random() % 4;
    run.policy = run.label =
        std::string(names[which]) + "(budget=" + std::to_string(random() % 1000) + ")";
    run.bound = which == 3;
    nlohmann::json figures{{"footprint", share()}};
    if (random() % 8 != 0) {
      nlohmann::json& mass = figures["fidelity"]["decode"]["retained_mass"];
      mass = {{"mean", share()}, {"p5", share()}};
      if (intervals && random() % 2 != 0) {
        for (const char* of : {"mean", "p5"})
          mass["upper"][of] = mass[of].get<double>() + share() / 5;
      }
      figures["fidelity"]["decode"]["output_error"] = {{"mean", share()}};
    }
    json->push_back(figures);
    result->runs.push_back(run);
  }
  for (std::size_t i = 0; i < result->runs.size(); ++i) result->runs[i].figures = &(*json)[i];
  result->json = json;
  return result;
}

}  // namespace

void TradeoffTest::families_differ_in_more_than_numbers() {
  QCOMPARE(method_of("h2o(heavy=64,recent=64)"), method_of("h2o(heavy=128,recent=9)"));
  QCOMPARE(method_of("snapkv(budget=12.5%)"), method_of("snapkv(budget=512)"));
  QVERIFY(method_of("snapkv(pool=max)") != method_of("snapkv(pool=avg)"));
  QVERIFY(method_of("mine1(budget=5)") != method_of("mine2(budget=5)"));
}

void TradeoffTest::front_and_critical_footprints_equal_a_search_of_all_pairs() {
  for (unsigned seed = 1; seed <= 50; ++seed) {
    Document document;
    document.add(random_sweep(seed, seed % 2 == 0));
    document.set_visible(seed % 40, false);
    const double threshold = 0.5 + 0.01 * seed;
    const auto figure = static_cast<FidelityFigure>(seed % 3);
    const Tradeoff t = make_tradeoff(document.runs(), figure, threshold);
    std::size_t visible = 0;
    for (const ShownRun& shown : document.runs()) visible += shown.visible ? 1 : 0;
    QCOMPARE(t.points.size() + t.unmeasured, visible);
    std::map<std::string, std::optional<double>> least, possible;
    for (const Tradeoff::Point& p : t.points) {
      bool beaten = p.bound;
      for (const Tradeoff::Point& q : t.points) {
        if (q.bound) continue;
        // Surely: even if p is at its best and q at its worst.
        beaten = beaten || (q.footprint <= p.footprint && q.fidelity >= p.most &&
                            (q.footprint < p.footprint || q.fidelity > p.most));
      }
      QCOMPARE(p.front, !beaten);
      auto& best = least[method_of(document.runs()[p.run].run().label)];
      if (p.fidelity >= threshold && (!best || p.footprint < *best)) best = p.footprint;
      auto& may = possible[method_of(document.runs()[p.run].run().label)];
      if (p.most >= threshold && (!may || p.footprint < *may)) may = p.footprint;
    }
    QCOMPARE(t.families.size(), least.size());
    double last = 0;
    bool none = false;
    CriticalTable table;
    const QAbstractItemModelTester tester(&table);
    table.set(t, document.runs());
    for (std::size_t f = 0; f < t.families.size(); ++f) {
      const Tradeoff::Family& family = t.families[f];
      const auto& wanted =
          least[method_of(document.runs()[t.points[family.points[0]].run].run().label)];
      QCOMPARE(family.critical.has_value(), wanted.has_value());
      QCOMPARE(family.least,
               possible[method_of(document.runs()[t.points[family.points[0]].run].run().label)]);
      const QModelIndex cell = table.index(static_cast<int>(f), 1);
      if (!wanted) {
        none = true;
        QVERIFY(!cell.data(Qt::EditRole).isValid());
        QCOMPARE(cell.data(CriticalTable::kRunRole).toInt(), -1);
        continue;
      }
      QVERIFY(!none);  // those that do not reach it come last
      QCOMPARE(t.points[*family.critical].footprint, *wanted);
      QVERIFY(*wanted >= last);
      last = *wanted;
      QCOMPARE(cell.data(Qt::EditRole).toDouble(), *wanted);
    }
  }
}

void TradeoffTest::what_overlaps_is_not_ranked() {
  // tova (81.33 to 86.27) stood below streaming_llm (81.55 to 84.83), which holds as much.
  auto json = std::make_shared<nlohmann::json>(nlohmann::json::array());
  auto result = std::make_shared<Result>();
  result->path = "scores.json";
  const auto add = [&](const char* policy, double footprint, double low, double high) {
    json->push_back(
        {{"footprint", footprint},
         {"fidelity",
          {{"decode", {{"retained_mass", {{"mean", low}, {"upper", {{"mean", high}}}}}}}}}});
    Run run;
    run.policy = run.label = policy;
    result->runs.push_back(run);
  };
  add("tova(budget=20%)", 0.5, 0.8133, 0.8627);
  add("streaming_llm(budget=20%)", 0.5, 0.8155, 0.8483);
  add("random(budget=20%)", 0.5, 0.6, 0.7);
  for (std::size_t i = 0; i < result->runs.size(); ++i) result->runs[i].figures = &(*json)[i];
  result->json = json;
  Document document;
  document.add(result);
  const Tradeoff t = make_tradeoff(document.runs(), FidelityFigure::mass_mean, 0.85);
  QVERIFY(t.points[0].front);
  QVERIFY(t.points[1].front);
  QVERIFY(!t.points[2].front);
  QVERIFY(!t.families[0].critical);
  CriticalTable table;
  table.set(t, document.runs());
  std::map<QString, QString> cells;
  for (int f = 0; f < 3; ++f)
    cells[table.index(f, 0).data().toString()] = table.index(f, 1).data().toString();
  QCOMPARE(cells["tova"], QString("at least 50.0 %"));  // it may reach 85 %
  QCOMPARE(cells["streaming_llm"], QString(QChar(0x2013)));
  const Tradeoff lower = make_tradeoff(document.runs(), FidelityFigure::mass_mean, 0.8);
  table.set(lower, document.runs());
  QCOMPARE(table.index(0, 2).data().toString(), QString("81.3 to 86.3 %"));
  QCOMPARE(retained_text(result->runs[0]), QString("81.33 to 86.27 %"));
}

void TradeoffTest::a_frontier_is_that_of_its_result() {
  const auto frontiers = [](const char* text, FidelityFigure figure = FidelityFigure::mass_mean) {
    auto result = std::make_shared<Result>(*random_sweep(1));
    result->json = std::make_shared<nlohmann::json>(nlohmann::json::parse(text));
    auto plain = std::make_shared<Result>(*random_sweep(2));  // one without
    plain->path = "other.json";
    Document document;
    document.add(result);
    document.add(plain);
    return make_tradeoff(document.runs(), figure, 0.8).frontiers;
  };
  const char* const good =
      R"({"frontier": {"footprint": [0.1, 0.5, 1], "retained_mass": [0, 0.9, 1]}})";
  const auto found = frontiers(good);
  QCOMPARE(found.size(), std::size_t{1});
  const std::vector<std::pair<double, double>> wanted{{0.1, 0}, {0.5, 0.9}, {1, 1}};
  QVERIFY(found[0] == wanted);
  QVERIFY(frontiers(good, FidelityFigure::output).empty());  // it is of retained attention
  for (const char* bad : {"{}", R"({"frontier": 1})", R"({"frontier": {"footprint": [1, 2]}})",
                          R"({"frontier": {"footprint": [0.1, 1], "retained_mass": [0, null]}})"})
    QVERIFY(frontiers(bad).empty());
}

void TradeoffTest::regrets_are_those_of_the_json() {
  // tova at two budgets, quest at one, kivi without: it alters keys.
  auto json = std::make_shared<nlohmann::json>(nlohmann::json::parse(R"([
    {"footprint": 0.2, "fidelity": {"decode": {"retained_mass": {"mean": 0.8, "p5": 0.1}}},
     "optimum": {"retained_mass": 0.84, "regret": 0.04, "footprint": 0.12}},
    {"footprint": 0.3, "fidelity": {"decode": {"retained_mass": {"mean": 0.95, "p5": 0.1}}},
     "optimum": {"retained_mass": 0.97, "regret": 0.02, "footprint": 0.26}},
    {"footprint": 0.9, "fidelity": {"decode": {"retained_mass": {"mean": 0.7, "p5": 0.1}}},
     "optimum": {"retained_mass": 1, "regret": 0.3, "footprint": 0.083}},
    {"footprint": 1, "fidelity": {"decode": {"retained_mass": {"mean": 1, "p5": 1}}}}])"));
  auto result = std::make_shared<Result>();
  result->path = "regrets.json";
  for (const char* policy : {"tova(budget=10%)", "tova(budget=20%)", "quest(budget=20%)", "kivi"}) {
    Run& run = result->runs.emplace_back();
    run.policy = run.label = policy;
  }
  for (std::size_t i = 0; i < 4; ++i) result->runs[i].figures = &(*json)[i];
  result->json = json;
  Document document;
  document.add(result);
  const Tradeoff t = make_tradeoff(document.runs(), FidelityFigure::mass_mean, 0.9);
  QVERIFY(t.has_regrets());
  QCOMPARE(t.points[1].regret, std::optional(0.02));
  QCOMPARE(t.points[1].optimum, std::optional(0.26));
  QVERIFY(!t.points[3].regret);
  CriticalTable table;
  const QAbstractItemModelTester tester(&table);
  table.set(t, document.runs());
  QCOMPARE(table.columnCount(), 6);
  QCOMPARE(table.headerData(3, Qt::Horizontal).toString(), QString("regret"));
  std::map<QString, std::pair<QString, QString>> cells;
  for (int f = 0; f < 3; ++f) {
    cells[table.index(f, 0).data().toString()] = {table.index(f, 3).data().toString(),
                                                  table.index(f, 4).data().toString()};
  }
  const QString none(QChar(0x2013));
  QVERIFY(cells["tova"] == std::pair(QString("2.0 to 4.0 %"), QString("26.0 %")));  // at 90 %
  QVERIFY(cells["quest"] == std::pair(QString("30.0 %"), QString("8.3 %")));        // never there
  QVERIFY(cells["kivi"] == std::pair(none, none));
  QCOMPARE(table.index(0, 5).data().toString(), QString("tova(budget=20%)"));
  // They are of mean retained attention only.
  const Tradeoff other = make_tradeoff(document.runs(), FidelityFigure::mass_p5, 0.9);
  QVERIFY(!other.has_regrets());
  table.set(other, document.runs());
  QCOMPARE(table.columnCount(), 4);

  QWidget window;
  View* view = make_tradeoff_view(document, &window);
  view->resize(1000, 400);
  document.set_current(1);
  view->grab();
  QVERIFY(view->findChild<QLabel*>("readout")->text().contains(
      "regret 2.0 %; the optimum retains as much with 26.0 %"));
  const auto lines = parse_csv(view->csv());
  QCOMPARE(lines[0][15], std::string("regret"));
  QCOMPARE(std::stod(lines[1][15]), 0.04);
  QCOMPARE(std::stod(lines[1][16]), 0.12);
  QCOMPARE(lines[4][16], std::string());
}

void TradeoffTest::another_trace_is_another_front() {
  Document one, two, both;
  const ResultPtr first = random_sweep(1);
  auto other = std::make_shared<Result>(*random_sweep(2));
  other->path = "other.json";
  other->trace.sha256 = "other";
  one.add(first);
  two.add(other);
  both.add(first);
  both.add(other);
  const auto of = [](const Document& document) {
    return make_tradeoff(document.runs(), FidelityFigure::mass_mean, 0.8);
  };
  const Tradeoff a = of(one), b = of(two), ab = of(both);
  QCOMPARE(ab.groups.size(), std::size_t{2});
  QCOMPARE(ab.groups[0].front, a.groups[0].front);
  QCOMPARE(ab.groups[1].front.size(), b.groups[0].front.size());
  QCOMPARE(ab.families.size(), a.families.size() + b.families.size());
  for (std::size_t f = 0; f < ab.families.size(); ++f) {
    const bool in_first = f < a.families.size();
    const Tradeoff& alone = in_first ? a : b;
    const Tradeoff::Family& family = alone.families[in_first ? f : f - a.families.size()];
    QCOMPARE(ab.families[f].name, family.name);
    QCOMPARE(ab.families[f].critical.has_value(), family.critical.has_value());
    if (!family.critical) continue;
    QCOMPARE(ab.points[*ab.families[f].critical].footprint,
             alone.points[*family.critical].footprint);
  }
}

// Bug: a policy's runs at two chunk sizes were joined to one line, with one critical footprint.
void TradeoffTest::chunk_sizes_are_families_of_one_front() {
  Document one, both;
  const ResultPtr first = random_sweep(1);
  auto other = std::make_shared<Result>(*random_sweep(2));
  other->path = "other.json";
  other->chunk = 512;
  one.add(first);
  both.add(first);
  both.add(other);
  const auto of = [](const Document& document) {
    return make_tradeoff(document.runs(), FidelityFigure::mass_mean, 0.8);
  };
  const Tradeoff alone = of(one), t = of(both);
  QCOMPARE(t.groups.size(), std::size_t{1});  // they compare
  QCOMPARE(t.marks, std::size_t{2});
  std::map<std::string, int> colours;
  for (const Tradeoff::Family& family : t.families) {
    for (const std::size_t p : family.points)
      QCOMPARE(both.runs()[t.points[p].run].result->chunk, family.chunk);
    QCOMPARE(family.name, family.method + ", chunk " + std::to_string(family.chunk));
    QCOMPARE(family.mark, family.chunk == 0 ? 0 : 1);
    QCOMPARE(colours.try_emplace(family.method, family.colour).first->second, family.colour);
    if (family.chunk != 0) continue;
    const auto same = std::find_if(alone.families.begin(), alone.families.end(),
                                   [&](const auto& f) { return f.method == family.method; });
    QCOMPARE(family.critical.has_value(), same->critical.has_value());
    if (family.critical)
      QCOMPARE(t.points[*family.critical].footprint, alone.points[*same->critical].footprint);
  }
  // Colours of policies differ, beyond the eight of the palette, too.
  std::set<QRgb> seen;
  for (int slot = 0; slot < 24; ++slot) QVERIFY(seen.insert(run_colour(slot).rgb()).second);
}

void TradeoffTest::points_are_those_of_the_json() {
  Document document;
  document.add(open_result(bundled_result().toStdString()));
  for (const FidelityFigure figure :
       {FidelityFigure::mass_mean, FidelityFigure::mass_p5, FidelityFigure::output}) {
    const Tradeoff t = make_tradeoff(document.runs(), figure, 0.9);
    QCOMPARE(t.points.size(), document.runs().size());
    for (const Tradeoff::Point& p : t.points) {
      const nlohmann::json& said = *document.runs()[p.run].run().figures;
      const nlohmann::json& decode = said["fidelity"]["decode"];
      QCOMPARE(p.footprint, said["footprint"].get<double>());
      QCOMPARE(p.fidelity, figure == FidelityFigure::mass_mean
                               ? decode["retained_mass"]["mean"].get<double>()
                           : figure == FidelityFigure::mass_p5
                               ? decode["retained_mass"]["p5"].get<double>()
                               : 1 - decode["output_error"]["mean"].get<double>());
    }
  }
}

void TradeoffTest::the_view_opens_runs_by_key_and_click() {
  Document document;
  QWidget window;
  View* view = make_tradeoff_view(document, &window);
  view->resize(920, 300);
  view->grab();  // nothing is open
  document.add(open_result(bundled_result().toStdString()));
  view->grab();
  auto* readout = view->findChild<QLabel*>("readout");
  QWidget* plot = nullptr;
  for (QWidget* child : view->findChildren<QWidget*>()) {
    if (child->accessibleName() == "footprint against fidelity") plot = child;
  }
  QVERIFY(plot != nullptr);
  // The least footprint is at the left end.
  std::size_t least = 0;
  for (std::size_t r = 0; r < document.runs().size(); ++r) {
    const auto of = [&](std::size_t run) {
      return figure(document.runs()[run].run(), "footprint");
    };
    if (*of(r) < *of(least)) least = r;
  }
  for (int i = 0; i < 10; ++i) QTest::keyClick(plot, Qt::Key_Left);
  QVERIFY(readout->text().contains(QString::fromStdString(document.runs()[least].run().label)) ||
          document.runs().size() > 1);
  QTest::keyClick(plot, Qt::Key_Return);
  QCOMPARE(figure(document.current_run()->run(), "footprint"),
           figure(document.runs()[least].run(), "footprint"));
  // The table opens the critical run of a family.
  auto* table = view->findChild<QTableView*>();
  view->findChild<QDoubleSpinBox*>("threshold")->setValue(70);
  const QModelIndex first = table->model()->index(0, 0);
  emit table->activated(first);
  QCOMPARE(document.current(), first.data(CriticalTable::kRunRole).toInt());
  // The numbers read back.
  const auto lines = parse_csv(view->csv());
  QCOMPARE(lines.size(), document.runs().size() + 1);
  QCOMPARE(std::stod(lines[2][3]), *figure(document.runs()[1].run(), "footprint"));
  QCOMPARE(lines[0][14], std::string("threshold"));
  QCOMPARE(std::stod(lines[2][14]), 0.7);
  QCOMPARE(lines[2].back(), std::string());  // no regrets
  for (const bool dark : {false, true}) {
    set_theme(dark);
    QCoreApplication::processEvents();
    const QString end = dark ? "-dark.png" : ".png";
    view->resize(920, 300);
    QVERIFY(view->grab().save(picture_folder().filePath("tradeoff" + end)));
    export_view(*view, picture_folder().filePath("tradeoff-large" + end), {1280, 800}, 1);
  }
  set_theme(false);
}

KVSPAN_GUI_TEST(TradeoffTest, "tradeoff");

}  // namespace kvspan::gui::test

#include "tradeoff_test.moc"
