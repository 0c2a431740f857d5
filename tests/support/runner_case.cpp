// SPDX-License-Identifier: Apache-2.0
#include "tests/support/runner_case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include <fmt/format.h>

namespace kvspan::tracegen::testing {
namespace {

class Record final : public AttentionHook {
 public:
  Record(const ModelSpec& spec, const RunnerCase& input, RunnerOutput& output)
      : spec_(spec), input_(input), output_(output) {}

  Emit emit(int /*layer*/) override { return input_.emit; }
  std::span<const std::uint8_t> visible(int /*layer*/, RowIndex first, std::int64_t rows) override {
    visible_.clear();
    if (!input_.hide) return visible_;
    for (int head = 0; head < spec_.kv_heads; ++head)
      for (RowIndex key = 0; key < first + rows; ++key)
        visible_.push_back(key > 0 && key % (head == 0 ? 3 : 4) == 1 ? 0 : 1);
    return visible_;
  }
  void on_qkv(const RowsQkv& rows) override {
    LayerOutput& to = output_.layers[static_cast<std::size_t>(rows.layer)];
    append(to.q, rows.q, rows.rows * spec_.query_heads * spec_.head_dim);
    append(to.k, rows.k, rows.rows * spec_.kv_heads * spec_.head_dim);
    append(to.v, rows.v, rows.rows * spec_.kv_heads * spec_.head_dim);
  }
  void on_scores(const RowsScores& rows) override {
    LayerOutput& to = output_.layers[static_cast<std::size_t>(rows.layer)];
    const std::int64_t heads = rows.rows * spec_.query_heads;
    append(to.prob, rows.prob, heads * rows.top_k);
    append(to.index, rows.index, heads * rows.top_k);
    append(to.lse, rows.lse, rows.lse == nullptr ? 0 : heads);
  }
  void on_column_mass(int layer, std::int64_t keys, std::span<const float> mass) override {
    append(output_.layers[static_cast<std::size_t>(layer)].mass, mass.data(),
           keys * spec_.query_heads);
  }

 private:
  template <typename T>
  static void append(std::vector<T>& to, const T* from, std::int64_t count) {
    if (from != nullptr) to.insert(to.end(), from, from + count);
  }

  const ModelSpec& spec_;
  const RunnerCase& input_;
  RunnerOutput& output_;
  std::vector<std::uint8_t> visible_;
};

}  // namespace

Checkpoint tiny_checkpoint(const std::string& name) {
  return Checkpoint::open(std::string(KVSPAN_TESTS_DIR "/data/tracegen/checkpoints/") + name);
}

RunnerCase tiny_case() {
  RunnerCase c;
  c.ids.resize(24);
  for (std::size_t i = 0; i < c.ids.size(); ++i) c.ids[i] = static_cast<std::int32_t>(i * 29 % 48);
  c.ends = {14, 22, 23, 24};
  c.emit = {.qkv = true, .top_k = 5, .lse = true, .column_mass = true};
  return c;
}

RunnerOutput run_case(Runner& runner, const ModelSpec& spec, const RunnerCase& input) {
  RunnerOutput output;
  output.layers.resize(static_cast<std::size_t>(spec.layers));
  Record record(spec, input, output);
  const auto width = static_cast<std::size_t>(spec.hidden);
  output.hidden.resize(input.ids.size() * width);
  runner.embed(input.ids, output.hidden);
  const auto run = [&](int layer, std::size_t pass) {
    const std::int64_t first = pass == 0 ? 0 : input.ends[pass - 1];
    runner.layer(layer, first,
                 std::span(output.hidden)
                     .subspan(static_cast<std::size_t>(first) * width,
                              static_cast<std::size_t>(input.ends[pass] - first) * width),
                 record);
  };
  const std::size_t layers = output.layers.size(), passes = input.ends.size();
  for (std::size_t i = 0; i < layers * passes; ++i)
    run(static_cast<int>(input.by_layer ? i / passes : i % layers),
        input.by_layer ? i % passes : i / layers);
  runner.head(output.hidden, [&](std::int64_t /*first*/, std::int64_t rows, const float* logits) {
    output.logits.insert(output.logits.end(), logits, logits + rows * spec.vocabulary);
  });
  return output;
}

std::string worst_difference(const RunnerOutput& want, const RunnerOutput& got, double tolerance) {
  std::string worst;
  double excess = 1;
  const auto compare = [&](const std::string& name, const std::vector<float>& a,
                           const std::vector<float>& b) {
    if (a.size() != b.size()) {
      worst = fmt::format("{} has {} elements, not {}", name, b.size(), a.size());
      excess = std::numeric_limits<double>::infinity();
      return;
    }
    double largest = 0;
    for (const float x : a)
      if (std::isfinite(x)) largest = std::max(largest, std::abs(double{x}));
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (a[i] == b[i]) continue;
      const double difference = std::abs(double{a[i]} - double{b[i]});
      const double times = std::isfinite(difference) ? difference / (tolerance * largest)
                                                     : std::numeric_limits<double>::infinity();
      if (times <= excess) continue;
      excess = times;
      worst =
          fmt::format("{}[{}] is {}, not {}: {:.3g} times the bound", name, i, b[i], a[i], times);
    }
  };
  for (std::size_t l = 0; l < want.layers.size(); ++l) {
    const LayerOutput &a = want.layers[l], &b = got.layers[l];
    const auto name = [&](const char* tensor) { return fmt::format("layer {}: {}", l, tensor); };
    compare(name("q"), a.q, b.q);
    compare(name("k"), a.k, b.k);
    compare(name("v"), a.v, b.v);
    compare(name("prob"), a.prob, b.prob);
    compare(name("lse"), a.lse, b.lse);
    compare(name("mass"), a.mass, b.mass);
    // Where another key stands, the reference's probability of that key must be as large; a key
    // that it does not list is less than its last.
    const std::size_t rows = a.lse.size(), top_k = rows == 0 ? 0 : a.index.size() / rows;
    for (std::size_t i = 0; i < std::min(a.index.size(), b.index.size()); ++i) {
      if (a.index[i] == b.index[i]) continue;
      const auto row = a.index.begin() + static_cast<std::ptrdiff_t>(i / top_k * top_k);
      const auto found = std::find(row, row + static_cast<std::ptrdiff_t>(top_k - 1), b.index[i]);
      const double p = a.prob[static_cast<std::size_t>(found - a.index.begin())];
      const double times = std::abs(double{a.prob[i]} - p) / tolerance;
      if (times <= excess) continue;
      excess = times;
      worst = fmt::format("{}[{}] is {}, not {}: {:.3g} times the bound", name("index"), i,
                          b.index[i], a.index[i], times);
    }
  }
  compare("hidden", want.hidden, got.hidden);
  compare("logits", want.logits, got.logits);
  return worst;
}

}  // namespace kvspan::tracegen::testing
