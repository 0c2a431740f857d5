// SPDX-License-Identifier: Apache-2.0
// Sliders that run the current policy again while its budget or the chunk changes.
#pragma once

#include <QString>
#include <QTimer>
#include <QWidget>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "gui/model/background.h"
#include "gui/model/document.h"
#include "gui/model/simulation.h"

class QLabel;

namespace kvspan::gui {

class LogSlider;

class WhatIfPage final : public QWidget {
  Q_OBJECT
 public:
  //   options  of every run: what of fidelity is measured
  WhatIfPage(Document& document, std::function<SimulationRequest()> options, QWidget* parent);

  [[nodiscard]] bool busy() const { return live_.busy(); }
  // What is not in front does not follow the document.
  void set_in_front(bool front);
  void apply_theme();

 signals:
  void failed(const QString& line);

 private:
  // The run that the sliders turn.
  struct Bound {
    Tunable tunable;
    bool turns = false;  // false: the policy has no knob, only the chunk can be changed
    TokenCount position = 1;
    std::string spec;
    SimulationRequest base;
    RowIndex prompt = 0;
    std::optional<double> footprint, mass;
    std::string origin;  // label
  };
  void build();
  void bind();
  void unbind(const QString& why);
  [[nodiscard]] static Bound begin_of(const ShownRun& shown, const Trace& trace);
  [[nodiscard]] static Bound completed(Bound bound, const Trace& trace, const std::string& policy);
  void set_up_sliders();
  void describe_sliders();
  void slide(bool coarse);
  void show_result(const ResultPtr& result, bool coarse, qint64 milliseconds);

  Document& document_;
  std::function<SimulationRequest()> options_;
  bool in_front_ = false;
  QLabel *policy_ = nullptr, *text_ = nullptr, *chunk_text_ = nullptr, *budget_text_ = nullptr,
         *message_ = nullptr;
  LogSlider *chunk_slider_ = nullptr, *budget_slider_ = nullptr;
  QTimer* rest_;  // a slider that is moved by keys is released when they rest
  std::optional<Bound> bound_;
  std::pair<ResultPtr, std::size_t> bound_run_;  // the run that was current
  bool binding_sliders_ = false;
  LiveSimulation live_;
  Background binding_;
};

}  // namespace kvspan::gui
