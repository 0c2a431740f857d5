// SPDX-License-Identifier: Apache-2.0
#include "gui/window/command_palette.h"

#include <QDialog>
#include <QKeyEvent>
#include <QLineEdit>
#include <QTreeWidget>
#include <QVBoxLayout>
#include <algorithm>
#include <utility>

namespace kvspan::gui {
namespace {

class Palette final : public QDialog {
 public:
  Palette(QWidget* parent, const std::vector<Command>& commands,
          const std::function<void(qint64)>& go_to_row)
      : QDialog(parent, Qt::Popup | Qt::FramelessWindowHint),
        commands_(commands),
        go_to_row_(go_to_row) {
    setObjectName("command_palette");
    setAccessibleName("Command palette");
    auto* layout = new QVBoxLayout(this);
    layout->setContentsMargins(8, 8, 8, 8);
    edit_ = new QLineEdit;
    edit_->setPlaceholderText("Type a command, a run, or a row number");
    edit_->installEventFilter(this);
    setFocusProxy(edit_);
    list_ = new QTreeWidget;
    list_->setColumnCount(2);
    list_->setHeaderHidden(true);
    list_->setRootIsDecorated(false);
    list_->setUniformRowHeights(true);
    list_->setFocusPolicy(Qt::NoFocus);
    layout->addWidget(edit_);
    layout->addWidget(list_);
    resize(520, 380);
    list_->setColumnWidth(0, 380);
    connect(edit_, &QLineEdit::textChanged, this, &Palette::filter);
    connect(list_, &QTreeWidget::itemClicked, this, &Palette::choose);
    filter(QString());
    if (parent != nullptr) {
      move(parent->mapToGlobal(QPoint((parent->width() - width()) / 2, parent->height() / 8)));
    }
  }

  // Runs once the palette is gone, so that what it opens has the focus.
  std::function<void()> chosen;

 protected:
  bool eventFilter(QObject* watched, QEvent* event) override {
    if (event->type() == QEvent::KeyPress) {
      auto* key = static_cast<QKeyEvent*>(event);
      switch (key->key()) {
        case Qt::Key_Up:
        case Qt::Key_Down:
        case Qt::Key_PageUp:
        case Qt::Key_PageDown:
          move_by(key->key() == Qt::Key_Up       ? -1
                  : key->key() == Qt::Key_Down   ? 1
                  : key->key() == Qt::Key_PageUp ? -10
                                                 : 10);
          return true;
        case Qt::Key_Return:
        case Qt::Key_Enter:
          choose(list_->currentItem());
          return true;
        default:
          break;
      }
    }
    return QDialog::eventFilter(watched, event);
  }

 private:
  void move_by(int lines) {
    const int count = list_->topLevelItemCount();
    if (count == 0) return;
    const int at = list_->indexOfTopLevelItem(list_->currentItem());
    list_->setCurrentItem(list_->topLevelItem(std::clamp(at + lines, 0, count - 1)));
  }

  void filter(const QString& letters) {
    std::vector<std::pair<int, std::size_t>> found;
    for (std::size_t i = 0; i < commands_.size(); ++i) {
      const int score = letters.isEmpty() ? 1 : match_score(commands_[i].text, letters);
      if (score > 0) found.emplace_back(score, i);
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    list_->clear();
    bool number = false;
    const qint64 row = letters.trimmed().toLongLong(&number);
    if (number) {
      auto* item = new QTreeWidgetItem(list_, {QString("Go to row %1").arg(row), QString()});
      item->setData(0, Qt::UserRole, -1);
      item->setData(0, Qt::UserRole + 1, row);
    }
    for (const auto& [score, i] : found) {
      auto* item = new QTreeWidgetItem(list_, {commands_[i].text, commands_[i].shortcut});
      item->setData(0, Qt::UserRole, static_cast<int>(i));
    }
    list_->setCurrentItem(list_->topLevelItem(0));
  }

  void choose(QTreeWidgetItem* item) {
    if (item == nullptr) return;
    const int i = item->data(0, Qt::UserRole).toInt();
    const qint64 row = item->data(0, Qt::UserRole + 1).toLongLong();
    if (i < 0) {
      chosen = [go = go_to_row_, row] { go(row); };
    } else {
      chosen = commands_[static_cast<std::size_t>(i)].run;
    }
    accept();
  }

  std::vector<Command> commands_;
  std::function<void(qint64)> go_to_row_;
  QLineEdit* edit_ = nullptr;
  QTreeWidget* list_ = nullptr;
};

}  // namespace

int match_score(const QString& text, const QString& letters) {
  int score = 0;
  qsizetype from = 0;
  qsizetype last = -2;
  for (const QChar letter : letters) {
    if (letter.isSpace()) continue;
    const qsizetype at = text.indexOf(letter, from, Qt::CaseInsensitive);
    if (at < 0) return 0;
    const bool begins_word = at == 0 || !text[at - 1].isLetterOrNumber();
    score += at == last + 1 ? 8 : begins_word ? 6 : 1;
    last = at;
    from = at + 1;
  }
  return score;
}

void show_command_palette(QWidget* parent, const std::vector<Command>& commands,
                          const std::function<void(qint64)>& go_to_row) {
  auto* palette = new Palette(parent, commands, go_to_row);
  palette->setAttribute(Qt::WA_DeleteOnClose);
  QObject::connect(palette, &QDialog::accepted, parent, [palette] {
    if (palette->chosen) palette->chosen();
  });
  palette->open();
  palette->setFocus();
}

}  // namespace kvspan::gui
