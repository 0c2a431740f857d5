// SPDX-License-Identifier: Apache-2.0
#include "sim/fleet/fleet_memory.h"

#include <algorithm>
#include <cmath>

namespace kvspan {

void MemoryOverTime::advance(double now) {
  const double span = now - now_;
  if (span <= 0) return;
  const auto bytes = static_cast<double>(bytes_);
  byte_seconds_ += bytes * span;
  request_seconds_ += running_ * span;
  most_ = std::max(most_, bytes_);
  const double bin = capacity_ > 0 ? std::ceil(bytes * kBins / static_cast<double>(capacity_)) : 0;
  seconds_[static_cast<std::size_t>(std::min<double>(bin, kBins))] += span;
  fill(now_, now);
  now_ = now;
}

void MemoryOverTime::fill(double from, double to) {
  while (to > width_ * kPieces) double_width();
  while (from < to) {
    const auto at = static_cast<std::size_t>(from / width_);
    const double end = std::min(to, width_ * static_cast<double>(at + 1));
    if (pieces_.size() <= at) pieces_.resize(at + 1);
    pieces_[at].most = std::max(pieces_[at].most, bytes_);
    pieces_[at].byte_seconds += static_cast<double>(bytes_) * (end - from);
    if (end <= from) break;  // a step too small for doubles
    from = end;
  }
}

void MemoryOverTime::double_width() {
  width_ *= 2;
  const std::size_t half = (pieces_.size() + 1) / 2;
  pieces_.resize(2 * half);
  for (std::size_t i = 0; i < half; ++i) {
    pieces_[i] = {std::max(pieces_[2 * i].most, pieces_[2 * i + 1].most),
                  pieces_[2 * i].byte_seconds + pieces_[2 * i + 1].byte_seconds};
  }
  pieces_.resize(half);
}

void MemoryOverTime::finish(FleetFigures& figures) const {
  figures.seconds = now_;
  if (now_ <= 0) return;
  figures.running = request_seconds_ / now_;
  figures.bytes.mean = byte_seconds_ / now_;
  figures.bytes.most = static_cast<double>(most_);
  const auto quantile = [&](double share) {
    double sum = 0;
    for (std::size_t bin = 0; bin < kBins; ++bin) {
      sum += seconds_[bin];
      if (sum >= share * now_ * (1 - 1e-12)) {
        return std::min(static_cast<double>(most_),
                        static_cast<double>(capacity_) * static_cast<double>(bin) / kBins);
      }
    }
    return static_cast<double>(most_);
  };
  figures.bytes.p50 = quantile(.5);
  figures.bytes.p95 = quantile(.95);
  figures.bytes.p99 = quantile(.99);
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const double begin = width_ * static_cast<double>(i);
    const double end = std::min(begin + width_, now_);
    if (end > begin)
      figures.timeline.push_back({end, pieces_[i].most, pieces_[i].byte_seconds / (end - begin)});
  }
}

}  // namespace kvspan
