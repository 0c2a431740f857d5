// SPDX-License-Identifier: Apache-2.0
// The fleet's memory over time: mean, quantiles and a timeline of bounded size. Private to fleet/.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "sim/fleet/fleet.h"

namespace kvspan {

class MemoryOverTime {
 public:
  explicit MemoryOverTime(std::int64_t capacity) : capacity_(capacity) {}
  // Until `now` it was what it was.
  void advance(double now);
  void change(std::int64_t bytes, int running) {
    bytes_ += bytes;
    running_ += running;
  }
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }
  void finish(FleetFigures& figures) const;

 private:
  struct Piece {
    std::int64_t most = 0;
    double byte_seconds = 0;
  };
  static constexpr std::size_t kPieces = 4096, kBins = 4096;
  void fill(double from, double to);
  void double_width();

  std::int64_t capacity_, bytes_ = 0, most_ = 0;
  int running_ = 0;
  double now_ = 0, width_ = 1.0 / 64, byte_seconds_ = 0, request_seconds_ = 0;
  std::vector<Piece> pieces_;
  std::array<double, kBins + 1> seconds_{};  // [bins] of capacity
};

}  // namespace kvspan
