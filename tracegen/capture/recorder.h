// SPDX-License-Identifier: Apache-2.0
// The hook of a capture: what the attention reads and gives, as raw files of the work folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tracegen/capture/capture.h"
#include "tracegen/capture/work_folder.h"
#include "tracegen/forward/runner.h"

namespace kvspan::tracegen {

inline constexpr std::int64_t kRestoreRows = 1024;     // of keys and values, at a time
inline constexpr std::int64_t kPieceFloats = 1 << 20;  // converted at a time

// Writes what the attention of the stored layers reads and gives into the work folder.
class Recorder final : public AttentionHook {
 public:
  Recorder(const ModelSpec& model, const CaptureOptions& options, WorkFolder& work);

  // Room for everything that a layer will give, and what is known before it runs.
  void reserve(int layer);
  // A file of the layer that is not there as reserve() made it; empty: all are.
  [[nodiscard]] std::string missing(int layer) const;
  // Everything that the layer gave is on the disk.
  void sync(int layer);
  // The rows that follow are those of prefill pass `pass`, or of none.
  void begin(std::optional<std::int64_t> pass) {
    pass_ = pass;
    replayed_.reset();
  }
  // The rows that follow are replayed ones, the first of them that of the tensors' row `row`.
  //   norms   of all rows of the pass; empty: not stored
  void begin_replay(int layer, std::int64_t row, std::span<const float> norms);

  // Keys and values of the given tokens, as layer() left them.
  void restore(int layer, Runner& runner) const;

  Emit emit(int layer) override;
  void on_qkv(const RowsQkv& rows) override;
  void on_scores(const RowsScores& scores) override;
  void on_column_mass(int layer, std::int64_t keys, std::span<const float> mass) override;

 private:
  [[nodiscard]] int stored(int layer) const { return stored_[static_cast<std::size_t>(layer)]; }
  // Names and sizes of a layer's files.
  [[nodiscard]] std::map<std::string, std::int64_t> files(int layer) const;
  // Rows of `width` numbers, from row `first` of the tensor, in the trace's type.
  void put(int at, const char* name, int layer, std::int64_t first, const float* values,
           std::int64_t rows, std::int64_t width);
  void record_wo(int layer, int at);

  const ModelSpec& model_;
  const CaptureOptions& options_;
  WorkFolder& work_;
  std::vector<int> stored_;         // [model layers] index in the trace, -1: not stored
  std::vector<std::int64_t> rows_;  // that a score trace keeps
  std::optional<std::int64_t> pass_;
  std::optional<std::int64_t> replayed_;  // place in the tensors of row `at` of the sequence
  std::vector<std::byte> bytes_;
};

}  // namespace kvspan::tracegen
