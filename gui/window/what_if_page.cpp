// SPDX-License-Identifier: Apache-2.0
#include "gui/window/what_if_page.h"

#include <QLabel>
#include <QVBoxLayout>
#include <algorithm>

#include "gui/model/numbers.h"
#include "gui/paint/theme.h"
#include "gui/window/pieces.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_reader.h"

namespace kvspan::gui {

WhatIfPage::WhatIfPage(Document& document, std::function<SimulationRequest()> options,
                       QWidget* parent)
    : QWidget(parent),
      document_(document),
      options_(std::move(options)),
      rest_(new QTimer(this)),
      live_("what-if"),
      binding_(nullptr) {
  build();
  rest_->setSingleShot(true);
  rest_->setInterval(2 * kPauseMs);
  connect(&document_, &Document::current_changed, this, [this] { bind(); });
  for (LogSlider* slider : {chunk_slider_, budget_slider_}) {
    connect(slider, &QSlider::valueChanged, this, [this, slider] {
      describe_sliders();
      if (binding_sliders_) return;
      slide(true);
      if (!slider->isSliderDown()) rest_->start();
    });
    connect(slider, &QSlider::sliderReleased, this, [this] {
      rest_->stop();
      slide(false);
    });
  }
  connect(rest_, &QTimer::timeout, this, [this] { slide(false); });
  connect(
      &live_, &LiveSimulation::shown, this,
      [this](const ResultPtr& result, bool coarse, qint64 ms) { show_result(result, coarse, ms); });
  connect(&live_, &LiveSimulation::failed, this, [this](const QString& line) {
    message_->setText(breakable(line));
    emit failed(line);
  });
}

void WhatIfPage::set_in_front(bool front) {
  in_front_ = front;
  bind();
}

void WhatIfPage::apply_theme() { set_colour(message_, theme().faint); }

void WhatIfPage::build() {
  auto* box = new QVBoxLayout(this);
  box->setContentsMargins(8, 8, 8, 8);
  box->setSpacing(6);
  policy_ = small_label(this);
  policy_->setObjectName("what_policy");
  box->addWidget(policy_);
  const auto slider = [&](const QString& name, const QString& help, QLabel** text) {
    *text = heading(name, this);
    box->addSpacing(6);
    box->addWidget(*text);
    auto* made = named(new LogSlider(this), name, help);
    (*text)->setBuddy(made);
    box->addWidget(made);
    return made;
  };
  budget_slider_ =
      slider("budget slider", "The policy's budget, or what else it is tuned by", &budget_text_);
  chunk_slider_ = slider("chunk slider", "Prefill chunk; at the right end the prompt is one pass",
                         &chunk_text_);
  box->addSpacing(6);
  text_ = small_label(this);
  text_->setObjectName("what_text");
  box->addWidget(text_);
  message_ = small_label(this);
  message_->setObjectName("what_message");
  box->addWidget(message_);
  box->addStretch(1);
}

void WhatIfPage::bind() {
  if (!in_front_) return;
  const ShownRun* shown = document_.current_run();
  const std::pair now(shown == nullptr ? nullptr : shown->result,
                      shown == nullptr ? 0 : shown->index);
  if (now == bound_run_ && now.first != nullptr) return;
  bound_run_ = now;
  // The sliders already say what is shown.
  if (now.first != nullptr && bound_ && now.first->path == live_.path()) return;
  bound_.reset();
  binding_.cancel();
  if (shown == nullptr) {
    return unbind("Open a result or run a policy; the sliders then run the current one again.");
  }
  if (!shown->run().replayed.empty())
    return unbind("This was measured. The sliders run policies: choose the run that it is of.");
  QString why;
  const auto held = document_.trace_of(*shown->result, &why);
  if (!held) return unbind("The sliders need the trace: " + why);
  unbind("");
  binding_.run([held, begun = begin_of(*shown, *held), policy = shown->run().policy](
                   const Background::Cancelled&) { return completed(begun, *held, policy); },
               [this](const Bound& done) {
                 bound_ = done;
                 set_up_sliders();
               },
               [this](const QString& line) { unbind(line); });
}

void WhatIfPage::unbind(const QString& why) {
  policy_->setText(breakable(why));
  text_->clear();
  message_->clear();
  for (LogSlider* slider : {chunk_slider_, budget_slider_}) slider->setEnabled(false);
  describe_sliders();
}

WhatIfPage::Bound WhatIfPage::begin_of(const ShownRun& shown, const Trace& trace) {
  Bound begun;
  const Result& result = *shown.result;
  begun.base.trace = trace.name();
  begun.base.chunk = result.chunk;
  begun.base.prompt = result.trace.prompt;
  begun.base.kv_bytes = result.kv_bytes;
  begun.base.layerwise = result.prefill == "layerwise";
  begun.base.layout = result.layout;
  if (result.lifetimes) {
    begun.base.evict_point = result.lifetimes->runs()[shown.index].evict_point;
  }
  begun.prompt = begun.base.evict_point != 0 ? begun.base.evict_point : result.trace.prompt;
  begun.footprint = figure(shown.run(), "footprint");
  begun.mass = retained_mass(shown.run());
  begun.origin = shown.run().label;
  return begun;
}

// With the knob; a policy may look long at the trace before it has one.
WhatIfPage::Bound WhatIfPage::completed(Bound bound, const Trace& trace,
                                        const std::string& policy) {
  const Geometry geometry = geometry_of(trace, bound.base.options());
  // The short text, if it means the same.
  bound.spec = policy;
  try {
    if (make_policy(bound.origin, geometry).spec == policy) bound.spec = bound.origin;
  } catch (const Error&) {
    bound.spec = policy;
  }
  auto tunable = make_tunable(parse_spec(bound.spec), geometry);
  bound.turns = tunable.has_value();
  if (tunable) {
    bound.tunable = std::move(*tunable);
    bound.position = knob_position(bound.tunable, bound.prompt);
  }
  return bound;
}

void WhatIfPage::set_up_sliders() {
  binding_sliders_ = true;
  policy_->setText(breakable(QString::fromStdString(
      bound_->origin + (bound_->turns ? "" : "\nhas nothing to tune; the chunk can be changed"))));
  budget_slider_->setEnabled(bound_->turns);
  chunk_slider_->setEnabled(true);
  if (bound_->turns) {
    budget_slider_->set_limits(bound_->tunable.knob.lowest, bound_->tunable.knob.highest);
    budget_slider_->set_number(bound_->position);
  }
  chunk_slider_->set_limits(std::min<RowIndex>(16, bound_->prompt), bound_->prompt);
  chunk_slider_->set_number(bound_->base.chunk == 0 ? bound_->prompt : bound_->base.chunk);
  binding_sliders_ = false;
  describe_sliders();
}

void WhatIfPage::describe_sliders() {
  if (!bound_) {
    budget_text_->setText("budget");
    chunk_text_->setText("chunk");
    return;
  }
  if (bound_->turns) {
    budget_text_->setText(knob_text(bound_->tunable, budget_slider_->number(), bound_->prompt));
  }
  const RowIndex size = chunk_slider_->number();
  const RowIndex passes = (bound_->prompt + size - 1) / size;
  chunk_text_->setText(passes == 1 ? QString("chunk: the prompt in one pass")
                                   : QString("chunk %1 (%2 passes)").arg(size).arg(passes));
}

void WhatIfPage::slide(bool coarse) {
  if (!bound_) return;
  SimulationRequest wanted = bound_->base;
  const SimulationRequest options = options_();
  wanted.fidelity = options.fidelity;
  wanted.fidelity_rows = options.fidelity_rows;
  wanted.chunk = chunk_slider_->number() >= bound_->prompt ? 0 : chunk_slider_->number();
  const bool turned = bound_->turns && !budget_slider_->untouched();
  wanted.specs = {turned ? to_text(bound_->tunable.at(budget_slider_->number())) : bound_->spec};
  live_.show(wanted, coarse);
}

void WhatIfPage::show_result(const ResultPtr& result, bool coarse, qint64 ms) {
  document_.add(result);
  if (!bound_) return;  // something else was made current meanwhile
  for (std::size_t r = 0; r < document_.runs().size(); ++r) {
    if (document_.runs()[r].result == result) document_.set_current(static_cast<int>(r));
  }
  const Run& run = result->runs.front();
  const auto line = [](const QString& name, std::optional<double> now, std::optional<double> was) {
    QString text = name + " " + percent_text(now);
    if (now && was) {
      const double points = 100 * (*now - *was);
      text += QString(" (%1%2 points)").arg(points < 0 ? "" : "+").arg(points, 0, 'f', 1);
    }
    return text + "\n";
  };
  QString text = line("KV footprint", figure(run, "footprint"), bound_->footprint);
  if (const auto peak = figure(run, "peak_bytes.total")) text += "peak " + bytes_text(*peak) + "\n";
  text += coarse ? QString("retained attention: when released")
          : retained_mass_upper(run)
              ? "retained attention " + retained_text(run)  // an interval has no one difference
              : line("retained attention", retained_mass(run), bound_->mass).trimmed();
  text_->setText(text);
  message_->setText(QString(coarse ? "coarse, %1 ms" : "measured in %1 ms").arg(ms));
}

}  // namespace kvspan::gui
