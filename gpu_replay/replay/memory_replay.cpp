// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/replay/memory_replay.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>

#include "gpu_replay/replay/sequence.h"
#include "sim/base/random.h"

namespace kvspan::gpu_replay {
namespace {

// What lies in an entry, so that a move to a wrong place shows: bytes that its name alone says.
class Stamps {
 public:
  Stamps(KvPool& pool, std::int64_t widest) : pool_(&pool), widest_(widest) {}

  void write(int layer, int head, TokenIndex token) {
    (void)pool_->write(layer, head, token, stamp(layer, head, token));
  }

  // Entries whose bytes are not what was written.
  [[nodiscard]] std::int64_t wrong(int layer) {
    std::int64_t count = 0;
    for (int head = 0; head < pool_->shape().heads; ++head) {
      for (const TokenIndex token : pool_->held(layer, head)) {
        const auto expected = stamp(layer, head, token);
        found_.resize(expected.size());
        for (int copy = 0; copy < pool_->copies(); ++copy) {
          if (pool_->read(layer, head, token, found_, copy) &&
              !std::equal(found_.begin(), found_.end(), expected.begin()))
            ++count;
        }
      }
    }
    return count;
  }

 private:
  // As many bytes as the entry has; a slot has as many as it was born with.
  [[nodiscard]] std::span<const std::byte> stamp(int layer, int head, TokenIndex token) {
    const auto& kinds = pool_->shape().representations;
    const std::int64_t bytes =
        std::min(kinds[index(pool_->held_as(layer, head, token))].device_bytes, widest_);
    bytes_.resize(index(bytes));
    std::uint64_t word =
        splitmix64((static_cast<std::uint64_t>(layer) << 48U) ^
                   (static_cast<std::uint64_t>(head) << 32U) ^ static_cast<std::uint64_t>(token));
    for (std::size_t i = 0; i < bytes_.size(); i += sizeof word) {
      std::memcpy(bytes_.data() + i, &word, std::min(sizeof word, bytes_.size() - i));
      word = word * 3 + 1;
    }
    return bytes_;
  }
  KvPool* pool_;
  std::int64_t widest_;
  std::vector<std::byte> bytes_, found_;
};

// Peaks and sums, by the rules of sim/ledger/peaks.h.
class Record {
 public:
  Record(MemoryReplay& out, const Ledger& ledger, bool layerwise) : out_(&out), ledger_(&ledger) {
    out.rows.resize(index(ledger.plan.tokens));
    if (!layerwise) out.byte_rows = out.backed_byte_rows = out.payload_byte_rows = 0;
  }

  void add(const Pass& pass, const Moment& now) {
    out_->rows[index(now.row)] = now;
    if (out_->byte_rows) {
      *out_->byte_rows += now.total();
      *out_->backed_byte_rows += now.backed;
      *out_->payload_byte_rows += now.kv.payload;
    }
    PeakBytes& peak = out_->peak;
    std::int64_t& phase = now.row < ledger_->plan.prompt ? peak.prefill : peak.decode;
    phase = std::max(phase, now.total());
    // Of equal ones in a pass the last row counts; of the moments of that row the first.
    const bool later = now.total() == peak.total && peak.row >= pass.begin && now.row > peak.row;
    if (first_ || now.total() > peak.total || later) {
      peak.total = now.total();
      peak.kv = now.kv.used();
      peak.overhead = now.state;
      peak.row = now.row;
      out_->at_peak = now;
    }
    first_ = false;
  }

 private:
  MemoryReplay* out_;
  const Ledger* ledger_;
  bool first_ = true;
};

}  // namespace

MemoryReplay replay_memory(const Ledger& ledger, const std::string& layout, DeviceMemory& memory,
                           const MemoryReplaySettings& settings) {
  MemoryReplay out;
  const Metrics metrics = compute_metrics(ledger, {2, settings.layerwise, layout});
  out.layout = layout;
  out.predicted = metrics.peak_bytes;
  out.predicted_byte_rows = metrics.byte_rows;
  out.granule = memory.granule();
  out.most_backed.measured = 0;

  const std::vector<LayerSteps> steps = steps_of(ledger);
  ArenaSet arenas(memory);
  Record record(out, ledger, settings.layerwise);
  std::optional<Stamps> stamps;
  Sequence::Hooks hooks;
  KvPool* pool = nullptr;
  hooks.moment = [&](const Pass& pass, RowIndex row) {
    Moment now{row, pool->usage(), pool->state_bytes(), memory.backed(), -1, pool->table_entries()};
    // The device is asked where most is backed, once a pass: that takes its time.
    if (now.backed > out.most_backed.backed && row == pass.end - 1) {
      now.measured = memory.measured();
      out.most_backed = now;
    }
    record.add(pass, now);
  };
  hooks.pass_ended = [&](const Pass& pass) {
    if (settings.cancelled && settings.cancelled()) throw Interrupted();
    if (settings.progress)
      settings.progress(static_cast<double>(pass.end) / static_cast<double>(ledger.plan.tokens));
  };
  if (settings.stamps) {
    hooks.appended = [&](int layer, TokenIndex token) {
      for (int head = 0; head < ledger.heads; ++head) stamps->write(layer, head, token);
    };
    hooks.changed = [&](int layer, const Step& step) {
      stamps->write(layer, step.head, step.token);
    };
  }
  Sequence sequence(ledger, steps, parse_layout(layout), settings.layerwise, arenas, hooks);
  pool = &sequence.pool();
  stamps.emplace(*pool, ledger.representations[0].device_bytes);
  try {
    while (!sequence.done()) sequence.advance();
  } catch (const OutOfMemory& shortage) {
    out.shortage = {sequence.row(), sequence.layer(), shortage.asked, shortage.free};
    out.most_backed = out.at_peak;
    out.most_backed.backed = memory.backed();
    out.most_backed.measured = memory.measured();
    return out;
  }
  out.moved = pool->moved();
  for (int layer = 0; layer < ledger.layers; ++layer) {
    if (settings.stamps) out.wrong_bytes += stamps->wrong(layer);
    for (int head = 0; head < ledger.heads; ++head) {
      const std::vector<TokenIndex> held = pool->held(layer, head);
      const auto deaths = ledger.deaths(layer, head);
      const auto alive = std::count(deaths.begin(), deaths.end(), ledger.plan.tokens);
      out.wrong_deaths += std::abs(std::ssize(held) - alive);
      for (const TokenIndex token : held)
        out.wrong_deaths += deaths[index(token)] < ledger.plan.tokens ? 1 : 0;
    }
  }
  return out;
}

}  // namespace kvspan::gpu_replay
