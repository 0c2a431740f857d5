// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/traits.h"

#include <algorithm>

namespace kvspan {

Charge Charge::plus(const Charge& other) const {
  Charge out{entry + other.entry, once + other.once, during ? during : other.during};
  if (during && other.during) {
    out.during = [a = during, b = other.during](RowIndex row) { return a(row) + b(row); };
  }
  return out;
}

Traits merge_traits(const Traits& a, const Traits& b) {
  Traits out = a;
  out.size_factor *= b.size_factor;
  out.competing = a.competing || b.competing;
  out.role_bytes += b.role_bytes;
  out.reads_lower_layers = a.reads_lower_layers || b.reads_lower_layers;
  out.waits_for_layers = a.waits_for_layers || b.waits_for_layers;
  out.reads_trace = a.reads_trace || b.reads_trace;
  out.renumbers = a.renumbers || b.renumbers;
  out.early = std::max(a.early, b.early);
  out.capacity_step = std::max(a.capacity_step, b.capacity_step);
  out.block_size = std::max(a.block_size, b.block_size);
  out.bound = a.bound || b.bound;
  out.closed_form = a.closed_form && b.closed_form;
  out.full_layers = std::max(a.full_layers, b.full_layers);
  out.charge = a.charge.plus(b.charge);
  out.cuts.insert(out.cuts.end(), b.cuts.begin(), b.cuts.end());
  out.notes.insert(out.notes.end(), b.notes.begin(), b.notes.end());
  return out;
}

}  // namespace kvspan
