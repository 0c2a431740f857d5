// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/replay/sequence.h"

#include <utility>

namespace kvspan::gpu_replay {

Sequence::Sequence(const Ledger& ledger, const std::vector<LayerSteps>& steps, const Layout& layout,
                   bool layerwise, ArenaSet& arenas, Hooks hooks)
    : ledger_(&ledger),
      steps_(&steps),
      layerwise_(layerwise),
      copies_(copies_survivors(layout)),
      hooks_(std::move(hooks)),
      pool_(shape_of(ledger, layout), arenas) {}

void Sequence::advance(bool leaves) {
  const Pass pass = pass_at(ledger_->plan, pass_);
  if (layerwise_ && pass.end <= pass.prompt_end)
    layer_by_layer(pass);
  else
    rows_of_all_layers(pass, leaves);
  if (hooks_.pass_ended) hooks_.pass_ended(pass);
  row_ = pass.end;
  ++pass_;
}

void Sequence::append(int layer, RowIndex row) {
  layer_ = layer;
  pool_.append(layer, static_cast<TokenIndex>(row));
  if (hooks_.appended) hooks_.appended(layer, static_cast<TokenIndex>(row));
}

void Sequence::apply(int layer, RowIndex row, bool pass_ends) {
  layer_ = layer;
  pool_.apply(layer, (*steps_)[index(layer)].at(row), pass_ends);
  tell_changes(layer, row);
}

void Sequence::tell_changes(int layer, RowIndex row) const {
  if (!hooks_.changed) return;
  for (const Step& step : (*steps_)[index(layer)].at(row)) {
    if (step.representation != Step::kEvicted) hooks_.changed(layer, step);
  }
}

void Sequence::moment(const Pass& pass, RowIndex row) {
  pool_.set_state(ledger_->charge.entry * pool_.entries() + ledger_->fixed_overhead(row));
  if (hooks_.moment) hooks_.moment(pass, row);
}

void Sequence::rows_of_all_layers(const Pass& pass, bool leaves) {
  for (row_ = pass.begin; row_ < pass.end; ++row_) {
    for (int layer = 0; layer < ledger_->layers; ++layer) {
      if (row_ > pass.begin) apply(layer, row_, false);
      append(layer, row_);
    }
    moment(pass, row_);
  }
  if (!leaves || pass.end == ledger_->plan.tokens) return;
  for (int layer = 0; layer < ledger_->layers; ++layer) apply(layer, pass.end, true);
}

void Sequence::layer_by_layer(const Pass& pass) {
  row_ = pass.end - 1;
  const bool waits = ledger_->waits_for_layers && pass.is_evict_point();
  for (int layer = 0; layer < ledger_->layers; ++layer) {
    for (RowIndex row = pass.begin; row < pass.end; ++row) {
      if (row > pass.begin) apply(layer, row, false);
      append(layer, row);
    }
    moment(pass, row_);
    if (!waits) compress(layer, pass);
  }
  for (int layer = 0; waits && layer < ledger_->layers; ++layer) compress(layer, pass);
}

void Sequence::compress(int layer, const Pass& pass) {
  if (pass.end == ledger_->plan.tokens) return;
  const LayerSteps& steps = (*steps_)[index(layer)];
  if (!copies_ || !steps.leaves_at(pass.end)) {
    apply(layer, pass.end, true);
    return;
  }
  layer_ = layer;
  pool_.apply_by_copy(layer, steps.at(pass.end), [&] { moment(pass, row_); });
  tell_changes(layer, pass.end);
}

}  // namespace kvspan::gpu_replay
