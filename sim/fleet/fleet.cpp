// SPDX-License-Identifier: Apache-2.0
#include "sim/fleet/fleet.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <queue>
#include <unordered_map>

#include "sim/base/distribution.h"
#include "sim/base/types.h"
#include "sim/fleet/fleet_memory.h"
#include "sim/fleet/growth.h"

namespace kvspan {
namespace {

enum class Happens : std::uint8_t { ends, grows, decodes, arrives };

struct Event {
  double time;
  Happens what;
  std::int32_t request;
  std::int32_t admission;  // of the request; another one's events are void
  bool operator>(const Event& other) const {
    if (time != other.time) return time > other.time;
    return what != other.what ? what > other.what : request > other.request;
  }
};

struct Running {
  std::int64_t prompt = 0, generated = 0;  // of the present admission
  std::int64_t bytes = 0;
  std::int64_t token = 0;  // that it has memory for; 0: reads its prompt
  double begin = 0;        // of the prompt, then of the answer
  std::int32_t replica = -1, admission = 0;
  bool waited = false, runs = false;
};

struct Replica {
  std::int64_t used = 0;
  std::deque<std::int32_t> queue;
  std::vector<std::int32_t> running;                      // in order of admission
  std::int32_t reads = -1;                                // whose prompt it reads
  std::unordered_map<std::int64_t, std::int64_t> blocks;  // holders, by hash
};

class Fleet {
 public:
  Fleet(std::span<const FleetRequest> requests, const RequestMemory& memory,
        const FleetSettings& settings)
      : requests_(requests),
        memory_(memory),
        settings_(settings),
        state_(requests.size()),
        replicas_(static_cast<std::size_t>(settings.replicas)),
        over_time_(settings.capacity * settings.replicas) {}

  FleetFigures run(const std::function<bool(double)>& continues);

 private:
  void arrive(std::int32_t id);
  struct Demand;
  [[nodiscard]] Demand demand(const Replica& replica, std::int32_t id) const;
  void admit(Replica& replica);
  void start(std::int32_t id, const Demand& needs);
  void decode(std::int32_t id);
  void grow(std::int32_t id);
  void end(std::int32_t id);
  void preempt(std::int32_t id);
  void leave(std::int32_t id);
  void plan_growth(std::int32_t id);

  Replica& of(std::int32_t id) { return replicas_[index(state_[index(id)].replica)]; }
  void take(Replica& replica, std::int64_t bytes, int running) {
    replica.used += bytes;
    over_time_.change(bytes, running);
  }
  void schedule(double time, Happens what, std::int32_t id) {
    events_.push({time, what, id, state_[index(id)].admission});
  }
  [[nodiscard]] std::int64_t hashed_tokens(std::int32_t id) const {
    const FleetRequest& r = requests_[index(id)];
    if (settings_.shared_token == 0) return 0;
    return std::min(r.prompt, std::ssize(r.blocks) * kHashBlock);
  }
  [[nodiscard]] bool is_void(const Event& event) const {
    const Running& state = state_[index(event.request)];
    return !state.runs || state.admission != event.admission;
  }
  // What a request needs beside its hashed blocks.
  [[nodiscard]] std::int64_t own_bytes(std::int32_t id, std::int64_t bytes) const {
    return std::max<std::int64_t>(0, bytes - hashed_tokens(id) * settings_.shared_token);
  }
  [[nodiscard]] std::int64_t block_bytes(std::int32_t id, std::size_t block) const {
    const std::int64_t begin = static_cast<std::int64_t>(block) * kHashBlock;
    return settings_.shared_token * std::min(kHashBlock, requests_[index(id)].prompt - begin);
  }

  std::span<const FleetRequest> requests_;
  const RequestMemory& memory_;
  const FleetSettings& settings_;
  std::vector<Running> state_;
  std::vector<Replica> replicas_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  MemoryOverTime over_time_;
  FleetFigures out_;
  double now_ = 0;
  std::vector<double> waits_, stays_;
  std::int64_t prompt_tokens_ = 0, shared_tokens_ = 0;
};

void Fleet::arrive(std::int32_t id) {
  const FleetRequest& r = requests_[index(id)];
  Running& state = state_[index(id)];
  state.prompt = r.prompt;
  state.generated = r.generated;
  if (most_bytes(memory_, r) > settings_.capacity) {
    ++out_.rejected;
    return;
  }
  const auto load = [](const Replica& x) { return x.queue.size() + x.running.size(); };
  const auto least =
      std::min_element(replicas_.begin(), replicas_.end(),
                       [&](const Replica& a, const Replica& b) { return load(a) < load(b); });
  state.replica = static_cast<std::int32_t>(least - replicas_.begin());
  least->queue.push_back(id);
  admit(*least);
}

// What a request of the queue would need.
struct Fleet::Demand {
  std::int64_t own = 0, fresh = 0;  // bytes: its own, and of blocks that nobody holds there
  std::int64_t shared = 0;          // tokens that are there
};

Fleet::Demand Fleet::demand(const Replica& replica, std::int32_t id) const {
  const FleetRequest& r = requests_[index(id)];
  Demand out;
  out.own = own_bytes(id, memory_.prefill(state_[index(id)].prompt));
  if (settings_.shared_token == 0) return out;
  std::size_t there = 0;
  while (there < r.blocks.size() && replica.blocks.contains(r.blocks[there])) ++there;
  out.shared = std::min(r.prompt, static_cast<std::int64_t>(there) * kHashBlock);
  for (std::size_t b = there; b < r.blocks.size(); ++b) {
    if (!replica.blocks.contains(r.blocks[b])) out.fresh += block_bytes(id, b);
  }
  return out;
}

void Fleet::admit(Replica& replica) {
  if (replica.reads >= 0 || std::ssize(replica.running) >= settings_.most_running) return;
  while (!replica.queue.empty()) {
    const std::int32_t id = replica.queue.front();
    const Demand needs = demand(replica, id);
    if (replica.used + needs.own + needs.fresh <= settings_.capacity) return start(id, needs);
    if (!replica.running.empty()) return;
    // Preempted, and too long by now to be read again.
    ++out_.rejected;
    replica.queue.pop_front();
  }
}

void Fleet::start(std::int32_t id, const Demand& needs) {
  Replica& replica = of(id);
  const FleetRequest& r = requests_[index(id)];
  Running& state = state_[index(id)];
  replica.queue.pop_front();
  if (settings_.shared_token > 0) {
    for (const std::int64_t block : r.blocks) ++replica.blocks[block];
  }
  take(replica, needs.own + needs.fresh, 1);
  shared_tokens_ += needs.shared;
  prompt_tokens_ += state.prompt;
  if (!state.waited) waits_.push_back(now_ - r.arrival);
  state.waited = true;
  state.bytes = needs.own;
  state.token = 0;
  state.begin = now_;
  state.runs = true;
  replica.running.push_back(id);
  replica.reads = id;
  out_.largest_batch = std::max<std::int64_t>(out_.largest_batch, std::ssize(replica.running));
  const std::int64_t read = std::max<std::int64_t>(1, state.prompt - needs.shared);
  schedule(now_ + static_cast<double>(read) / settings_.prefill_speed, Happens::decodes, id);
}

void Fleet::decode(std::int32_t id) {
  Replica& replica = of(id);
  replica.reads = -1;
  Running& state = state_[index(id)];
  if (state.generated == 0) return end(id);
  state.begin = now_;
  state.token = 1;
  const double whole = static_cast<double>(state.generated) / settings_.decode_speed;
  schedule(now_ + whole, Happens::ends, id);
  grow(id);
  admit(replica);
}

// Memory for `token`; what is not needed any more is given back.
void Fleet::grow(std::int32_t id) {
  Replica& replica = of(id);
  Running& state = state_[index(id)];
  const std::int64_t wanted = own_bytes(id, memory_.decode(state.prompt, state.token));
  while (replica.used + wanted - state.bytes > settings_.capacity) {
    const std::int32_t last = replica.running.back();
    preempt(last);
    if (last == id) return;
  }
  take(replica, wanted - state.bytes, 0);
  state.bytes = wanted;
  plan_growth(id);
}

void Fleet::plan_growth(std::int32_t id) {
  Running& state = state_[index(id)];
  const std::int64_t held = state.bytes + hashed_tokens(id) * settings_.shared_token;
  const std::int64_t token = next_growth(memory_, state.prompt, state.token, state.generated, held);
  if (token > state.generated) return;
  state.token = token;
  schedule(state.begin + static_cast<double>(token - 1) / settings_.decode_speed, Happens::grows,
           id);
}

// Gives everything back.
void Fleet::leave(std::int32_t id) {
  Replica& replica = of(id);
  Running& state = state_[index(id)];
  std::int64_t bytes = state.bytes;
  if (settings_.shared_token > 0) {
    const FleetRequest& r = requests_[index(id)];
    for (std::size_t b = 0; b < r.blocks.size(); ++b) {
      const auto holders = replica.blocks.find(r.blocks[b]);
      if (--holders->second > 0) continue;
      bytes += block_bytes(id, b);
      replica.blocks.erase(holders);
    }
  }
  take(replica, -bytes, -1);
  replica.running.erase(std::find(replica.running.begin(), replica.running.end(), id));
  if (replica.reads == id) replica.reads = -1;
  state.bytes = 0;
  state.runs = false;
  ++state.admission;
}

void Fleet::preempt(std::int32_t id) {
  Running& state = state_[index(id)];
  if (state.token > 0) {
    const double spent = (now_ - state.begin) * settings_.decode_speed;
    const auto done =
        std::min(state.generated, static_cast<std::int64_t>(std::floor(spent + 1e-6)));
    state.prompt += done;
    state.generated -= done;
  }
  leave(id);
  of(id).queue.push_front(id);
  ++out_.preemptions;
}

void Fleet::end(std::int32_t id) {
  leave(id);
  stays_.push_back(now_ - requests_[index(id)].arrival);
  ++out_.completed;
  admit(of(id));
}

}  // namespace

Quantiles quantiles_of(std::vector<double> values) {
  Quantiles out;
  if (values.empty()) return out;
  std::sort(values.begin(), values.end());
  for (const double value : values) out.mean += value;
  out.mean /= static_cast<double>(values.size());
  out.p50 = nearest_rank(values, .5);
  out.p95 = nearest_rank(values, .95);
  out.p99 = nearest_rank(values, .99);
  out.most = values.back();
  return out;
}

namespace {

FleetFigures Fleet::run(const std::function<bool(double)>& continues) {
  std::size_t next = 0;
  while (next < requests_.size() || !events_.empty()) {
    if (!events_.empty() && is_void(events_.top())) {
      events_.pop();
      continue;
    }
    const bool arrives = next < requests_.size() &&
                         (events_.empty() || requests_[next].arrival < events_.top().time);
    now_ = arrives ? requests_[next].arrival : events_.top().time;
    over_time_.advance(now_);
    if (arrives) {
      if (continues && next % 1024 == 0 &&
          !continues(static_cast<double>(next) / static_cast<double>(requests_.size())))
        break;
      arrive(static_cast<std::int32_t>(next++));
      continue;
    }
    const Event event = events_.top();
    events_.pop();
    if (event.what == Happens::ends) end(event.request);
    if (event.what == Happens::grows) grow(event.request);
    if (event.what == Happens::decodes) decode(event.request);
  }
  over_time_.finish(out_);
  out_.wait = quantiles_of(std::move(waits_));
  out_.stay = quantiles_of(std::move(stays_));
  if (prompt_tokens_ > 0)
    out_.shared_tokens = static_cast<double>(shared_tokens_) / static_cast<double>(prompt_tokens_);
  return std::move(out_);
}

}  // namespace

FleetFigures simulate_fleet(std::span<const FleetRequest> requests, const RequestMemory& memory,
                            const FleetSettings& settings,
                            const std::function<bool(double)>& continues) {
  return Fleet(requests, memory, settings).run(continues);
}

}  // namespace kvspan
