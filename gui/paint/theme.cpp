// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/theme.h"

#include <QApplication>
#include <algorithm>
#include <array>
#include <cmath>

namespace kvspan::gui {
namespace {

Theme light_theme() {
  Theme theme;
  theme.paper = QColor("#ffffff");
  theme.panel = QColor("#f4f5f6");
  theme.ink = QColor("#1f2328");
  theme.faint = QColor("#667079");
  theme.grid = QColor("#e4e7ea");
  theme.accent = QColor("#0072b2");
  theme.good = QColor("#009e73");
  theme.bad = QColor("#d55e00");
  theme.unresident = QColor("#eceef0");
  return theme;
}

Theme dark_theme() {
  Theme theme;
  theme.dark = true;
  theme.paper = QColor("#16191d");
  theme.panel = QColor("#20242a");
  theme.ink = QColor("#e6e8ea");
  theme.faint = QColor("#98a1aa");
  theme.grid = QColor("#30363d");
  theme.accent = QColor("#56b4e9");
  theme.good = QColor("#2bc79a");
  theme.bad = QColor("#ff8a3d");
  theme.unresident = QColor("#262b31");
  return theme;
}

Theme& current_theme() {
  static Theme theme = light_theme();
  return theme;
}

// Okabe and Ito without black (slot 0 is the ink) and with grey for their yellow.
constexpr std::array<const char*, 7> kColours{"#e69f00", "#0072b2", "#009e73", "#d55e00",
                                              "#cc79a7", "#56b4e9", "#8a8a8a"};
constexpr std::array<const char*, 7> kDarkColours{"#f0b43c", "#3d9bdc", "#2bc79a", "#ff8a3d",
                                                  "#e09bc4", "#8fd0f7", "#a9b0b6"};
constexpr std::array kDashes{Qt::SolidLine, Qt::DashLine, Qt::DotLine, Qt::DashDotLine};

// Five anchors of viridis (Smith and van der Walt 2015).
constexpr std::array<const char*, 5> kMap{"#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"};

}  // namespace

const Theme& theme() { return current_theme(); }

void set_theme(bool dark) {
  current_theme() = dark ? dark_theme() : light_theme();
  QApplication::setPalette(palette_of(current_theme()));
}

QPalette palette_of(const Theme& theme) {
  QPalette palette;
  palette.setColor(QPalette::Window, theme.panel);
  palette.setColor(QPalette::WindowText, theme.ink);
  palette.setColor(QPalette::Base, theme.paper);
  palette.setColor(QPalette::AlternateBase, theme.panel);
  palette.setColor(QPalette::Text, theme.ink);
  palette.setColor(QPalette::Button, theme.dark ? theme.grid : theme.panel);
  palette.setColor(QPalette::ButtonText, theme.ink);
  palette.setColor(QPalette::ToolTipBase, theme.panel);
  palette.setColor(QPalette::ToolTipText, theme.ink);
  palette.setColor(QPalette::PlaceholderText, theme.faint);
  palette.setColor(QPalette::Highlight, theme.accent);
  palette.setColor(QPalette::HighlightedText, text_on(theme.accent));
  palette.setColor(QPalette::Link, theme.accent);
  palette.setColor(QPalette::Mid, theme.grid);
  palette.setColor(QPalette::Midlight, theme.grid);
  palette.setColor(QPalette::Dark, theme.faint);
  for (const auto role : {QPalette::Text, QPalette::WindowText, QPalette::ButtonText}) {
    palette.setColor(QPalette::Disabled, role, theme.faint);
  }
  return palette;
}

QColor run_colour(int slot) {
  const auto i = static_cast<std::size_t>(slot) % (kColours.size() + 1);
  const auto round = static_cast<std::size_t>(slot) / (kColours.size() + 1) % 3;
  if (i == 0) return round == 0 ? theme().ink : QColor(round == 1 ? "#7b3fa0" : "#9a9a00");
  const QColor colour(theme().dark ? kDarkColours[i - 1] : kColours[i - 1]);
  return round == 0 ? colour : mix(colour, QColor(round == 1 ? "#000000" : "#ffffff"), 0.45);
}

Qt::PenStyle run_dash(int slot) {
  return kDashes[static_cast<std::size_t>(slot) / (kColours.size() + 1) % kDashes.size()];
}

QPen run_pen(int slot, double width, bool measured) {
  QPen pen(run_colour(slot), width, measured ? Qt::DotLine : run_dash(slot), Qt::FlatCap,
           Qt::RoundJoin);
  return pen;
}

QColor map_colour(double value) {
  const double place = std::clamp(value, 0.0, 1.0) * (kMap.size() - 1);
  const auto i = std::min(static_cast<std::size_t>(place), kMap.size() - 2);
  const double t = place - static_cast<double>(i);
  const QColor a(kMap[i]);
  const QColor b(kMap[i + 1]);
  const auto mix = [&](int x, int y) { return static_cast<int>(std::lround(x + t * (y - x))); };
  return {mix(a.red(), b.red()), mix(a.green(), b.green()), mix(a.blue(), b.blue())};
}

QColor part_colour(int i, int count) {
  return map_colour(count < 2 ? 0.45 : 0.12 + 0.76 * i / (count - 1));
}

QColor text_on(const QColor& background) {
  const double light =
      0.299 * background.red() + 0.587 * background.green() + 0.114 * background.blue();
  return light > 140 ? QColor("#14171a") : QColor("#ffffff");
}

QColor mix(const QColor& a, const QColor& b, double share) {
  const auto part = [&](double x, double y) { return static_cast<float>(x + share * (y - x)); };
  return QColor::fromRgbF(part(a.redF(), b.redF()), part(a.greenF(), b.greenF()),
                          part(a.blueF(), b.blueF()));
}

QColor held_colour() { return theme().dark ? QColor("#4a8fc0") : QColor("#2f6c9e"); }

}  // namespace kvspan::gui
