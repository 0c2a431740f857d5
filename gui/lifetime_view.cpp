// SPDX-License-Identifier: Apache-2.0
#include "gui/view.h"

namespace kvspan::gui {
namespace {

class LifetimeView final : public View {
 public:
  LifetimeView(Document& document, QWidget* parent) : View(document, parent) {}
  [[nodiscard]] QString name() const override { return "lifetime"; }
  [[nodiscard]] QString title() const override { return "lifetime"; }
  [[nodiscard]] QString help() const override { return ""; }
  [[nodiscard]] std::string csv() const override { return ""; }
};

}  // namespace

View* make_lifetime_view(Document& document, QWidget* parent) {
  return new LifetimeView(document, parent);
}

}  // namespace kvspan::gui
