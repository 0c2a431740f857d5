// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/shared_prompt.h"

#include <algorithm>

#include <fmt/format.h>

#include "sim/base/text.h"
#include "tracegen/forward/runner.h"

namespace kvspan::tracegen {
namespace {

// Takes down q, k and v.
class PromptRecorder final : public AttentionHook {
 public:
  PromptRecorder(const ModelSpec& model, const Sequence& sequence)
      : model_(model), sequence_(sequence) {}
  Emit emit(int /*layer*/) override { return {.qkv = true}; }
  void on_qkv(const RowsQkv& rows) override {
    std::copy_n(rows.q, rows.rows * model_.q_width(), sequence_.q(rows.layer, rows.first));
    std::copy_n(rows.k, rows.rows * model_.kv_width(), sequence_.k(rows.layer, rows.first));
    std::copy_n(rows.v, rows.rows * model_.kv_width(), sequence_.v(rows.layer, rows.first));
  }

 private:
  const ModelSpec& model_;
  const Sequence& sequence_;
};

}  // namespace

SharedPrompt::SharedPrompt(const Checkpoint& checkpoint, const Sequence::Text& text,
                           const SequenceHead& head, int threads, std::int64_t most,
                           const std::function<void(double)>& progress)
    : rows_(std::ssize(text.ids)), sequence_(checkpoint.spec(), head) {
  const ModelSpec& model = checkpoint.spec();
  RunnerOptions options;
  options.tokens = rows_;
  options.threads = threads;
  const auto runner = make_cpu_runner(checkpoint, options);
  memory_bytes_ = runner->memory_bytes() + Sequence::bytes(model, sequence_.trace().meta().tokens) +
                  rows_ * model.hidden * 4 +
                  model.layers * std::int64_t{model.hidden} * model.q_width() * 4;
  if (memory_bytes_ > most) {
    throw NeedsMore(fmt::format("a prompt of {} tokens takes {}; --memory allows {}", rows_,
                                human_bytes(memory_bytes_), human_bytes(most)));
  }
  PromptRecorder recorder(model, sequence_);
  std::vector<float> hidden(static_cast<std::size_t>(rows_ * model.hidden));
  runner->embed(text.ids, hidden);
  for (int l = 0; l < model.layers; ++l) {
    runner->layer(l, 0, hidden, recorder);
    sequence_.scores(l).read(0, rows_);
    if (progress) progress(static_cast<double>(l + 1) / model.layers);
  }
  runner->head(std::span(hidden).last(static_cast<std::size_t>(model.hidden)),
               [&](std::int64_t, std::int64_t, const float* logits) {
                 logits_.assign(logits, logits + model.vocabulary);
               });
  trace_ = sequence_.prompt_trace(rows_, text, checkpoint);
}

}  // namespace kvspan::tracegen
