// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "sim/fleet/growth.h"

namespace kvspan {

std::int64_t next_growth(const RequestMemory& memory, std::int64_t prompt, std::int64_t token,
                         std::int64_t last, std::int64_t bytes) {
  if (token >= last || memory.decode(prompt, last) <= bytes) return last + 1;
  std::int64_t enough = token, grows = last;  // blocks are short: look near by first
  for (std::int64_t step = 16; enough + step < last; step *= 2) {
    if (memory.decode(prompt, enough + step) > bytes) {
      grows = enough + step;
      break;
    }
    enough += step;
  }
  while (grows - enough > 1) {
    const std::int64_t middle = enough + (grows - enough) / 2;
    (memory.decode(prompt, middle) > bytes ? grows : enough) = middle;
  }
  return grows;
}

std::int64_t most_bytes(const RequestMemory& memory, const FleetRequest& r) {
  return std::max(memory.prefill(r.prompt),
                  r.generated > 0 ? memory.decode(r.prompt, r.generated) : 0);
}

LittleFigures little(std::span<const FleetRequest> requests, const RequestMemory& memory,
                     const FleetSettings& settings) {
  LittleFigures out;
  double seconds = 0, byte_seconds = 0, prefill_seconds = 0;
  std::int64_t counted = 0;
  for (const FleetRequest& r : requests) {
    if (most_bytes(memory, r) > settings.capacity) continue;
    ++counted;
    const double reads = static_cast<double>(r.prompt) / settings.prefill_speed;
    prefill_seconds += reads;
    seconds += reads + static_cast<double>(r.generated) / settings.decode_speed;
    byte_seconds += static_cast<double>(memory.prefill(r.prompt)) * reads;
    for (std::int64_t token = 1; token <= r.generated;) {
      const std::int64_t bytes = memory.decode(r.prompt, token);
      const std::int64_t next = next_growth(memory, r.prompt, token, r.generated, bytes);
      byte_seconds +=
          static_cast<double>(bytes) * static_cast<double>(next - token) / settings.decode_speed;
      token = next;
    }
  }
  if (counted == 0) return out;
  const auto n = static_cast<double>(counted);
  const auto replicas = static_cast<double>(settings.replicas);
  const double span = requests.back().arrival - requests.front().arrival;
  out.rate = span > 0 ? n / span : std::numeric_limits<double>::infinity();
  out.service = seconds / n;
  out.running = out.rate * out.service;
  out.bytes = out.rate * byte_seconds / n;
  out.rate_by_memory = replicas * static_cast<double>(settings.capacity) * n / byte_seconds;
  out.rate_by_prefill = replicas * n / prefill_seconds;
  return out;
}

void at_rate(std::vector<FleetRequest>& requests, double rate) {
  const double span = requests.back().arrival - requests.front().arrival;
  const double stretch = static_cast<double>(requests.size()) / rate / span;
  const double first = requests.front().arrival;
  for (FleetRequest& r : requests) r.arrival = (r.arrival - first) * stretch;
}

double largest_rate(std::span<const FleetRequest> requests, const RequestMemory& memory,
                    const FleetSettings& settings, const LittleFigures& bounds, double wait) {
  std::vector<FleetRequest> moved(requests.begin(), requests.end());
  if (!(bounds.rate > 0) || !(moved.back().arrival > moved.front().arrival)) return 0;
  const auto fits = [&](double rate) {
    at_rate(moved, rate);
    const FleetFigures f = simulate_fleet(moved, memory, settings);
    return f.preemptions == 0 && f.wait.p99 <= wait;
  };
  double high = std::min(bounds.rate_by_memory, bounds.rate_by_prefill);
  double low = high / 1000;
  if (!fits(low)) return 0;
  if (fits(high)) return high;
  while (high - low > 0.01 * low) {
    const double middle = (low + high) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low;
}

}  // namespace kvspan
