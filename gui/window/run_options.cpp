// SPDX-License-Identifier: Apache-2.0
#include "gui/window/run_options.h"

#include <QComboBox>
#include <QGridLayout>
#include <QLabel>
#include <QLineEdit>
#include <QRegularExpression>
#include <QSpinBox>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "gui/paint/theme.h"
#include "gui/window/pieces.h"
#include "sim/base/error.h"

namespace kvspan::gui {

RunOptions::RunOptions(QWidget* parent) : QWidget(parent) {
  auto* grid = new QGridLayout(this);
  grid->setContentsMargins(0, 0, 0, 0);
  grid->setHorizontalSpacing(6);
  grid->setVerticalSpacing(3);
  build_budgets(grid);
  build_choices();
  const auto place = [&](int row, int column, const QString& name, QWidget* widget) {
    auto* label = new QLabel(name, this);
    label->setBuddy(widget);
    grid->addWidget(label, row, 2 * column);
    grid->addWidget(widget, row, 2 * column + 1);
  };
  place(2, 0, "&Chunk", chunk_);
  place(2, 1, "&Prompt", prompt_);
  place(3, 0, "Fidelity", rows_);
  place(3, 1, "&Layout", layout_);
  place(4, 0, "Bytes", kv_bytes_);
  place(4, 1, "Prefill", prefill_);
  place(5, 0, "Seed", seed_);
  grid->setColumnStretch(1, 1);
  grid->setColumnStretch(3, 1);
  connect(budgets_, &QLineEdit::textChanged, this, &RunOptions::budgets_changed);
  for (QSpinBox* spin : {chunk_, prompt_}) {
    connect(spin, &QSpinBox::valueChanged, this, &RunOptions::passes_changed);
  }
}

void RunOptions::build_budgets(QGridLayout* grid) {
  budgets_ = named(new QLineEdit(this), "budgets",
                   "One run each of every policy on the list that has a budget: tokens, % of the "
                   "prompt, or bytes");
  budgets_->setPlaceholderText("5%, 10%, 20%");
  auto* label = new QLabel("&Budgets", this);
  label->setBuddy(budgets_);
  grid->addWidget(label, 0, 0);
  grid->addWidget(budgets_, 0, 1, 1, 3);
  note_ = small_label(this);
  note_->setObjectName("budgets_note");
  grid->addWidget(note_, 1, 0, 1, 4);
}

QSpinBox* RunOptions::number(const QString& name, const QString& help, const QString& none,
                             int least, int most, int value) {
  auto* spin = named(new QSpinBox(this), name, help);
  spin->setRange(least, most);
  spin->setValue(value);
  if (!none.isEmpty()) spin->setSpecialValueText(none);
  return spin;
}

void RunOptions::build_choices() {
  constexpr int kMost = std::numeric_limits<int>::max();
  chunk_ = number("chunk", "Prefill chunk, tokens", "one pass", 0, kMost, 0);
  prompt_ = number("prompt", "Rows of the prompt; the rest is decoding", "as traced", 0, kMost, 0);
  rows_ = named(new QComboBox(this), "rows measured",
                "Rows of each phase whose fidelity is measured, evenly spread; auto: all, but of "
                "prompts beyond " +
                    QString::number(kLongPrompt) + " rows " + QString::number(kSampledRows));
  rows_->addItem("auto", 0);
  for (const int count : {1024, 256, 64}) rows_->addItem(QString("%1 rows").arg(count), count);
  rows_->addItem("none", -1);
  layout_ = named(new QComboBox(this), "layout", "Storage layout that bytes are counted in");
  for (const std::string& name : standard_layouts()) layout_->addItem(QString::fromStdString(name));
  kv_bytes_ = number("bytes", "Bytes of one stored element", "", 1, 16, 2);
  seed_ = number("seed", "Of policies that draw random numbers", "", 0, kMost, 0);
  prefill_ = named(new QComboBox(this), "prefill",
                   "When a runtime compresses: after all layers, or layer by layer");
  prefill_->addItems({"whole", "layerwise"});
  for (QComboBox* combo : {rows_, layout_, prefill_}) narrow(combo, 5);
}

SimulationRequest RunOptions::request() const {
  SimulationRequest out;
  static const QRegularExpression comma("[,\\s]+");
  for (const QString& budget : budgets_->text().split(comma, Qt::SkipEmptyParts)) {
    out.budgets.push_back(budget.toStdString());
  }
  out.chunk = chunk_->value();
  out.prompt = prompt_->value();
  out.fidelity = rows_->currentData().toInt() >= 0;
  out.fidelity_rows = std::max(0, rows_->currentData().toInt());
  out.kv_bytes = kv_bytes_->value();
  out.layerwise = prefill_->currentText() == "layerwise";
  out.layout = layout_->currentText().toStdString();
  out.seed = static_cast<std::uint64_t>(seed_->value());
  return out;
}

void RunOptions::set_rows(int rows) {
  chunk_->setMaximum(rows);
  prompt_->setMaximum(rows);
}

void RunOptions::note_budgets(const std::vector<std::string>& specs) {
  std::size_t unchanged = 0;
  for (const std::string& spec : specs) {
    try {
      const auto texts = [&](const std::vector<std::string>& sizes) {
        std::vector<std::string> out;
        for (const RecipeSpec& one : expand_policies({spec}, sizes)) out.push_back(to_text(one));
        return out;
      };
      if (texts({}) == texts({"1"})) ++unchanged;
    } catch (const Error&) {
      continue;  // said when it runs
    }
  }
  const bool shown = unchanged > 0 && !request().budgets.empty();
  note_->setVisible(shown);
  if (!shown) return;
  note_->setText(QString("%1 of %2 policies: a budget of their own, or none to set")
                     .arg(unchanged)
                     .arg(specs.size()));
}

void RunOptions::apply_theme() { set_colour(note_, theme().faint); }

}  // namespace kvspan::gui
