// SPDX-License-Identifier: Apache-2.0
// LifetimesFile: a mapped view of what write_lifetimes wrote (lifetimes_writer.h), of unknown
// origin. Metadata, shapes and dtypes are checked when it is opened; values when they are asked
// for, so that a file larger than memory opens at once and only what is shown is touched.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sim/ledger/ledger.h"
#include "sim/ledger/metrics.h"
#include "sim/trace/safetensors.h"

namespace kvspan {

class LifetimesFile {
 public:
  struct Run {
    std::string policy, label, klass;
    bool bound = false;
    int heads = 0;  // stored heads
    RowIndex evict_point = 0;
    std::vector<Representation> representations;
    Charge charge;  // entry and once
    bool waits_for_layers = false;
    bool has_selected = false;
    std::vector<RowIndex> read_rows;  // [R] rows of which reads() tells, ascending
  };

  // Errors: TraceError naming file, key or tensor, what was found and what was expected; a file of
  // a later version is refused so.
  [[nodiscard]] static LifetimesFile open(const std::filesystem::path& path);
  [[nodiscard]] static LifetimesFile from_tensors(TensorSet tensors, const std::string& name);

  [[nodiscard]] const std::string& name() const { return name_; }  // path as given
  [[nodiscard]] const std::string& trace_path() const { return trace_path_; }
  [[nodiscard]] const std::string& trace_sha256() const { return trace_sha256_; }
  [[nodiscard]] RowIndex tokens() const { return tokens_; }
  [[nodiscard]] RowIndex prompt() const { return prompt_; }
  [[nodiscard]] RowIndex chunk() const { return chunk_; }
  [[nodiscard]] int layers() const { return static_cast<int>(layer_ids_.size()); }
  [[nodiscard]] int model_layers() const { return model_layers_; }
  [[nodiscard]] const std::vector<int>& layer_ids() const { return layer_ids_; }
  // Of a file that does not say: the most stored heads of any run.
  [[nodiscard]] int query_heads() const { return query_heads_; }
  [[nodiscard]] const std::vector<std::int64_t>& sliding_window() const { return window_; }
  [[nodiscard]] const Accounting& accounting() const { return accounting_; }
  [[nodiscard]] const std::vector<Run>& runs() const { return runs_; }

  // What follows: REQUIRES: indices in range. Errors: TraceError naming the element at fault.

  // Death rows [tokens] of one head, checked at every call: index < death <= tokens.
  [[nodiscard]] std::span<const std::uint32_t> deaths(int run, int layer, int head) const;
  // At eviction [tokens], NaN and -1: none; empty if the run has none at all.
  [[nodiscard]] std::span<const float> scores(int run, int layer, int head) const;
  [[nodiscard]] std::span<const std::int32_t> ranks(int run, int layer, int head) const;
  [[nodiscard]] std::vector<Change> changes(int run, int layer) const;  // by row
  [[nodiscard]] std::vector<std::int64_t> selected(int run) const;      // [tokens] or empty
  [[nodiscard]] std::vector<std::int64_t> state(int run) const;         // [tokens] or empty
  // Entries read in row read_rows[sample] [ceil(tokens / 8)]: bit t % 8 of byte t / 8.
  [[nodiscard]] std::span<const std::uint8_t> reads(int run, int layer, int head,
                                                    std::size_t sample) const;
  // Of a file without passes: those of its chunk.
  [[nodiscard]] PassPlan plan(int run) const;

  // One layer as a ledger of its own, for compute_metrics in the memory of one layer: its deaths
  // and changes, and the charge of its entries. What belongs to the whole model is left out:
  // Charge::once, state, selected. Summed over layers, and these added, its rows are those of
  // ledger(run).
  [[nodiscard]] Ledger ledger_of_layer(int run, int layer) const;
  // All that the run wrote. Memory: 4 bytes (with scores 12) an entry, and its reads.
  [[nodiscard]] Ledger ledger(int run) const;

 private:
  class Opening;
  static constexpr std::int64_t kMostOnce = std::int64_t{1} << 60U;  // bytes of a whole model
  [[nodiscard]] Ledger shell(int run, int layers) const;
  void append(int run, int layer, Ledger& ledger) const;
  [[nodiscard]] std::string tensor_name(int run, const char* what) const;
  [[nodiscard]] const TensorView* find(int run, const char* what) const;
  template <class T>
  [[nodiscard]] std::span<const T> of_head(int run, const char* what, int layer, int head) const;
  [[nodiscard]] std::vector<std::int64_t> integers(int run, const char* what, std::int64_t low,
                                                   std::int64_t high) const;
  [[noreturn]] void fail(int run, const char* what, const std::string& found) const;

  std::shared_ptr<const TensorSet> tensors_;
  std::string name_, trace_path_, trace_sha256_;
  RowIndex tokens_ = 0, prompt_ = 0, chunk_ = 0;
  int model_layers_ = 0, query_heads_ = 0;
  std::vector<int> layer_ids_;
  std::vector<std::int64_t> window_;  // [layers] or empty
  Accounting accounting_;
  std::vector<Run> runs_;
  std::vector<std::vector<std::int64_t>> change_offsets_;  // [runs][layers + 1]
};

}  // namespace kvspan
