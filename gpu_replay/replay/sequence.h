// SPDX-License-Identifier: Apache-2.0
// One sequence on its way through a pool, as a ledger says: row by row and pass by pass.
//
//   for each pass
//     for each row: a token is born in every layer           `moment`: the row attends
//     in every layer: who leaves, leaves                     in place
//
// and of a prefill pass that is compressed layer by layer
//
//   for each layer
//     its rows are born                                      `moment`: the layer attends
//     who leaves, leaves                                     by a copy; `moment`: both are there
//   (in a second loop where all layers attend before any is cut: Ledger::waits_for_layers)
#pragma once

#include <functional>
#include <vector>

#include "gpu_replay/pool/kv_pool.h"
#include "gpu_replay/replay/steps.h"

namespace kvspan::gpu_replay {

class Sequence {
 public:
  struct Hooks {
    std::function<void(int layer, TokenIndex token)> appended;   // its bytes can be written
    std::function<void(int layer, const Step& step)> changed;    // to be written anew
    std::function<void(const Pass& pass, RowIndex row)> moment;  // KV and state are there
    std::function<void(const Pass& pass)> pass_ended;            // and what left has left
  };
  // All that is given must outlive it. Empty hooks are not called.
  Sequence(const Ledger& ledger, const std::vector<LayerSteps>& steps, const Layout& layout,
           bool layerwise, ArenaSet& arenas, Hooks hooks);

  [[nodiscard]] bool done() const { return pass_ == ledger_->plan.ends.size(); }
  // Where the next pass begins.
  [[nodiscard]] RowIndex row() const { return row_; }
  // Where it was when memory ran out.
  [[nodiscard]] int layer() const { return layer_; }
  // The next pass; `leaves`: and who leaves at its end. Errors: OutOfMemory, and then nothing more
  // can be done with it.
  void advance(bool leaves = true);
  [[nodiscard]] KvPool& pool() { return pool_; }

 private:
  void rows_of_all_layers(const Pass& pass, bool leaves);
  void layer_by_layer(const Pass& pass);
  void compress(int layer, const Pass& pass);
  void append(int layer, RowIndex row);
  void apply(int layer, RowIndex row, bool pass_ends);
  void tell_changes(int layer, RowIndex row) const;
  void moment(const Pass& pass, RowIndex row);

  const Ledger* ledger_;
  const std::vector<LayerSteps>* steps_;
  bool layerwise_, copies_;
  Hooks hooks_;
  KvPool pool_;
  std::size_t pass_ = 0;
  RowIndex row_ = 0;
  int layer_ = 0;
};

}  // namespace kvspan::gpu_replay
