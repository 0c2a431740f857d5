// SPDX-License-Identifier: Apache-2.0
// kvspan-viewer: the window, and without a display its pictures.
#include <QApplication>
#include <QStandardPaths>
#include <QStyleFactory>
#include <cstdio>
#include <exception>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "gui/paint/theme.h"
#include "gui/window/about.h"
#include "gui/window/exports.h"
#include "gui/window/main_window.h"
#include "gui/window/map_guard.h"
#include "gui/window/settings.h"
#include "sim/attention/simd_target.h"
#include "sim/base/error.h"

namespace kvspan::gui {
namespace {

int run_window(const Settings& s) {
  guard_mapped_files();
  const QString session =
      QStandardPaths::writableLocation(QStandardPaths::AppDataLocation) + "/session.json";
  MainWindow window(session);
  QStringList files;
  for (const std::string& file : s.files) files << QString::fromStdString(file);
  const auto look = [&s, &window] {
    try {
      apply(s, window.document());
      set_threshold(s, window);
    } catch (const Error& error) {
      window.show_message(error.what());
    }
  };
  if (files.isEmpty() && !s.new_session) {
    window.restore_session();
  } else {
    window.open(files, look);
  }
  if (!s.views.empty()) window.show_view(QString::fromStdString(s.views.front()));
  window.show();
  return QApplication::exec();
}

void add_options(CLI::App& app, Settings& s) {
  app.add_option("files", s.files,
                 "Results of run, eval, replay (.json), timelines, lifetimes or traces "
                 "(.safetensors), the folder of a sweep")
      ->type_name("FILE");
  app.add_option(
         "--export", s.exports,
         "Write a view without a window: .png, .svg or .csv; may be repeated, one --view each")
      ->type_name("FILE")
      ->allow_extra_args(false);
  app.add_option(
         "--view", s.views,
         "memory, runs, lifetimes, resident, peak, heads, tradeoff or compare; of a sweep curves, "
         "matrix or cells; of an eval scores or answers; of the window: the one to start with")
      ->type_name("NAME")
      ->allow_extra_args(false);
  app.add_option("--export-all", s.export_all, "Write every view as .png, .svg and .csv")
      ->type_name("FOLDER");
  app.add_option("--size", s.size,
                 "Size of pictures in logical pixels; without it, what each view fills")
      ->type_name("WxH");
  app.add_option("--scale", s.scale, "Pixels of a PNG per logical pixel")
      ->check(CLI::Range(0.25, 8.0))
      ->type_name("S");
  app.add_option("--run", s.run, "The run that views of one run show; a label or its beginning")
      ->type_name("LABEL");
  app.add_option("--baseline", s.baseline, "The run that others are compared with")
      ->type_name("LABEL");
  app.add_option("--only", s.only, "Show this run in charts, and no other; may be repeated")
      ->type_name("LABEL")
      ->allow_extra_args(false);
  app.add_option("--where", s.where,
                 "Of a sweep only these cells: chunk=512, budget=10%,20%, method=snapkv,h2o (names "
                 "with these words), trace=..; may be repeated")
      ->type_name("PARAMETER=VALUE,..")
      ->allow_extra_args(false);
  app.add_option("--matrix", s.matrix,
                 "Of a sweep, two parameters and a figure: method,chunk,critical_footprint")
      ->type_name("ROWS,COLUMNS[,FIGURE]");
  app.add_option("--rows", s.rows,
                 "Selected rows; of one row, what is held there (exports: where --run and "
                 "--baseline differ most)")
      ->type_name("ROW|BEGIN:END");
  app.add_option("--zoom", s.zoom, "Rows that charts over time show")->type_name("BEGIN:END");
  app.add_option("--threshold", s.threshold,
                 "Percent of fidelity that critical footprints reach, of the tradeoff and of a "
                 "sweep; default: 90")
      ->check(CLI::Range(0.0, 100.0))
      ->type_name("F");
  app.add_option("--quantity", s.quantity, "entries, bytes, percent or mass")->type_name("NAME");
  app.add_flag("--log", s.log, "Logarithmic scale");
  app.add_option("--stack", s.stack, "none, layer, head_class or state: memory of --run, stacked")
      ->type_name("NAME");
  app.add_option("--heads", s.head_figure, "footprint, peak_kv or retained_mass: the map of heads")
      ->type_name("NAME");
  app.add_flag("--attention", s.attention,
               "Show attention in the map of lifetimes; needs the trace");
  app.add_flag("--beside", s.beside,
               "Show the map of lifetimes of --baseline beside that of --run");
  app.add_option("--layer", s.layer, "Selected layer, counted in the trace from 0")->type_name("L");
  app.add_option("--head", s.head, "Selected stored head")->type_name("H");
  app.add_option("--token", s.token, "Selected token")->type_name("T");
  app.add_flag("--dark", s.dark, "Dark colours");
  app.add_flag("--new-session", s.new_session, "Do not open what the last session had open");
  app.set_version_flag("--version", version_text());
  app.footer(R"help(
Examples:
  kvspan-viewer RESULT.json                                open a result (with its timeline and lifetimes)
  kvspan-viewer                                            go on where the last session ended
  kvspan-viewer --export memory.png --view memory RESULT.json
  kvspan-viewer --export map.svg --view lifetimes --attention --run snapkv --layer 1 RESULT.json
  kvspan-viewer --export-all FOLDER RESULT.json            every view as picture and as numbers
  kvspan-viewer SWEEP_FOLDER                               thousands of runs: curves, matrix, cells
  kvspan-viewer --export m.png --view matrix --where prompt=512 --matrix method,chunk SWEEP_FOLDER
Make a result: kvspan run TRACE --out R.json --timeline R.timeline.safetensors --lifetimes R.lifetimes.safetensors

Exit codes: 0 ok, 1 internal or a full disk, 2 arguments, 3 files that cannot be read.)help");
}

int run_program(int argc, char** argv) {
  kernels::choose_simd_target();
  Settings settings;
  CLI::App options("See where KV memory goes: traces and results of kvspan over time");
  options.name("kvspan-viewer");
  add_options(options, settings);
  try {
    options.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = error.get_exit_code();
    if (code == 0) return options.exit(error);
    fmt::print(stderr, "kvspan-viewer: {}; --help shows what is known\n", error.what());
    return 2;
  }
  if (settings.exporting() && settings.files.empty()) {
    throw ConfigError("--export needs a result: kvspan-viewer --export memory.png RESULT.json");
  }
  // Pictures need no display, and must look alike with and without one. What the platform then
  // cannot do is of no interest.
  if (settings.exporting()) {
    qputenv("QT_QPA_PLATFORM", "offscreen");
    qInstallMessageHandler([](QtMsgType type, const QMessageLogContext&, const QString& text) {
      if (type == QtCriticalMsg || type == QtFatalMsg) {
        fmt::print(stderr, "kvspan-viewer: {}\n", text.toStdString());
      }
    });
  }
  if (!qEnvironmentVariableIsSet("DISPLAY") && !qEnvironmentVariableIsSet("WAYLAND_DISPLAY") &&
      !qEnvironmentVariableIsSet("QT_QPA_PLATFORM")) {
    throw ConfigError("there is no display; --export-all FOLDER writes every view as a picture");
  }
  int no_arguments = 1;
  QApplication app(no_arguments, argv);
  QApplication::setApplicationName("kvspan-viewer");
  QApplication::setOrganizationName("kvspan");
  QApplication::setStyle(QStyleFactory::create("Fusion"));
  set_theme(settings.dark);
  if (settings.exporting()) {
    run_exports(settings);
    return 0;
  }
  return run_window(settings);
}

}  // namespace
}  // namespace kvspan::gui

int main(int argc, char** argv) {
  try {
    return kvspan::gui::run_program(argc, argv);
  } catch (const kvspan::Error& error) {
    fmt::print(stderr, "kvspan-viewer: {}\n", error.what());
    return error.exit_code();
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvspan-viewer: internal error: {}\n", error.what());
    return 1;
  }
}
