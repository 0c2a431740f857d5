// SPDX-License-Identifier: Apache-2.0
#include <QAction>
#include <QClipboard>
#include <QDropEvent>
#include <QLineEdit>
#include <QMenuBar>
#include <QMimeData>
#include <QSignalSpy>
#include <QTabWidget>
#include <filesystem>
#include <fstream>

#include "gui/paint/theme.h"
#include "gui/window/command_palette.h"
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

KVSPAN_GUI_TEST(WindowTest, "window");

}  // namespace kvspan::gui::test

#include "window_test.moc"
