// SPDX-License-Identifier: Apache-2.0
#include "sim/ledger/lives.h"

#include <algorithm>
#include <cassert>

namespace kvspan {
Held on_device(const Representation& r) {
  return {r.entries >= 0 ? r.entries : (r.device_bytes > 0 ? 1 : 0), r.device_bytes};
}

Held on_host(const Representation& r) {
  return {r.host_bytes > 0 && on_device(r).entries == 0 ? 1 : 0, r.host_bytes};
}

void Events::hold(RowIndex from, RowIndex to, const Held& what, std::int64_t sign) {
  Held& begin = delta_[index(from)];
  begin.entries += sign * what.entries;
  begin.bytes += sign * what.bytes;
  Held& end = delta_[index(to)];
  end.entries -= sign * what.entries;
  end.bytes -= sign * what.bytes;
}

void Events::clear() { std::fill(delta_.begin(), delta_.end(), Held{}); }

Lives::Lives(const Ledger& ledger)
    : ledger_(&ledger),
      host_(ledger.plan.tokens),
      read_(ledger.plan.tokens),
      device_(ledger.plan.tokens),
      left_(index(ledger.plan.tokens) + 1, 0),
      entries_(index(ledger.plan.tokens), 0),
      bytes_(index(ledger.plan.tokens), 0),
      gone_(index(ledger.plan.tokens), 0) {}

void Lives::begin_layer(int layer) {
  layer_ = layer;
  const std::vector<std::int64_t>& windows = ledger_->sliding_window;
  window_ = windows.empty() ? 0 : windows[index(layer)];
  std::fill(left_.begin(), left_.end(), char{0});
  // The changes of the layer, by head; those of a head stay in order of row.
  by_head_.assign(index(ledger_->heads), {});
  if (ledger_->changes.empty()) return;
  const std::vector<Change>& changes = ledger_->changes[index(layer)];
  assert(std::is_sorted(changes.begin(), changes.end(),
                        [](const Change& a, const Change& b) { return a.row < b.row; }));
  for (const Change& change : changes) by_head_[index(change.head)].push_back(&change);
}

HeadRows Lives::head(int head) {
  const RowIndex tokens = ledger_->plan.tokens;
  const std::span<const std::uint32_t> deaths = ledger_->deaths(layer_, head);
  const Representation& born = ledger_->representations[0];
  const Held newborn = on_device(born);
  const Held newborn_host = on_host(born);
  device_.clear();
  for (RowIndex token = 0; token < tokens; ++token) {
    const RowIndex death = deaths[index(token)];
    assert(death > token && death <= tokens);
    device_.hold(token, death, newborn, 1);
    if (window_ > 0) read_.hold(token, last_read(token, death), newborn, 1);
    if (newborn_host.bytes > 0) host_.hold(token, death, newborn_host, 1);
    gone_[index(token)] = newborn.entries > 0 ? death : 0;
  }
  const std::vector<const Change*>& changes = by_head_[index(head)];
  if (!changes.empty()) held_as_.assign(deaths.size(), 0);
  for (const Change* change : changes) apply(*change, deaths[index(change->token)]);
  // A block of the paged layouts is held until gone_; a layer evicts where an entry leaves the
  // device, by death or for the host.
  Held state;
  for (RowIndex row = 0; row < tokens; ++row) {
    state += device_.at(row);
    if (window_ == 0) read_.add(row, device_.at(row));  // what is there is read
    entries_[index(row)] = state.entries - newborn.entries;
    bytes_[index(row)] = state.bytes - newborn.bytes;
    left_[index(gone_[index(row)])] = 1;
  }
  return {entries_, bytes_, gone_};
}

// End of the rows that read a token: a row reads the keys inside the model's window, which are
// those with row - window < token. REQUIRES: window_ > 0.
RowIndex Lives::last_read(RowIndex token, RowIndex death) const {
  return std::min(death, token + window_);
}

void Lives::apply(const Change& change, RowIndex death) {
  const RowIndex token = change.token;
  // Entries are born in representation 0, so that the first row that can differ is the next.
  const RowIndex from = std::max(change.row, token + 1);
  if (from >= death) return;
  int& held_as = held_as_[index(token)];
  const Representation& old = ledger_->representations[index(held_as)];
  const Representation& now = ledger_->representations[index(change.representation)];
  held_as = change.representation;
  device_.hold(from, death, on_device(old), -1);
  device_.hold(from, death, on_device(now), 1);
  host_.hold(from, death, on_host(old), -1);
  host_.hold(from, death, on_host(now), 1);
  if (window_ > 0 && from < last_read(token, death)) {
    const RowIndex end = last_read(token, death);
    read_.hold(from, end, on_device(old), -1);
    read_.hold(from, end, on_device(now), 1);
  }
  if (on_device(now).entries > 0) {
    // It may have left before and come back: that was an eviction of its own.
    if (on_device(old).entries == 0) left_[index(gone_[index(token)])] = 1;
    gone_[index(token)] = death;
  } else if (on_device(old).entries > 0) {
    gone_[index(token)] = from;
  }
}

}  // namespace kvspan
