// SPDX-License-Identifier: Apache-2.0
#include "gui/view.h"

namespace kvspan::gui {
namespace {

class PeakView final : public View {
 public:
  PeakView(Document& document, QWidget* parent) : View(document, parent) {}
  [[nodiscard]] QString name() const override { return "peak"; }
  [[nodiscard]] QString title() const override { return "peak"; }
  [[nodiscard]] QString help() const override { return ""; }
  [[nodiscard]] std::string csv() const override { return ""; }
};

}  // namespace

View* make_peak_view(Document& document, QWidget* parent) { return new PeakView(document, parent); }

}  // namespace kvspan::gui
