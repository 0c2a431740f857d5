// SPDX-License-Identifier: Apache-2.0
#include "gui/view.h"

namespace kvspan::gui {
namespace {

class ResidentView final : public View {
 public:
  ResidentView(Document& document, QWidget* parent) : View(document, parent) {}
  [[nodiscard]] QString name() const override { return "resident"; }
  [[nodiscard]] QString title() const override { return "resident"; }
  [[nodiscard]] QString help() const override { return ""; }
  [[nodiscard]] std::string csv() const override { return ""; }
};

}  // namespace

View* make_resident_view(Document& document, QWidget* parent) {
  return new ResidentView(document, parent);
}

}  // namespace kvspan::gui
