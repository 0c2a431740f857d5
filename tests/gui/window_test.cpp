// SPDX-License-Identifier: Apache-2.0
#include <QAction>
#include <QClipboard>
#include <QDropEvent>
#include <QLineEdit>
#include <QMenuBar>
#include <QMimeData>
#include <QSignalSpy>
#include <QTabWidget>
#include <QTableView>
#include <filesystem>
#include <fstream>
#include <set>

#include "gui/paint/theme.h"
#include "gui/paint/time_chart.h"
#include "gui/window/command_palette.h"
#include "gui/window/copying.h"
#include "gui/window/main_window.h"
#include "gui/window/map_guard.h"
#include "sim/base/error.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

// The real window, offscreen.
class WindowTest : public QObject {
  Q_OBJECT
 private slots:
  void initTestCase() { guard_mapped_files(); }
  void opens_what_is_dropped_and_goes_on_after_malformed_files();
  void every_view_follows_the_selection_and_is_exported();
  void the_palette_finds_commands_runs_and_rows();
  void a_session_is_restored_at_the_next_start();
  void a_file_that_vanishes_or_shrinks_harms_nothing();
  void is_readable_at_1280x800_light_and_dark();
  void closing_everything_leaves_an_empty_window();
  void space_plays_the_rows_of_the_zoom();
  void what_is_hovered_or_chosen_is_copied();
};

namespace {

void open_and_wait(MainWindow& window, const QStringList& paths) {
  QSignalSpy opened(&window, &MainWindow::opened);
  QSignalSpy failed(&window, &MainWindow::failed);
  window.open(paths);
  QTRY_COMPARE_WITH_TIMEOUT(opened.size() + failed.size(), paths.size(), 20'000);
}

void wait_for_views(const MainWindow& window) {
  for (const View* view : window.views()) QTRY_VERIFY_WITH_TIMEOUT(view->is_ready(), 30'000);
}

QString written(const QString& name, const QByteArray& content) {
  const QString path = work_folder().filePath(name);
  QFile file(path);
  if (!file.open(QIODevice::WriteOnly) || file.write(content) != content.size()) return {};
  return path;
}

QByteArray content_of(const QString& path) {
  QFile file(path);
  return file.open(QIODevice::ReadOnly) ? file.readAll() : QByteArray();
}

QAction* action_of(const MainWindow& window, const QString& beginning) {
  for (QAction* menu : window.menuBar()->actions()) {
    for (QAction* action : menu->menu()->actions()) {
      if (action->text().remove('&').startsWith(beginning)) return action;
    }
  }
  return nullptr;
}

}  // namespace

void WindowTest::opens_what_is_dropped_and_goes_on_after_malformed_files() {
  MainWindow window{QString()};
  window.show();
  QSignalSpy failed(&window, &MainWindow::failed);
  const QByteArray good = content_of(bundled_result());
  QByteArray future = good;
  future.replace("\"schema_version\": 1", "\"schema_version\": 2");
  const QStringList bad{written("cut.json", good.left(good.size() / 2)),
                        written("future.json", future),
                        written("empty.json", ""),
                        written("text.safetensors", "hello"),
                        work_folder().filePath("no such file.json"),
                        work_folder().path()};
  QMimeData data;
  QList<QUrl> urls;
  for (const QString& path : bad + QStringList{bundled_result()}) urls << QUrl::fromLocalFile(path);
  data.setUrls(urls);
  QSignalSpy opened(&window, &MainWindow::opened);
  QDragEnterEvent enter(QPoint(50, 50), Qt::CopyAction, &data, Qt::LeftButton, Qt::NoModifier);
  QApplication::sendEvent(&window, &enter);
  QVERIFY(enter.isAccepted());
  QDropEvent drop(QPointF(50, 50), Qt::CopyAction, &data, Qt::LeftButton, Qt::NoModifier);
  QApplication::sendEvent(&window, &drop);
  QTRY_COMPARE_WITH_TIMEOUT(opened.size(), 1, 20'000);
  QCOMPARE(failed.size(), bad.size());
  QVERIFY(failed[0][0].toString().contains("breaks off after"));
  QVERIFY(failed[1][0].toString().contains("schema_version 2"));
  for (const auto& arguments : failed) {
    QVERIFY(!arguments[0].toString().contains('\n'));
    QVERIFY2(!arguments[0].toString().isEmpty(), "a message");
  }
  QVERIFY(window.message().endsWith(failed.last()[0].toString()));
  QCOMPARE(window.document().runs().size(), std::size_t{6});
}

void WindowTest::every_view_follows_the_selection_and_is_exported() {
  MainWindow window{QString()};
  window.show();
  open_and_wait(window, {bundled_result()});
  window.document().set_selection({600, 601});
  window.document().set_focus({1, 0, -1});
  const QDir folder(work_folder().filePath("exports"));
  QVERIFY(folder.mkpath("."));
  for (View* view : window.views()) {
    if (!view->has_content()) continue;  // of sweeps and evaluations
    window.show_view(view->name());
    QVERIFY(view->isVisible());
    QTRY_VERIFY_WITH_TIMEOUT(view->is_ready(), 30'000);
    for (const char* ending : {".png", ".svg", ".csv"}) {
      const QString path = folder.filePath(view->name() + ending);
      export_view(*view, path, {1000, 600}, 1);
      QVERIFY2(QFileInfo(path).size() > 20, qPrintable(path));
    }
    const QImage picture(folder.filePath(view->name() + ".png"));
    QCOMPARE(picture.size(), QSize(1000, 600));
    QVERIFY2(picture.colorCount() == 0 && picture != QImage(picture.size(), picture.format()),
             "drawn on");
  }
  QVERIFY_THROWS_EXCEPTION(Error, export_view(*window.views()[0], "x.gif", {100, 100}, 1));
  QVERIFY_THROWS_EXCEPTION(Error,
                           export_view(*window.views()[0], "/no such folder/x.png", {100, 100}, 1));
}

void WindowTest::the_palette_finds_commands_runs_and_rows() {
  QVERIFY(match_score("Export view...", "exv") > 0);
  QVERIFY(match_score("Export view...", "zzz") == 0);
  QVERIFY(match_score("Zoom out", "zo") > match_score("Maze of layers so", "zo"));

  MainWindow window{QString()};
  window.show();
  open_and_wait(window, {bundled_result()});
  const auto type = [&](const QString& text) {
    action_of(window, "Command palette")->trigger();
    auto* palette = window.findChild<QWidget*>("command_palette");
    QVERIFY(palette != nullptr);
    QTRY_VERIFY(QApplication::focusWidget() == palette->findChild<QLineEdit*>());
    QTest::keyClicks(QApplication::focusWidget(), text);
    QTest::keyClick(QApplication::focusWidget(), Qt::Key_Return);
    QTRY_VERIFY(window.findChild<QWidget*>("command_palette") == nullptr);
  };
  type("1234");
  QCOMPARE(window.document().instant(), RowIndex{1234});
  type("run quest");
  QCOMPARE(window.document().current_run()->run().label, std::string("quest(budget=20%)"));
  type("count entries");
  QCOMPARE(window.document().display().quantity, Quantity::entries);
}

void WindowTest::a_session_is_restored_at_the_next_start() {
  const QString session = work_folder().filePath("session/session.json");
  {
    MainWindow window(session);
    window.show();
    open_and_wait(window, {bundled_result()});
    window.document().set_zoom({100, 800});
    window.document().set_current(4);
    window.show_view("heads");
    window.close();
  }
  {
    MainWindow window(session);
    QSignalSpy opened(&window, &MainWindow::opened);
    QVERIFY(window.restore_session());
    window.show();
    QTRY_COMPARE_WITH_TIMEOUT(opened.size(), 1, 20'000);
    QTRY_COMPARE(window.document().current(), 4);
    QVERIFY((window.document().zoom() == Rows{100, 800}));
    auto* shown = qobject_cast<View*>(window.findChild<QTabWidget*>("views")->currentWidget());
    QVERIFY(shown != nullptr);
    QCOMPARE(shown->name(), QString("heads"));
  }
  written("session/session.json", "{ broken");
  MainWindow window(session);
  QVERIFY(!window.restore_session());
}

void WindowTest::a_file_that_vanishes_or_shrinks_harms_nothing() {
  // A result of its own, whose files are then damaged.
  (void)bundled_result();
  const QDir folder(work_folder().filePath("damaged"));
  QVERIFY(folder.mkpath("."));
  for (const char* name :
       {"bundled.json", "bundled.timeline.safetensors", "bundled.lifetimes.safetensors"}) {
    QVERIFY(QFile::copy(work_folder().filePath(name), folder.filePath(name)));
  }
  MainWindow window{QString()};
  window.resize(1280, 800);
  window.show();
  open_and_wait(window, {folder.filePath("bundled.json")});
  wait_for_views(window);
  std::filesystem::resize_file(folder.filePath("bundled.timeline.safetensors").toStdString(), 4096);
  std::filesystem::resize_file(folder.filePath("bundled.lifetimes.safetensors").toStdString(),
                               4096);
  for (RowIndex row = 10; row < 1800; row += 300) {
    window.document().set_zoom({row, row + 90});
    window.document().set_selection({row, row + 1});
    QApplication::processEvents();
    (void)window.grab();
  }
  QVERIFY(pages_lost() > 0);
  QVERIFY(QFile::remove(folder.filePath("bundled.json")));
  QTRY_VERIFY_WITH_TIMEOUT(
      window.message().contains("gone from disk") || window.message().contains("cut short"),
      10'000);
  // The rest of the session goes on; reading again says what is wrong.
  QSignalSpy failed(&window, &MainWindow::failed);
  open_and_wait(window, {bundled_result()});
  QCOMPARE(window.document().results().size(), std::size_t{2});
  action_of(window, "Read again")->trigger();
  QTRY_COMPARE_WITH_TIMEOUT(failed.size(), 1, 20'000);
}

void WindowTest::is_readable_at_1280x800_light_and_dark() {
  for (const bool dark : {false, true}) {
    set_theme(dark);
    MainWindow window{QString()};
    window.resize(1280, 800);
    window.show();
    QVERIFY(window.width() == 1280 && window.height() == 800);  // its least size is not larger
    open_and_wait(window, {bundled_result()});
    for (View* view : window.views()) {
      if (!view->has_content()) continue;
      window.show_view(view->name());
      QTRY_VERIFY_WITH_TIMEOUT(view->is_ready(), 30'000);
      QApplication::processEvents();
      const QString name =
          QString("window-%1-%2.png").arg(view->name(), QString(dark ? "dark" : "light"));
      QVERIFY(window.grab().save(picture_folder().filePath(name)));
    }
  }
  set_theme(false);
}

void WindowTest::closing_everything_leaves_an_empty_window() {
  MainWindow window{QString()};
  window.show();
  open_and_wait(window, {bundled_result()});
  action_of(window, "Close result")->trigger();
  QCOMPARE(window.document().runs().size(), std::size_t{0});
  for (View* view : window.views()) {
    window.show_view(view->name());
    (void)window.grab();
    (void)view->csv();
  }
}

void WindowTest::space_plays_the_rows_of_the_zoom() {
  Document document;
  document.add(open_result(small_result().toStdString()));
  document.set_zoom({3, 9});
  document.set_selection({8, 9});  // the last one: from the first again
  Player player(document, nullptr);
  bool ready = true;
  player.ready = [&] { return ready; };
  player.play();
  QVERIFY(player.playing());
  QCOMPARE(document.instant(), RowIndex{3});
  player.step();
  QCOMPARE(document.instant(), RowIndex{4});
  ready = false;  // views are not there yet
  player.step();
  QCOMPARE(document.instant(), RowIndex{4});
  ready = true;
  QSignalSpy changed(&player, &Player::changed);
  for (int i = 0; i < 4; ++i) player.step();
  QCOMPARE(document.instant(), RowIndex{8});
  QVERIFY(!player.playing());
  QCOMPARE(changed.size(), 1);
  // Many rows are walked through in larger steps, within some seconds.
  Document large;
  large.add(open_result(bundled_result().toStdString()));
  large.set_selection({0, 1});
  Player fast(large, nullptr);
  fast.play();
  fast.step();
  QCOMPARE(large.instant(), RowIndex{6});  // 1,880 rows in at most 363 steps

  MainWindow window{QString()};
  window.show();
  open_and_wait(window, {bundled_result()});
  window.document().set_selection({700, 701});
  QWidget* chart = window.views().front()->focusProxy();
  for (const RowIndex begin : {RowIndex{700}, RowIndex{0}}) {
    QTest::keyClick(chart, Qt::Key_Space);
    if (begin == 0) break;  // the second one stops
    QTRY_VERIFY_WITH_TIMEOUT(window.document().instant() > begin, 10'000);
  }
  const RowIndex stopped = window.document().instant();
  QTest::qWait(150);
  QCOMPARE(window.document().instant(), stopped);
}

void WindowTest::what_is_hovered_or_chosen_is_copied() {
  MainWindow window{QString()};
  window.resize(1280, 800);
  window.show();
  open_and_wait(window, {bundled_result()});
  QClipboard* clipboard = QApplication::clipboard();
  QAction* copy = action_of(window, "Copy what");
  QVERIFY(copy != nullptr);
  // The box beside the mouse in the chart of memory: a line a run, values behind tabs.
  auto* chart = window.views().front()->findChild<TimeChart*>();
  QVERIFY(chart != nullptr);
  const QPointF place(chart->x_of(600.5), chart->plot_area().center().y());
  QTest::mouseMove(chart->canvas(), place.toPoint());
  QTRY_VERIFY(!chart->hovered_text().isEmpty());
  chart->setFocus();
  copy->trigger();
  const QStringList lines = clipboard->text().split('\n');
  QCOMPARE(lines.size(), 7);
  QVERIFY2(lines[0].startsWith("row ") && lines[0].endsWith("decode"), qPrintable(lines[0]));
  const std::vector<QString> names = run_names(window.document());
  const std::set<QString> labels(names.begin(), names.end());
  for (const QString& line : lines.mid(1)) QVERIFY(labels.contains(line.section('\t', 0, 0)));
  // The chosen line of a table, under the names of its columns.
  window.show_view("runs");
  auto* table = window.findChild<QTabWidget*>("views")->currentWidget()->findChild<QTableView*>();
  table->setFocus();
  table->selectRow(2);
  QEvent leave(QEvent::Leave);
  QApplication::sendEvent(chart->canvas(), &leave);
  QVERIFY(copied_text(nullptr, table, nullptr)
              .startsWith("policy\tfootprint\tpeak KV\tpeak memory\tretained"));
  QCOMPARE(copied_text(nullptr, table, nullptr).count('\n'), 1);
  QVERIFY(copied_text(nullptr, nullptr, nullptr).isEmpty());
}

KVSPAN_GUI_TEST(WindowTest, "window");

}  // namespace kvspan::gui::test

#include "window_test.moc"
