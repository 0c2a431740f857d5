// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/replay/fill.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "gpu_replay/replay/sequence.h"

namespace kvspan::gpu_replay {
namespace {

// The row in which a sequence waits: where it holds most in decode, or its last one.
RowIndex waiting_row(const Ledger& ledger, const Metrics& metrics) {
  const std::vector<std::int64_t>& bytes = metrics.timeline.resident_bytes;
  if (ledger.plan.prompt == ledger.plan.tokens) return ledger.plan.tokens - 1;
  return std::max_element(bytes.begin() + ledger.plan.prompt, bytes.end()) - bytes.begin();
}

}  // namespace

std::int64_t most_sequences(std::int64_t limit, std::int64_t prefill, std::int64_t waiting) {
  const std::int64_t first = std::max(prefill, waiting);
  if (first > limit) return 0;
  return waiting == 0 ? kMostSequences : std::min(kMostSequences, (limit - first) / waiting + 1);
}

Fill fill_memory(const Ledger& ledger, const std::string& layout, DeviceMemory& memory,
                 const MemoryReplaySettings& settings) {
  const Metrics metrics = compute_metrics(ledger, {2, settings.layerwise, layout});
  const RowIndex waits = waiting_row(ledger, metrics);
  Fill out;
  out.layout = layout;
  out.limit = memory.limit() > 0 ? memory.limit() : memory.free();
  out.predicted = most_sequences(out.limit, metrics.peak_bytes.prefill,
                                 metrics.timeline.resident_bytes[index(waits)]);
  const std::vector<LayerSteps> steps = steps_of(ledger);
  const Layout parsed = parse_layout(layout);
  ArenaSet arenas(memory);
  std::vector<std::unique_ptr<Sequence>> there;
  try {
    for (; out.sequences < kMostSequences; ++out.sequences) {
      if (settings.cancelled && settings.cancelled()) throw Interrupted();
      there.push_back(std::make_unique<Sequence>(ledger, steps, parsed, settings.layerwise, arenas,
                                                 Sequence::Hooks{}));
      Sequence& sequence = *there.back();
      while (sequence.row() < waits) sequence.advance();
      // One of one pass is through with it, unless its last row is all that is left.
      if (!sequence.done()) sequence.advance(false);
      if (settings.progress) {
        settings.progress(
            std::min(1.0, static_cast<double>(memory.backed()) / static_cast<double>(out.limit)));
      }
    }
    out.stopped = true;
  } catch (const OutOfMemory&) {
    there.pop_back();
  }
  out.backed = memory.backed();
  for (const auto& sequence : there)
    out.used += sequence->pool().usage().used() + sequence->pool().state_bytes();
  return out;
}

}  // namespace kvspan::gpu_replay
