// SPDX-License-Identifier: Apache-2.0
// The forward pass of runner_cpu.cpp on a GPU. A pass goes in waves of rows through three streams;
// two slots of pinned memory alternate, so that copies, and what the hook does on the host, run
// beside the products and the attention of the next wave:
//
//     upload    [hidden 0][hidden 1]      [hidden 2] ...
//     compute             [  wave 0   ][  wave 1   ][  wave 2   ]
//     download                         [out, qkv 0 ][out, qkv 1 ]
//     host                                          [ hook 0 ]   [ hook 1 ]
//
// Weights are widened on the host and uploaded a layer at a time; all layers stay on the device if
// generation is to come (keep_kv) and they fit, else one place is used for each layer in turn.
#include "tracegen/cuda/runner.h"

#include <algorithm>
#include <array>
#include <vector>

#include <fmt/format.h>
#include <tbb/task_arena.h>

#include "sim/base/text.h"
#include "tracegen/cuda/attention.h"
#include "tracegen/cuda/buffers.h"
#include "tracegen/cuda/dense.h"
#include "tracegen/cuda/device.h"
#include "tracegen/cuda/layer.h"
#include "tracegen/cuda/weights.h"
#include "tracegen/forward/rope_table.h"
#include "tracegen/forward/runner_common.h"

namespace kvspan::tracegen {
namespace {

class CudaRunner final : public Runner {
 public:
  CudaRunner(const Checkpoint& checkpoint, const RunnerOptions& options)
      : checkpoint_(checkpoint),
        spec_(checkpoint_.spec()),
        options_(options),
        name_(device_name()),
        dense_type_(options.half_precision ? DeviceType::bf16 : DeviceType::f32),
        attention_type_(options.half_precision ? DeviceType::f16 : DeviceType::f32),
        wave_(std::min(options.wave, std::max<std::int64_t>(options.tokens, 1))),
        arena_(options.threads > 0 ? options.threads : tbb::task_arena::automatic),
        dense_(compute_, dense_type_),
        weights_(checkpoint_, dense_type_, compute_, arena_, memory_) {
    check_attention_cuda(attention_type_, spec_.head_dim, options.top_k);
    const std::int64_t layers = options.keep_kv ? spec_.layers : 1;
    const std::string rows = fmt::format("{} rows", options.tokens);
    kv_ = memory_.allocate(
        MemoryKind::device,
        2 * layers * options.tokens * spec_.kv_width() * element_bytes(attention_type_),
        fmt::format("keys and values of {} in {} layer{}", rows, layers, layers == 1 ? "" : "s"));
    allocate_wave();
    reserve_emitted({.top_k = options.top_k, .lse = options.top_k > 0});
    weights_.reserve(options.keep_kv);
  }

  void embed(std::span<const std::int32_t> ids, std::span<float> hidden) override {
    embed_rows(checkpoint_, ids, hidden);
  }

  void layer(int layer, RowIndex first, std::span<float> hidden, AttentionHook& hook,
             const std::function<void(double)>& progress) override {
    settle();  // an earlier call may have been left by an exception of the hook
    const LayerOnDevice& weights = weights_.layer(layer);
    Pass pass{.layer = layer,
              .first = first,
              .rows = static_cast<std::int64_t>(hidden.size()) / spec_.hidden,
              .emit = hook.emit(layer),
              .hidden = hidden};
    const std::int64_t keys = first + pass.rows;
    const std::span<const std::uint8_t> visible = hook.visible(layer, first, pass.rows);
    if (!visible.empty()) {
      memory_.reserve(visible_, static_cast<std::int64_t>(visible.size()),
                      "visibility of the keys");
      KVSPAN_CUDA_CHECK(cudaMemcpyAsync(visible_.as<void>(), visible.data(), visible.size(),
                                        cudaMemcpyHostToDevice, compute_.get()));
      pass.visible = visible_.as<std::uint8_t>();
    }
    if (pass.emit.column_mass) {
      const std::int64_t bytes = spec_.query_heads * keys * kFloatBytes;
      memory_.reserve(mass_, bytes, "column masses");
      KVSPAN_CUDA_CHECK(
          cudaMemsetAsync(mass_.as<void>(), 0, static_cast<std::size_t>(bytes), compute_.get()));
    }
    reserve_emitted(pass.emit);

    const std::int64_t waves = (pass.rows + wave_ - 1) / wave_;
    for (std::int64_t wave = 0; wave < waves + 2; ++wave) {
      if (wave >= 2) {
        deliver(pass, wave - 2, hook);
        if (progress)
          progress(static_cast<double>(std::min(pass.rows, (wave - 1) * wave_)) /
                   static_cast<double>(pass.rows));
      }
      if (wave < waves) start(pass, wave, weights);
    }
    if (pass.emit.column_mass) {
      std::vector<float> mass(static_cast<std::size_t>(spec_.query_heads * keys));
      KVSPAN_CUDA_CHECK(cudaMemcpyAsync(mass.data(), mass_.as<void>(), mass.size() * kFloatBytes,
                                        cudaMemcpyDeviceToHost, compute_.get()));
      KVSPAN_CUDA_CHECK(cudaStreamSynchronize(compute_.get()));
      hook.on_column_mass(layer, keys, mass);
    }
  }

  void restore(const RowsQkv& rows) override {
    settle();
    const Slot& slot = slots_[0];
    for (std::int64_t begin = 0; begin < rows.rows; begin += wave_) {
      const std::int64_t count = std::min(wave_, rows.rows - begin);
      const auto put = [&](const float* from, const Mirror& via, std::byte* to) {
        std::copy_n(from + begin * spec_.kv_width(), count * spec_.kv_width(), via.on_host());
        copy_mirror(via, count * spec_.kv_width(), cudaMemcpyHostToDevice, compute_);
        narrow_cuda(via.on_device(), count * spec_.kv_width(), attention_type_,
                    to + (rows.first + begin) * spec_.kv_width() * element_bytes(attention_type_),
                    compute_.get());
      };
      put(rows.k, slot.k, keys_of(rows.layer));
      put(rows.v, slot.v, values_of(rows.layer));
      KVSPAN_CUDA_CHECK(cudaStreamSynchronize(compute_.get()));
    }
  }

  void head(std::span<const float> hidden,
            const std::function<void(std::int64_t, std::int64_t, const float*)>& use) override {
    settle();
    const std::int64_t rows = static_cast<std::int64_t>(hidden.size()) / spec_.hidden;
    const std::int64_t block = std::min(head_block_rows(spec_), wave_);
    weights_.load_head();
    for (std::int64_t begin = 0; begin < rows; begin += block) {
      const std::int64_t count = std::min(block, rows - begin);
      const Mirror& in = slots_[0].hidden;
      std::copy_n(hidden.data() + begin * spec_.hidden, count * spec_.hidden, in.on_host());
      copy_mirror(in, count * spec_.hidden, cudaMemcpyHostToDevice, compute_);
      norm_rows_cuda(in.on_device(), weights_.final_norm(), count, spec_.hidden, eps(), dense_type_,
                     normed_.as<void>(), compute_.get());
      dense_.multiply(normed_.as<void>(), count, weights_.head(), spec_.vocabulary, spec_.hidden, 0,
                      logits_.on_device());
      copy_mirror(logits_, count * spec_.vocabulary, cudaMemcpyDeviceToHost, compute_);
      KVSPAN_CUDA_CHECK(cudaStreamSynchronize(compute_.get()));
      require_finite(logits_.on_host(), count * spec_.vocabulary, "the logits");
      use(begin, count, logits_.on_host());
    }
  }

  [[nodiscard]] std::string description() const override {
    return fmt::format("CUDA, {}, {}; {} of weights on the device, {} allocated there", name_,
                       options_.half_precision ? "BF16 products and F16 attention, sums in fp32"
                                               : "fp32 without TF32",
                       weights_.all_layers() ? "all layers" : "one layer",
                       human_bytes(memory_.device_bytes()));
  }

  [[nodiscard]] std::int64_t memory_bytes() const override { return memory_.pinned_bytes(); }

 private:
  struct Pass {
    int layer = 0;
    RowIndex first = 0;
    std::int64_t rows = 0;
    Emit emit;
    std::span<float> hidden;
    const std::uint8_t* visible = nullptr;  // [kv_heads, first + rows], on the device
  };

  [[nodiscard]] std::int64_t qkv_width() const { return spec_.q_width() + 2 * spec_.kv_width(); }
  [[nodiscard]] float eps() const { return static_cast<float>(spec_.norm_eps); }
  [[nodiscard]] std::byte* keys_of(int layer) const {
    const std::int64_t bytes = options_.tokens * spec_.kv_width() * element_bytes(attention_type_);
    return kv_.as<std::byte>() + (options_.keep_kv ? 2 * layer : 0) * bytes;
  }
  [[nodiscard]] std::byte* values_of(int layer) const {
    return keys_of(layer) + options_.tokens * spec_.kv_width() * element_bytes(attention_type_);
  }

  // ---- Memory -----------------------------------------------------------------------------------

  void allocate_wave() {
    const std::string purpose = fmt::format("a wave of {} rows", wave_);
    for (Slot& slot : slots_) reserve_wave(slot, spec_, wave_, memory_);
    const std::int64_t widest =
        std::max({spec_.q_width(), std::int64_t{spec_.hidden}, std::int64_t{spec_.intermediate}});
    const auto buffer = [&](std::int64_t floats) {
      return memory_.allocate(MemoryKind::device, wave_ * floats * kFloatBytes, purpose);
    };
    product_ = buffer(std::max(qkv_width(), 2 * std::int64_t{spec_.intermediate}));
    normed_ = buffer(widest);
    q_ = buffer(spec_.q_width());
    attended_ = buffer(spec_.q_width());
    memory_.reserve(logits_, std::min(head_block_rows(spec_), wave_) * spec_.vocabulary, "logits");
  }
  [[nodiscard]] std::int64_t pairs() const {
    return static_cast<std::int64_t>(spec_.rope.inverse_frequencies.size());
  }

  void reserve_emitted(const Emit& emit) {
    for (Slot& slot : slots_) reserve_scores(slot, spec_, wave_, emit, memory_);
    memory_.reserve(workspace_,
                    static_cast<std::int64_t>(attention_cuda_workspace(
                        {.query_heads = spec_.query_heads, .rows = wave_}, emit.top_k)),
                    fmt::format("scores of {} rows, top {}", wave_, emit.top_k));
  }

  // ---- Waves ------------------------------------------------------------------------------------

  // Waits for whatever was launched.
  void settle() const {
    for (const CudaStream* stream : {&upload_, &compute_, &download_})
      KVSPAN_CUDA_CHECK(cudaStreamSynchronize(stream->get()));
  }

  [[nodiscard]] Slot& slot_of(std::int64_t wave) {
    return slots_[static_cast<std::size_t>(wave % static_cast<std::int64_t>(slots_.size()))];
  }
  [[nodiscard]] std::int64_t rows_of(const Pass& pass, std::int64_t wave) const {
    return std::min(wave_, pass.rows - wave * wave_);
  }

  // Launches a wave: its slot is free.
  void start(const Pass& pass, std::int64_t wave, const LayerOnDevice& w) {
    Slot& slot = slot_of(wave);
    const std::int64_t rows = rows_of(pass, wave);
    const std::int64_t row = pass.first + wave * wave_;
    std::copy_n(pass.hidden.data() + wave * wave_ * spec_.hidden, rows * spec_.hidden,
                slot.hidden.on_host());
    const RopeTable rope = rope_table(spec_, row, rows);
    std::copy(rope.cosine.begin(), rope.cosine.end(), slot.cosine.on_host());
    std::copy(rope.sine.begin(), rope.sine.end(), slot.sine.on_host());
    copy_mirror(slot.hidden, rows * spec_.hidden, cudaMemcpyHostToDevice, upload_);
    copy_mirror(slot.cosine, rows * pairs(), cudaMemcpyHostToDevice, upload_);
    copy_mirror(slot.sine, rows * pairs(), cudaMemcpyHostToDevice, upload_);
    slot.uploaded.record(upload_);
    slot.uploaded.hold(compute_);

    project(pass, slot, row, rows, w);
    attend(pass, slot, row, rows);
    finish(slot, rows, w);
    slot.computed.record(compute_);
    slot.computed.hold(download_);

    const std::int64_t heads = rows * spec_.query_heads;
    copy_mirror(slot.hidden, rows * spec_.hidden, cudaMemcpyDeviceToHost, download_);
    if (pass.emit.qkv) {
      copy_mirror(slot.q, rows * spec_.q_width(), cudaMemcpyDeviceToHost, download_);
      copy_mirror(slot.k, rows * spec_.kv_width(), cudaMemcpyDeviceToHost, download_);
      copy_mirror(slot.v, rows * spec_.kv_width(), cudaMemcpyDeviceToHost, download_);
    }
    if (pass.emit.top_k > 0) {
      copy_mirror(slot.prob, heads * pass.emit.top_k, cudaMemcpyDeviceToHost, download_);
      copy_mirror(slot.index, heads * pass.emit.top_k, cudaMemcpyDeviceToHost, download_);
    }
    if (pass.emit.lse) copy_mirror(slot.lse, heads, cudaMemcpyDeviceToHost, download_);
    slot.downloaded.record(download_);
  }

  void project(const Pass& pass, const Slot& slot, std::int64_t row, std::int64_t rows,
               const LayerOnDevice& w) {
    norm_rows_cuda(slot.hidden.on_device(), w.attention_norm, rows, spec_.hidden, eps(),
                   dense_type_, normed_.as<void>(), compute_.get());
    dense_.multiply(normed_.as<void>(), rows, w.qkv, qkv_width(), spec_.hidden, 0,
                    product_.as<float>());
    const std::int64_t offset = row * spec_.kv_width() * element_bytes(attention_type_);
    std::byte* const k = keys_of(pass.layer) + offset;
    std::byte* const v = values_of(pass.layer) + offset;
    const auto heads = [&](int count, std::int64_t column, const float* norm, bool rotate,
                           void* out) {
      finish_heads_cuda({.rows = rows,
                         .heads = count,
                         .head_dim = spec_.head_dim,
                         .x = product_.as<float>() + column,
                         .x_stride = qkv_width(),
                         .bias = w.qkv_bias == nullptr ? nullptr : w.qkv_bias + column,
                         .norm = norm,
                         .eps = eps(),
                         .cosine = rotate ? slot.cosine.on_device() : nullptr,
                         .sine = slot.sine.on_device(),
                         .pairs = pairs()},
                        attention_type_, out, compute_.get());
    };
    heads(spec_.query_heads, 0, w.q_norm, true, q_.as<void>());
    heads(spec_.kv_heads, spec_.q_width(), w.k_norm, true, k);
    heads(spec_.kv_heads, spec_.q_width() + spec_.kv_width(), nullptr, false, v);
    if (!pass.emit.qkv) return;
    widen_cuda(attention_type_, q_.as<void>(), rows * spec_.q_width(), slot.q.on_device(),
               compute_.get());
    widen_cuda(attention_type_, k, rows * spec_.kv_width(), slot.k.on_device(), compute_.get());
    widen_cuda(attention_type_, v, rows * spec_.kv_width(), slot.v.on_device(), compute_.get());
  }

  void attend(const Pass& pass, const Slot& slot, std::int64_t row, std::int64_t rows) {
    const std::int64_t keys = pass.first + pass.rows;
    const AttentionProblem problem = {.query_heads = spec_.query_heads,
                                      .kv_heads = spec_.kv_heads,
                                      .head_dim = spec_.head_dim,
                                      .first = row,
                                      .rows = rows,
                                      .window = spec_.window(pass.layer),
                                      .scale = static_cast<float>(spec_.score_scale()),
                                      .visible = pass.visible};
    const bool top_k = pass.emit.top_k > 0;
    attention_cuda(problem,
                   {.type = attention_type_,
                    .q = q_.as<void>(),
                    .k = keys_of(pass.layer),
                    .v = values_of(pass.layer),
                    .out = attended_.as<float>(),
                    .top_k = pass.emit.top_k,
                    .prob = top_k ? slot.prob.on_device() : nullptr,
                    .index = top_k ? slot.index.device.as<std::int32_t>() : nullptr,
                    .lse = pass.emit.lse ? slot.lse.on_device() : nullptr,
                    .column_mass = pass.emit.column_mass ? mass_.as<float>() : nullptr,
                    .column_stride = keys,
                    .visible_stride = keys,
                    .workspace = workspace_.as<void>()},
                   compute_.get());
  }

  // Output projection and MLP, each added to the hidden states by the product itself.
  void finish(const Slot& slot, std::int64_t rows, const LayerOnDevice& w) {
    float* const hidden = slot.hidden.on_device();
    const std::int64_t inner = spec_.intermediate;
    const auto add_bias = [&](const float* bias) {
      if (bias != nullptr) add_bias_cuda(hidden, bias, rows, spec_.hidden, compute_.get());
    };
    narrow_cuda(attended_.as<float>(), rows * spec_.q_width(), dense_type_, normed_.as<void>(),
                compute_.get());
    dense_.multiply(normed_.as<void>(), rows, w.o, spec_.hidden, spec_.q_width(), 1, hidden);
    add_bias(w.o_bias);
    norm_rows_cuda(hidden, w.mlp_norm, rows, spec_.hidden, eps(), dense_type_, normed_.as<void>(),
                   compute_.get());
    dense_.multiply(normed_.as<void>(), rows, w.gate_up, 2 * inner, spec_.hidden, 0,
                    product_.as<float>());
    gate_rows_cuda(product_.as<float>(), w.gate_up_bias, rows, inner, dense_type_,
                   normed_.as<void>(), compute_.get());
    dense_.multiply(normed_.as<void>(), rows, w.down, spec_.hidden, inner, 1, hidden);
    add_bias(w.down_bias);
  }

  // Hands over what a wave gave, and frees its slot.
  void deliver(const Pass& pass, std::int64_t wave, AttentionHook& hook) {
    const std::int64_t rows = rows_of(pass, wave);
    const Slot& slot = slot_of(wave);
    slot.downloaded.wait();
    const std::int64_t row = pass.first + wave * wave_;
    if (pass.emit.qkv) {
      const auto check = [&](const Mirror& values, std::int64_t width, const char* name) {
        require_finite(values.on_host(), rows * width,
                       fmt::format("layer {}: {}{}", pass.layer, name,
                                   attention_type_ == DeviceType::f16 ? " in F16" : ""));
      };
      check(slot.q, spec_.q_width(), "q");
      check(slot.k, spec_.kv_width(), "k");
      check(slot.v, spec_.kv_width(), "v");
    }
    const std::int64_t count = rows * spec_.hidden;
    require_finite(slot.hidden.on_host(), count,
                   fmt::format("layer {}: hidden states", pass.layer));
    std::copy_n(slot.hidden.on_host(), count, pass.hidden.data() + wave * wave_ * spec_.hidden);
    if (pass.emit.qkv)
      hook.on_qkv({pass.layer, row, rows, slot.q.on_host(), slot.k.on_host(), slot.v.on_host()});
    if (pass.emit.top_k > 0 || pass.emit.lse)
      hook.on_scores({.layer = pass.layer,
                      .first = row,
                      .rows = rows,
                      .top_k = pass.emit.top_k,
                      .prob = pass.emit.top_k > 0 ? slot.prob.on_host() : nullptr,
                      .index = pass.emit.top_k > 0 ? slot.index.host.as<std::int32_t>() : nullptr,
                      .lse = pass.emit.lse ? slot.lse.on_host() : nullptr});
  }

  Checkpoint checkpoint_;
  const ModelSpec& spec_;
  RunnerOptions options_;
  std::string name_;
  DeviceType dense_type_, attention_type_;
  std::int64_t wave_ = 0;
  tbb::task_arena arena_;
  Allocations memory_;

  CudaStream upload_, compute_, download_;
  DenseProducts dense_;
  DeviceWeights weights_;
  CudaMemory kv_;  // [layers or 1, 2, tokens, kv_heads, head_dim]
  std::array<Slot, 2> slots_;
  // Of one wave, used by the compute stream only.
  CudaMemory product_, normed_, q_, attended_, workspace_, visible_, mass_;
  Mirror logits_;
};

}  // namespace

std::unique_ptr<Runner> make_device_runner(const Checkpoint& checkpoint,
                                           const RunnerOptions& options) {
  return std::make_unique<CudaRunner>(checkpoint, options);
}

}  // namespace kvspan::tracegen
