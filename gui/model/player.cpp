// SPDX-License-Identifier: Apache-2.0
#include "gui/model/player.h"

#include <algorithm>

namespace kvspan::gui {
namespace {

constexpr int kWholeMs = 12'000, kLeastMs = 33, kMostMs = 250;

}  // namespace

Player::Player(Document& document, QObject* parent) : QObject(parent), document_(document) {
  connect(&timer_, &QTimer::timeout, this, &Player::step);
}

void Player::play() {
  const Rows zoom = document_.zoom();
  if (zoom.size() < 2) return;
  const RowIndex row = document_.instant();
  if (row < zoom.begin || row >= zoom.end - 1)
    document_.set_selection({zoom.begin, zoom.begin + 1});
  constexpr RowIndex kFrames = kWholeMs / kLeastMs;
  by_ = (zoom.size() + kFrames - 1) / kFrames;
  const RowIndex steps = (zoom.size() + by_ - 1) / by_;
  timer_.start(std::clamp(static_cast<int>(kWholeMs / steps), kLeastMs, kMostMs));
  emit changed(true);
}

void Player::stop() {
  if (!playing()) return;
  timer_.stop();
  emit changed(false);
}

void Player::step() {
  if (ready && !ready()) return;
  const Rows zoom = document_.zoom();
  const RowIndex row = document_.instant() + by_;
  if (zoom.empty()) return stop();
  const RowIndex next = std::clamp(row, zoom.begin, zoom.end - 1);
  document_.set_selection({next, next + 1});
  if (row >= zoom.end - 1) stop();
}

}  // namespace kvspan::gui
