// SPDX-License-Identifier: Apache-2.0
// Requests over time: against a twin that walks tick by tick, closed forms, Little's law.
#include "sim/fleet/fleet.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <random>
#include <set>

#include <catch2/catch.hpp>

using namespace kvspan;

namespace {

using Count = std::int64_t;
using Random = std::mt19937_64;

Count pick(Random& random, Count low, Count high) {
  return std::uniform_int_distribution<Count>(low, high)(random);
}

// Sizes that a reader can follow: `once` bytes while a prompt token is read, then a policy that
// keeps `kept` prompt tokens and all generated ones, in blocks.
struct Sizes {
  Count kept = 0, block = 1;
  [[nodiscard]] Count rounded(Count tokens) const { return (tokens + block - 1) / block * block; }
  [[nodiscard]] Count prefill(Count prompt) const { return rounded(prompt); }
  [[nodiscard]] Count decode(Count prompt, Count token) const {
    return rounded(std::min(prompt, kept) + token);
  }
  [[nodiscard]] RequestMemory memory() const {
    return {[*this](Count n) { return prefill(n); },
            [*this](Count n, Count t) { return decode(n, t); }};
  }
};

// What a twin says of a fleet whose events all fall on whole seconds: one prompt token and one
// generated token a second.
struct Story {
  Count completed = 0, rejected = 0, preemptions = 0, batch = 0, byte_seconds = 0, peak = 0;
  Count seconds = 0;
  std::multiset<Count> waits, stays;
};

// Second by second, with a list of living requests and no events. One rule a paragraph, in the
// order of fleet.h.
Story walk(const std::vector<FleetRequest>& requests, const Sizes& sizes, const FleetSettings& s) {
  struct Live {
    Count id, n, m, bytes = 0, began = 0, replica = 0;
    bool decodes = false;
  };
  Story story;
  std::vector<std::vector<Live>> running(static_cast<std::size_t>(s.replicas));  // by admission
  std::vector<std::deque<Live>> queue(running.size());
  std::set<Count> waited;
  const auto used = [&](std::size_t r) {
    Count sum = 0;
    for (const Live& x : running[r]) sum += x.bytes;
    return sum;
  };
  const auto admit = [&](std::size_t r, Count now) {
    const bool reads =
        std::any_of(running[r].begin(), running[r].end(), [](const Live& x) { return !x.decodes; });
    if (reads || std::ssize(running[r]) >= s.most_running) return;
    while (!queue[r].empty()) {
      Live x = queue[r].front();
      const Count bytes = sizes.prefill(x.n);
      if (used(r) + bytes <= s.capacity) {
        queue[r].pop_front();
        x.bytes = bytes;
        x.began = now;
        x.decodes = false;
        if (waited.insert(x.id).second)
          story.waits.insert(now - std::llround(requests[static_cast<std::size_t>(x.id)].arrival));
        running[r].push_back(x);
        story.batch = std::max<Count>(story.batch, std::ssize(running[r]));
        return;
      }
      if (!running[r].empty()) return;
      ++story.rejected;
      queue[r].pop_front();
    }
  };
  // Memory for the token that x generates in the second that begins now; false: x had to go.
  const auto grow = [&](std::size_t r, Count id, Count token, Count now) {
    const auto find = [&] {
      return std::find_if(running[r].begin(), running[r].end(),
                          [&](const Live& x) { return x.id == id; });
    };
    const Count wanted = sizes.decode(find()->n, token);
    while (used(r) - find()->bytes + wanted > s.capacity) {
      Live last = running[r].back();
      running[r].pop_back();
      if (last.decodes) {
        const Count done = now - last.began;
        last.n += done;
        last.m -= done;
      }
      queue[r].push_front(last);
      ++story.preemptions;
      if (last.id == id) return false;
    }
    find()->bytes = wanted;
    return true;
  };
  std::size_t next = 0;
  for (Count now = 0;; ++now) {
    // Ends, in order of requests; each lets the next one in.
    for (bool again = true; again;) {
      again = false;
      std::pair<Count, std::size_t> first{-1, 0};
      for (std::size_t r = 0; r < running.size(); ++r) {
        for (const Live& x : running[r]) {
          if (x.decodes && now == x.began + x.m && (first.first < 0 || x.id < first.first))
            first = {x.id, r};
        }
      }
      if (first.first < 0) break;
      auto& list = running[first.second];
      list.erase(std::find_if(list.begin(), list.end(),
                              [&](const Live& x) { return x.id == first.first; }));
      ++story.completed;
      story.stays.insert(now -
                         std::llround(requests[static_cast<std::size_t>(first.first)].arrival));
      admit(first.second, now);
      again = true;
    }
    // Tokens ask for memory, in order of requests.
    std::map<Count, std::size_t> decoding;
    for (std::size_t r = 0; r < running.size(); ++r) {
      for (const Live& x : running[r]) {
        if (x.decodes) decoding[x.id] = r;
      }
    }
    for (const auto& [id, r] : decoding) {
      const auto x = std::find_if(running[r].begin(), running[r].end(),
                                  [id = id](const Live& y) { return y.id == id; });
      if (x != running[r].end()) grow(r, id, now - x->began + 1, now);
    }
    // Prompts end, in order of requests.
    std::map<Count, std::size_t> ending;
    for (std::size_t r = 0; r < running.size(); ++r) {
      for (const Live& x : running[r]) {
        if (!x.decodes && now == x.began + x.n) ending[x.id] = r;
      }
    }
    for (const auto& [id, r] : ending) {
      const auto x = std::find_if(running[r].begin(), running[r].end(),
                                  [id = id](const Live& y) { return y.id == id; });
      if (x == running[r].end()) continue;
      x->decodes = true;
      x->began = now;
      if (x->m == 0) {
        running[r].erase(x);
        ++story.completed;
        story.stays.insert(now - std::llround(requests[static_cast<std::size_t>(id)].arrival));
      } else {
        grow(r, id, 1, now);
      }
      admit(r, now);
    }
    while (next < requests.size() && std::llround(requests[next].arrival) == now) {
      const FleetRequest& q = requests[next];
      const Count id = static_cast<Count>(next++);
      if (std::max(sizes.prefill(q.prompt),
                   q.generated > 0 ? sizes.decode(q.prompt, q.generated) : 0) > s.capacity) {
        ++story.rejected;
        continue;
      }
      std::size_t least = 0;
      for (std::size_t r = 1; r < running.size(); ++r) {
        if (running[r].size() + queue[r].size() < running[least].size() + queue[least].size())
          least = r;
      }
      queue[least].push_back({id, q.prompt, q.generated});
      admit(least, now);
    }
    Count total = 0;
    bool left = next < requests.size();
    for (std::size_t r = 0; r < running.size(); ++r) {
      total += used(r);
      left = left || !running[r].empty();
    }
    if (!left) {
      story.seconds = now;
      return story;
    }
    story.byte_seconds += total;
    story.peak = std::max(story.peak, total);
  }
}

FleetSettings settings_of(Count replicas, Count capacity, Count most_running) {
  FleetSettings s;
  s.replicas = replicas;
  s.capacity = capacity;
  s.most_running = most_running;
  s.prefill_speed = s.decode_speed = 1;
  return s;
}

}  // namespace

TEST_CASE("a fleet does what a walk second by second does", "[fleet]") {
  Random random(20261130);
  Count preempted = 0, rejected = 0;
  for (int i = 0; i < 400; ++i) {
    INFO("case " << i);
    const Sizes sizes{pick(random, 0, 1) == 0 ? 1000 : pick(random, 1, 8), pick(random, 1, 4)};
    const FleetSettings s =
        settings_of(pick(random, 1, 3), pick(random, 8, 60), pick(random, 1, 6));
    std::vector<FleetRequest> requests;
    Count now = 0;
    for (int q = 0; q < 14; ++q) {
      if (q > 0) now += pick(random, 0, 6);
      requests.push_back({static_cast<double>(now), pick(random, 1, 20), pick(random, 0, 25), {}});
    }
    const Story twin = walk(requests, sizes, s);
    const FleetFigures got = simulate_fleet(requests, sizes.memory(), s);
    CHECK(got.completed == twin.completed);
    CHECK(got.rejected == twin.rejected);
    CHECK(got.preemptions == twin.preemptions);
    CHECK(got.largest_batch == twin.batch);
    CHECK(got.bytes.most == Approx(twin.peak));
    if (twin.seconds > 0) CHECK(got.bytes.mean * got.seconds == Approx(twin.byte_seconds));
    CHECK(got.completed + got.rejected == 14);
    if (!twin.stays.empty()) CHECK(got.stay.most == Approx(*twin.stays.rbegin()));
    if (!twin.waits.empty()) CHECK(got.wait.most == Approx(*twin.waits.rbegin()));
    double wait = 0;
    for (const Count w : twin.waits) wait += static_cast<double>(w);
    if (!twin.waits.empty())
      CHECK(got.wait.mean == Approx(wait / static_cast<double>(twin.waits.size())).margin(1e-9));
    preempted += twin.preemptions;
    rejected += twin.rejected;
  }
  CHECK(preempted > 200);
  CHECK(rejected > 100);
}

TEST_CASE("one request's memory over time is what its figures say", "[fleet]") {
  // 4 tokens are read in 2 s; then 3 tokens in 1 s each, in blocks of 4: 8, 8, 8 bytes.
  FleetSettings s = settings_of(1, 100, 8);
  s.prefill_speed = 2;
  const FleetFigures f =
      simulate_fleet(std::vector<FleetRequest>{{0, 4, 3, {}}}, Sizes{1000, 4}.memory(), s);
  CHECK(f.seconds == Approx(5));
  CHECK(f.bytes.mean == Approx((2 * 4 + 3 * 8) / 5.));
  CHECK(f.bytes.most == 8);
  CHECK(f.bytes.p50 == 8);  // the seventh and eighth byte of 100 are of bin 8
  CHECK(f.running == Approx(1));
  CHECK(f.stay.mean == Approx(5));
  double mean = 0, before = 0;
  for (const FleetInstant& piece : f.timeline) {
    mean += piece.mean * (piece.end - before);
    before = piece.end;
  }
  CHECK(mean == Approx(2 * 4 + 3 * 8));
  CHECK(f.timeline.size() <= 4096);
}

TEST_CASE("Little's law holds where nobody waits", "[fleet]") {
  const LengthDistribution prompts("lognormal(20,0.5)", "prompt");
  const LengthDistribution answers("exponential(30)", "gen");
  const auto requests = draw_requests({20000, 2, prompts, answers, 7});
  FleetSettings s = settings_of(1, 1 << 20, 1 << 20);
  s.prefill_speed = 1e6;
  const RequestMemory memory = Sizes{1000, 16}.memory();
  const FleetFigures f = simulate_fleet(requests, memory, s);
  const LittleFigures l = little(requests, memory, s);
  CHECK(f.preemptions == 0);
  CHECK(l.service == Approx(f.stay.mean).epsilon(1e-3));
  // The ends of the run, and the spread of 20,000 arrivals (a few standard errors of 1/sqrt(n)).
  CHECK(f.running == Approx(l.running).epsilon(0.03));
  CHECK(f.bytes.mean == Approx(l.bytes).epsilon(0.03));
  // Its own identity, to the last digit: byte-seconds are bytes over time.
  CHECK(f.bytes.mean * f.seconds ==
        Approx(l.bytes / l.rate * static_cast<double>(requests.size())).epsilon(1e-6));
}

TEST_CASE("prompts that begin alike are held once while somebody holds them", "[fleet]") {
  // Two prompts of 1,024 tokens share their first block of 512; one byte a token, no answers.
  FleetSettings s = settings_of(1, 1 << 20, 8);
  s.prefill_speed = 512;
  s.shared_token = 1;
  std::vector<FleetRequest> requests = {{0, 1024, 600, {1, 2}}, {10, 1024, 0, {1, 3}}};
  const RequestMemory memory = Sizes{1 << 20, 1}.memory();
  const FleetFigures f = simulate_fleet(requests, memory, s);
  CHECK(f.shared_tokens == Approx(512. / 2048));
  // The second one reads 512 tokens in one second; the first has 8 or 9 tokens then: 1,024 + 512.
  CHECK(f.stay.p50 == Approx(1));
  CHECK(f.bytes.most == 1024 + 600);
  requests[1].arrival = 603;  // the first one has gone: nothing is left to share
  CHECK(simulate_fleet(requests, memory, s).shared_tokens == 0);
  s.shared_token = 0;
  CHECK(simulate_fleet(requests, memory, s).stay.p50 == Approx(2));
}

TEST_CASE("the largest rate that fits lies below what memory allows on average", "[fleet]") {
  const auto requests = draw_requests(
      {2000, 1, LengthDistribution("64", "prompt"), LengthDistribution("64", "gen"), 3});
  FleetSettings s = settings_of(2, 2000, 1000);
  s.prefill_speed = 1e5;
  const RequestMemory memory = Sizes{1000, 16}.memory();
  const LittleFigures bounds = little(requests, memory, s);
  // 64 + 64 tokens in four steps of 16: 80, 96, 112, 128 bytes, 16 s each.
  CHECK(bounds.rate_by_memory == Approx(2 * 2000 / (16. * (80 + 96 + 112 + 128))).epsilon(1e-3));
  const double rate = largest_rate(requests, memory, s, bounds, 1);
  CHECK(rate > 0.3 * bounds.rate_by_memory);
  CHECK(rate < bounds.rate_by_memory);
  auto moved = requests;
  at_rate(moved, rate);
  CHECK(simulate_fleet(moved, memory, s).preemptions == 0);
}
