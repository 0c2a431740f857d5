// SPDX-License-Identifier: Apache-2.0
#include "gui/model/lives.h"

#include <QAbstractItemModelTester>
#include <QComboBox>
#include <QFile>
#include <QLabel>
#include <QLineEdit>
#include <QTableView>
#include <QToolButton>
#include <QTreeView>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include <nlohmann/json.hpp>

#include "gui/model/csv.h"
#include "gui/model/head_model.h"
#include "gui/model/residents.h"
#include "gui/paint/lifetime_map.h"
#include "gui/paint/theme.h"
#include "gui/views/kept_sets.h"
#include "gui/views/view.h"
#include "sim/attention/head_attention.h"
#include "sim/report/lifetimes_reader.h"
#include "tests/gui/bundled_lives.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

// Maps and tables of lives beside walks over every entry, and their view on the real window.
class LivesTest : public QObject, private BundledLives {
  Q_OBJECT
 private slots:
  void a_map_counts_every_pair_of_row_and_token();
  void a_map_of_a_selector_shows_its_sampled_reads();
  void lives_are_those_of_the_file();
  void the_table_of_lives_reads_back();
  void the_lifetime_view_follows_and_leads_the_document();
  void beside_it_is_the_baselines_map();
  void attention_can_be_shown_and_cancelled();
  void a_result_without_lifetimes_says_what_is_missing();
  void without_the_trace_its_absence_is_told();
  void damaged_lifetimes_are_one_sentence();
  void hidden_views_catch_up_when_they_are_shown();
  void pictures();
};

void LivesTest::a_map_counts_every_pair_of_row_and_token() {
  const LifetimesFile& file = *result_->lifetimes;
  const int run = run_of("h2o");
  const Deaths deaths = file.deaths(run, 1, 2);
  std::mt19937 random(3);
  for (int i = 0; i < 12; ++i) {
    const auto range = [&] {
      const auto begin = static_cast<RowIndex>(random() % 1500);
      return Rows{begin, begin + 20 + static_cast<RowIndex>(random() % 350)};
    };
    LifeFrame frame{range(), range(), 0, 0};
    if (i == 0) frame.rows = frame.tokens = {0, file.tokens()};
    frame.width = 1 + static_cast<int>(random() % 40);
    frame.height = 1 + static_cast<int>(random() % 40);
    // Cells that end between rows are shared by them: here rows are a multiple of the height.
    frame.rows.end = frame.rows.begin + frame.rows.size() / frame.height * frame.height;
    if (frame.rows.empty()) continue;
    const LifeMap map = map_lives(file, run, 1, 2, frame, {});
    QVERIFY(map.read.empty());
    const RowIndex tall = frame.rows.size() / frame.height;
    for (int y = 0; y < frame.height; ++y) {
      for (int x = 0; x < frame.width; ++x) {
        const RowIndex first = frame.tokens.begin + x * frame.tokens.size() / frame.width;
        const RowIndex last =
            std::max(first + 1, frame.tokens.begin + (x + 1) * frame.tokens.size() / frame.width);
        std::int64_t born = 0;
        std::int64_t there = 0;
        for (RowIndex t = first; t < last; ++t) {
          for (RowIndex row = frame.rows.begin + y * tall; row < frame.rows.begin + (y + 1) * tall;
               ++row) {
            born += t <= row ? 1 : 0;
            there += held(deaths, t, row) ? 1 : 0;
          }
        }
        const auto pairs = static_cast<float>((last - first) * tall);
        const auto at = static_cast<std::size_t>(y * frame.width + x);
        QVERIFY(std::abs(map.born[at] - static_cast<float>(born) / pairs) < 1e-5F);
        QVERIFY(std::abs(map.held[at] - static_cast<float>(there) / pairs) < 1e-5F);
      }
    }
  }
}

void LivesTest::a_map_of_a_selector_shows_its_sampled_reads() {
  const LifetimesFile& file = *result_->lifetimes;
  const int run = run_of("quest");
  const auto& of = file.runs()[static_cast<std::size_t>(run)];
  QVERIFY(of.read_rows.size() > 10);
  const LifeFrame frame{{0, file.tokens()},
                        {0, file.tokens()},
                        static_cast<int>(file.tokens()),
                        static_cast<int>(file.tokens())};
  const LifeMap map = map_lives(file, run, 2, 1, frame, {});
  std::int64_t read = 0;
  std::int64_t unread = 0;
  for (std::size_t s = 0; s < of.read_rows.size(); s += 17) {
    const auto bits = file.reads(run, 2, 1, s);
    const RowIndex row = of.read_rows[s];
    for (RowIndex t = 0; t <= row; ++t) {
      const bool bit = ((bits[static_cast<std::size_t>(t / 8)] >> (t % 8)) & 1) != 0;
      (bit ? read : unread) += 1;
      const auto at = static_cast<std::size_t>(row * file.tokens() + t);
      QCOMPARE(map.read[at], bit ? 1.0F : 0.0F);
      QCOMPARE(map.held[at], 1.0F);
    }
  }
  QVERIFY(read > 0 && unread > 0);
}

void LivesTest::lives_are_those_of_the_file() {
  const LifetimesFile& file = *result_->lifetimes;
  const int run = run_of("h2o");
  const auto trace = Document().trace_of(*result_);
  QVERIFY(trace != nullptr);
  const auto deaths = file.deaths(run, 0, 1);
  const HeadAttention attention = attention_of_head(*trace, {0, 1, 3}, deaths);
  const std::int64_t gone =
      std::find_if(deaths.begin(), deaths.end(), [&](std::uint32_t d) { return d < 1000; }) -
      deaths.begin();
  const Life life = life_of(file, run, 0, 1, gone, &attention);
  QCOMPARE(life.death, RowIndex{deaths[static_cast<std::size_t>(gone)]});
  QCOMPARE(life.score, file.scores(run, 0, 1)[static_cast<std::size_t>(gone)]);
  QCOMPARE(life.rank, file.ranks(run, 0, 1)[static_cast<std::size_t>(gone)]);
  QVERIFY(life.rank >= 0 && !std::isnan(life.score));
  // What a token received and what was lost of it are all that it got from any row.
  const HeadAttention whole = attention_of_head(
      *trace, {0, 1, 3},
      std::vector<std::uint32_t>(deaths.size(), static_cast<std::uint32_t>(deaths.size())));
  QVERIFY(life.received > 0);
  QVERIFY(std::abs(life.received + life.lost - whole.received[static_cast<std::size_t>(gone)]) <
          1e-4F * whole.received[static_cast<std::size_t>(gone)]);
  QVERIFY(std::isnan(life_of(file, run, 0, 1, gone, nullptr).received));
}

void LivesTest::the_table_of_lives_reads_back() {
  const LifetimesFile& file = *result_->lifetimes;
  const int run = run_of("chunked(snapkv");
  const auto trace = Document().trace_of(*result_);
  const auto lines = parse_csv(csv_of_lives(file, run, 1, 0, trace.get(), nullptr));
  QCOMPARE(lines.size(), static_cast<std::size_t>(file.tokens()) + 1);
  const auto deaths = file.deaths(run, 1, 0);
  const auto scores = file.scores(run, 1, 0);
  for (std::size_t t = 0; t < deaths.size(); ++t) {
    const auto& line = lines[t + 1];
    QCOMPARE(line.size(), std::size_t{8});
    QCOMPARE(line[0], std::to_string(t));
    QCOMPARE(line[1], std::string(trace->token_text(static_cast<std::int64_t>(t))));
    const bool never = deaths[t] == deaths.size();
    QCOMPARE(line[3], never ? std::string() : std::to_string(deaths[t]));
    if (!line[4].empty()) QCOMPARE(std::stof(line[4]), scores[t]);
    QCOMPARE(line[4].empty(), std::isnan(scores[t]));
  }
}

void LivesTest::the_lifetime_view_follows_and_leads_the_document() {
  const auto document = opened("h2o");
  QWidget window;
  View* view = make_lifetime_view(*document, &window);
  view->resize(920, 300);
  window.show();
  QVERIFY(wait_for(*view));
  const auto boxes = view->findChildren<QComboBox*>();
  QCOMPARE(boxes.size(), 2);
  QCOMPARE(boxes[0]->count(), result_->trace.layers());
  document->set_focus({1, 2, 40});
  QCOMPARE(boxes[0]->currentIndex(), 1);
  QCOMPARE(boxes[1]->currentIndex(), 2);
  QVERIFY(wait_for(*view));
  const auto line = view->findChild<QLabel*>();
  QVERIFY2(line->text().contains("token 40"), qPrintable(line->text()));
  const Life life = life_of(*result_->lifetimes, run_of("h2o"), 1, 2, 40, nullptr);
  QVERIFY(line->text().contains(life.death >= result_->trace.tokens
                                    ? QString("never evicted")
                                    : "evicted at row " + count_text(life.death)));
  QWidget* map = view->focusProxy();
  const RowIndex row = document->instant();
  QTest::keyClick(map, Qt::Key_Right);
  QCOMPARE(document->focus().token, std::int64_t{41});
  QTest::keyClick(map, Qt::Key_Up);
  QCOMPARE(document->instant(), row - 1);
  QTest::keyClick(map, Qt::Key_PageDown);
  QCOMPARE(document->focus().layer, 2);
  QCOMPARE(document->focus().head, 0);
  QTest::keyClick(map, Qt::Key_PageUp, Qt::ShiftModifier);
  QCOMPARE(document->focus().layer, 1);
  QTest::keyClick(map, Qt::Key_Plus);
  QVERIFY(document->zoom().size() < document->rows());
  QVERIFY(wait_for(*view));
  QTest::keyClick(map, Qt::Key_Home);
  QCOMPARE(document->zoom(), (Rows{0, document->rows()}));
  QTest::mouseClick(map, Qt::LeftButton, {}, map->rect().center());
  QVERIFY(document->focus().token > 41);
  QVERIFY(wait_for(*view));
  QTest::mousePress(map, Qt::LeftButton, {}, QPoint(300, 80));
  QTest::mouseMove(map, QPoint(500, 150));
  QTest::mouseRelease(map, Qt::LeftButton, {}, QPoint(500, 150));
  QVERIFY(document->zoom().size() < document->rows() * 2 / 3);
  QVERIFY(wait_for(*view));
  QCOMPARE(parse_csv(view->csv()).size(), static_cast<std::size_t>(result_->trace.tokens) + 1);
  document->close(result_);
  QVERIFY(view->csv().empty());
  view->grab();
}

void LivesTest::beside_it_is_the_baselines_map() {
  const auto document = opened("h2o");
  document->set_baseline(run_of("quest"));
  document->set_selection({800, 1200});
  QWidget window;
  View* view = make_lifetime_view(*document, &window);
  view->resize(1200, 300);
  window.show();
  QVERIFY(wait_for(*view));
  std::vector<LifetimeMap*> maps;
  for (QWidget* child : view->findChildren<QWidget*>()) {
    if (auto* map = dynamic_cast<LifetimeMap*>(child)) maps.push_back(map);
  }
  QCOMPARE(maps.size(), std::size_t{2});
  QVERIFY(maps[0]->isVisible() && !maps[1]->isVisible());
  for (QToolButton* button : view->findChildren<QToolButton*>()) {
    if (button->text() == "Beside baseline") button->click();
  }
  QVERIFY(document->display().beside);
  QVERIFY(maps[1]->isVisible());
  document->set_focus({1, 2, 40});
  QVERIFY(wait_for(*view));
  QVERIFY(maps[0]->title().startsWith("h2o") && maps[0]->title().endsWith("head 2"));
  QVERIFY(maps[1]->title().startsWith("quest") && maps[1]->title().endsWith("head 2"));
  // The same tokens, whichever map is moved.
  maps[0]->set_tokens({100, 500});
  QVERIFY(maps[1]->tokens() == (Rows{100, 500}));
  maps[1]->zoom(0.5, 0.5, 0.5);
  QVERIFY(maps[0]->tokens() == maps[1]->tokens() && maps[0]->tokens().size() == 200);
  maps[1]->fit();
  QVERIFY(maps[0]->tokens() == (Rows{0, result_->trace.tokens}));
  QVERIFY(wait_for(*view));
  QVERIFY(view->grab().save(picture_folder().filePath("lifetimes-beside-window.png")));
  // In a picture the right half is what the baseline's own picture is.
  export_view(*view, picture_folder().filePath("lifetimes-beside.png"), {1400, 320}, 1);
  const QImage both(picture_folder().filePath("lifetimes-beside.png"));
  document->set_display({});
  QVERIFY(!maps[1]->isVisible());
  const auto alone = [&](const char* run) {
    document->set_current(run_of(run));
    const QString path = picture_folder().filePath("lifetimes-alone.png");
    export_view(*view, path, {700, 320}, 1);
    return QImage(path);
  };
  // But for the ends of spans, which fall between pixels.
  const auto differing = [&](int left, const QImage& one) {
    int pixels = 0;
    for (int y = 0; y < one.height(); ++y) {
      for (int x = 0; x < one.width(); ++x)
        pixels += both.pixel(left + x, y) == one.pixel(x, y) ? 0 : 1;
    }
    return pixels;
  };
  QVERIFY(differing(0, alone("h2o")) < 16);
  QVERIFY(differing(700, alone("quest")) < 16);
  QVERIFY(differing(700, alone("h2o")) > 1000);
}

void LivesTest::attention_can_be_shown_and_cancelled() {
  const auto document = opened("h2o");
  QWidget window;
  View* view = make_lifetime_view(*document, &window);
  view->resize(920, 300);
  window.show();
  QTest::keyClick(view->focusProxy(), Qt::Key_A);
  QVERIFY(!view->is_ready());
  QTest::keyClick(view->focusProxy(), Qt::Key_Escape);
  QVERIFY(wait_for(*view));
  QVERIFY(parse_csv(view->csv())[1][6].empty());
  QTest::keyClick(view->focusProxy(), Qt::Key_A);
  QVERIFY(wait_for(*view));
  const auto trace = document->trace_of(*result_);
  const HeadAttention whole =
      attention_of_head(*trace, {0, 0, 3}, result_->lifetimes->deaths(run_of("h2o"), 0, 0));
  const auto lines = parse_csv(view->csv());
  for (std::size_t t = 0; t < whole.lost.size(); t += 100) {
    QCOMPARE(std::stof(lines[t + 1][6]), whole.received[t]);
    QCOMPARE(std::stof(lines[t + 1][7]), whole.lost[t]);
  }
  document->set_focus({0, 0, 3});
  QVERIFY(view->findChild<QLabel*>()->text().contains("attention received"));
}

void LivesTest::a_result_without_lifetimes_says_what_is_missing() {
  auto bare = std::make_shared<Result>(*result_);
  bare->lifetimes = nullptr;
  Document document;
  document.add(bare);
  QWidget window;
  View* lifetimes = make_lifetime_view(document, &window);
  View* resident = make_resident_view(document, &window);
  window.show();
  QVERIFY(wait_for(*lifetimes));
  QVERIFY(wait_for(*resident));
  QVERIFY(lifetimes->csv().empty());
  // How much is held is known from the timeline.
  const auto* heads = resident->findChild<QTreeView*>();
  QCOMPARE(static_cast<double>(
               heads->model()->index(0, HeadsModel::kEntries).data(Qt::EditRole).toLongLong()),
           document.current_run()->run().entries->at(document.instant()));
  bool said = false;
  for (const QLabel* label : resident->findChildren<QLabel*>()) {
    said = said || label->text().contains("--lifetimes FILE");
  }
  QVERIFY(said);
}

// Values are checked when they are asked for: here a death before the birth.
void LivesTest::without_the_trace_its_absence_is_told() {
  auto moved = std::make_shared<Result>(*result_);
  moved->path = "elsewhere.json";
  moved->trace.path = "no/such/trace.safetensors";
  Document document;
  document.add(moved);
  QWidget window;
  View* resident = make_resident_view(document, &window);
  window.show();
  QVERIFY(wait_for(*resident));
  QString why;
  QVERIFY(document.trace_of(*moved, &why) == nullptr);
  QVERIFY(!why.isEmpty());
  QVERIFY(resident->findChild<QLabel*>("no_text")->text().contains(why));
}

void LivesTest::damaged_lifetimes_are_one_sentence() {
  QFile good(work_folder().filePath("bundled.lifetimes.safetensors"));
  QVERIFY(good.open(QIODevice::ReadOnly));
  QByteArray bytes = good.readAll();
  std::uint64_t size = 0;
  std::memcpy(&size, bytes.constData(), sizeof size);
  const auto head = static_cast<qsizetype>(size) + 8;
  const auto header = nlohmann::json::parse(bytes.mid(8, head - 8).toStdString());
  const std::string name = "runs." + std::to_string(run_of("h2o")) + ".death";
  bytes.replace(head + header[name]["data_offsets"][0].get<qsizetype>() + 36, 4, QByteArray(4, 0));
  QFile bad(work_folder().filePath("damaged.lifetimes.safetensors"));
  QVERIFY(bad.open(QIODevice::WriteOnly));
  QVERIFY(bad.write(bytes) == bytes.size());
  bad.close();
  QFile text(bundled_result());
  QVERIFY(text.open(QIODevice::ReadOnly));
  auto json = nlohmann::json::parse(text.readAll().toStdString());
  json["files"]["lifetimes"] = bad.fileName().toStdString();
  QFile changed(work_folder().filePath("damaged.json"));
  QVERIFY(changed.open(QIODevice::WriteOnly));
  changed.write(QByteArray::fromStdString(json.dump()));
  changed.close();

  Document document;
  document.add(open_result(changed.fileName().toStdString()));
  document.set_current(run_of("h2o"));
  QWidget window;
  View* lifetimes = make_lifetime_view(document, &window);
  View* resident = make_resident_view(document, &window);
  QWidget* sets = make_kept_sets(document, &window);
  window.show();
  QVERIFY(wait_for(*lifetimes));
  QVERIFY(wait_for(*resident));
  QVERIFY(QTest::qWaitFor([&] { return sets->property("ready").toBool(); }, 20'000));
  document.set_focus({0, 0, 9});
  QVERIFY(wait_for(*lifetimes));
  QVERIFY(wait_for(*resident));
  QVERIFY(QTest::qWaitFor([&] { return sets->property("ready").toBool(); }, 20'000));
  for (const QWidget* widget : std::initializer_list<QWidget*>{lifetimes, resident, sets}) {
    bool said = false;
    for (const QLabel* label : widget->findChildren<QLabel*>()) {
      said = said ||
             label->text().contains(QString::fromStdString(name) + "': layer 0, head 0, token 9");
    }
    QVERIFY(said);
  }
  lifetimes->grab();
  document.set_focus({1, 0, 9});  // the other heads are sound
  QVERIFY(wait_for(*lifetimes));
  QVERIFY(lifetimes->findChild<QLabel*>()->text().startsWith("token 9"));
}

void LivesTest::hidden_views_catch_up_when_they_are_shown() {
  const auto document = opened("h2o");
  QWidget window;
  View* resident = make_resident_view(*document, &window);
  QWidget* sets = make_kept_sets(*document, &window);
  window.show();
  QVERIFY(wait_for(*resident));
  resident->hide();
  sets->hide();
  document->set_selection({700, 701});
  document->set_focus({2, 2, 5});
  document->close(result_);
  document->set_focus({});
  document->add(result_);
  document->set_current(run_of("quest"));
  document->set_baseline(run_of("h2o"));
  document->set_selection({700, 701});
  QVERIFY(resident->is_ready());
  resident->show();
  sets->show();
  QVERIFY(wait_for(*resident));
  QVERIFY(QTest::qWaitFor([&] { return sets->property("ready").toBool(); }, 20'000));
  const auto* heads = resident->findChild<QTreeView*>();
  QCOMPARE(static_cast<double>(
               heads->model()->index(0, HeadsModel::kEntries).data(Qt::EditRole).toLongLong()),
           document->current_run()->run().entries->at(700));
  QVERIFY(sets->findChild<QLabel*>()->text().startsWith("Row 700"));
}

// For a person to look at: both views as the window shows them, and as they are exported.
void LivesTest::pictures() {
  for (const char* run : {"h2o", "quest", "chunked(snapkv"}) {
    for (const bool dark : {false, true}) {
      set_theme(dark);
      const auto document = opened(run);
      document->set_selection({800, 1200});
      document->set_focus({1, 0, 300});
      QWidget window;
      for (View* view :
           {make_lifetime_view(*document, &window), make_resident_view(*document, &window)}) {
        view->resize(920, 300);
        window.resize(920, 300);
        window.show();
        QVERIFY(wait_for(*view));
        const QString name =
            QString("%1-%2-%3")
                .arg(view->name(), QString(run).remove('('), dark ? "dark" : "light");
        QVERIFY(view->grab().save(picture_folder().filePath(name + "-window.png")));
        export_view(*view, picture_folder().filePath(name + ".png"), {920, 300}, 1);
        QImage picture(picture_folder().filePath(name + ".png"));
        QCOMPARE(picture.size(), QSize(920, 300));
        if (view->name() == "resident" && QString(run) == "h2o") {
          document->set_focus({-1, -1, 300});
          QVERIFY(wait_for(*view));
          for (QToolButton* button : view->findChildren<QToolButton*>()) {
            if (button->text() == "Table") button->click();
          }
          QVERIFY(view->findChild<QTableView*>()->isVisible());
          QVERIFY(view->grab().save(picture_folder().filePath(name + "-table-window.png")));
        }
        if (view->name() == "lifetimes" && QString(run) == "h2o") {
          QTest::keyClick(view->focusProxy(), Qt::Key_A);
          QVERIFY(wait_for(*view));
          QVERIFY(view->grab().save(picture_folder().filePath(name + "-attention-window.png")));
          export_view(*view, picture_folder().filePath(name + "-attention.png"), {1280, 800}, 1);
          QVERIFY(wait_for(*view));
        }
        view->hide();
      }
    }
  }
  set_theme(false);
}

KVSPAN_GUI_TEST(LivesTest, "lives");

}  // namespace kvspan::gui::test

#include "lives_test.moc"
