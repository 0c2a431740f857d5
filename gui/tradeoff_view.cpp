// SPDX-License-Identifier: Apache-2.0
#include "gui/view.h"

namespace kvspan::gui {
namespace {

class TradeoffView final : public View {
 public:
  TradeoffView(Document& document, QWidget* parent) : View(document, parent) {}
  [[nodiscard]] QString name() const override { return "tradeoff"; }
  [[nodiscard]] QString title() const override { return "tradeoff"; }
  [[nodiscard]] QString help() const override { return ""; }
  [[nodiscard]] std::string csv() const override { return ""; }
};

}  // namespace

View* make_tradeoff_view(Document& document, QWidget* parent) {
  return new TradeoffView(document, parent);
}

}  // namespace kvspan::gui
