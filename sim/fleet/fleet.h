// SPDX-License-Identifier: Apache-2.0
// Many requests over time on replicas of a model: resident KV, queues, preemption.
//
// A replica is one copy of the model. Requests go to the replica with the fewest of them (the first
// of equal ones), wait in its queue, and are admitted in order, one prefill at a time, as soon as
// the memory of their prefill is free. A prompt takes prompt / prefill_speed seconds; then its
// tokens come at decode_speed, and memory is asked for whenever a token needs more. Where there is
// none, the request that was admitted last is preempted, as vLLM does: its cache is dropped, and it
// waits at the queue's head to read its prompt and answer so far again. What would not fit into an
// empty replica is rejected, when it arrives or after it was preempted.
// At one instant: answers end, then tokens ask for memory, then prompts end, then requests arrive.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "sim/fleet/requests.h"

namespace kvspan {

// Bytes of one request on one GPU; see MemoryCurve.
struct RequestMemory {
  std::function<std::int64_t(std::int64_t prompt)> prefill;
  // While tokens 1 to `token` are generated; never falls as token grows.
  std::function<std::int64_t(std::int64_t prompt, std::int64_t token)> decode;
};

struct FleetSettings {
  std::int64_t replicas = 1;
  std::int64_t capacity = 0;        // bytes for KV on one GPU of a replica
  std::int64_t most_running = 256;  // requests of a replica at a time
  double prefill_speed = 10000;     // prompt tokens a second of a replica
  double decode_speed = 30;         // tokens a second of a request
  // Prefix sharing: bytes of a token; 0: none. Blocks of prompts with equal hashes are held once
  // while anybody there holds them, and what is held is not read again.
  std::int64_t shared_token = 0;
};

// The fleet's memory in a piece of time: its end, seconds, the most and the mean, bytes.
struct FleetInstant {
  double end = 0;
  std::int64_t most = 0;
  double mean = 0;
};

// Nearest rank, of requests or (bytes) of time.
struct Quantiles {
  double mean = 0, p50 = 0, p95 = 0, p99 = 0, most = 0;
};

[[nodiscard]] Quantiles quantiles_of(std::vector<double> values);

struct FleetFigures {
  double seconds = 0;  // from the first arrival to the last answer's end
  std::int64_t completed = 0, rejected = 0, preemptions = 0;
  std::int64_t largest_batch = 0;  // requests running on one replica
  // On one GPU of each replica, summed over replicas; quantiles to 1/4096 of all capacity.
  Quantiles bytes;
  Quantiles wait, stay;                // seconds until admitted, and until the answer's end
  double running = 0;                  // requests that hold memory, mean over time
  double shared_tokens = 0;            // share of prompt tokens that were there already
  std::vector<FleetInstant> timeline;  // at most 4,096 equal pieces
};

// `continues` is called now and then with the share of requests that have arrived; false stops.
[[nodiscard]] FleetFigures simulate_fleet(std::span<const FleetRequest> requests,
                                          const RequestMemory& memory,
                                          const FleetSettings& settings,
                                          const std::function<bool(double)>& continues = nullptr);

// Little's law, L = lambda W, for a fleet in which nobody waits.
struct LittleFigures {
  double rate = 0;             // requests a second
  double service = 0;          // seconds a request holds memory
  double running = 0;          // rate x service
  double bytes = 0;            // rate x byte-seconds of a request
  double rate_by_memory = 0;   // at which all replicas' capacity is held on average: a bound
  double rate_by_prefill = 0;  // at which every replica reads prompts all the time: a bound
};
// Requests that can never fit are left out. No prefix sharing.
[[nodiscard]] LittleFigures little(std::span<const FleetRequest> requests,
                                   const RequestMemory& memory, const FleetSettings& settings);

// The same requests, arriving at `rate` a second. REQUIRES: they do not all arrive at one instant.
void at_rate(std::vector<FleetRequest>& requests, double rate);

// The largest rate, to 1 %, at which nobody is preempted and p99 of the waits is at most `wait`
// seconds; 0: none above a thousandth of the bound.
[[nodiscard]] double largest_rate(std::span<const FleetRequest> requests,
                                  const RequestMemory& memory, const FleetSettings& settings,
                                  const LittleFigures& bounds, double wait);

}  // namespace kvspan
