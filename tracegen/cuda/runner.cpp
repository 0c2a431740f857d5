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
#include "tracegen/forward/runner.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <cublas_v2.h>
#include <optional>
#include <vector>

#include <fmt/format.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "tracegen/cuda/attention.h"
#include "tracegen/cuda/device.h"
#include "tracegen/cuda/layer.h"
#include "tracegen/forward/rope_table.h"
#include "tracegen/forward/runner_common.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kFloat = sizeof(float);
constexpr std::int64_t kStagingBytes = std::int64_t{32} << 20;   // twice, for weights
constexpr std::int64_t kReserveBytes = std::int64_t{512} << 20;  // left to cuBLAS and the context

std::int64_t element_bytes(DeviceType type) { return type == DeviceType::f32 ? 4 : 2; }

void check_cublas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw DeviceError(
        fmt::format("cuBLAS: {} failed with status {}", call, static_cast<int>(status)));
}

class CublasHandle {
 public:
  explicit CublasHandle(const CudaStream& stream) {
    check_cublas(cublasCreate(&handle_), "cublasCreate");
    check_cublas(cublasSetStream(handle_, stream.get()), "cublasSetStream");
  }
  CublasHandle(const CublasHandle&) = delete;
  CublasHandle& operator=(const CublasHandle&) = delete;
  ~CublasHandle() { cublasDestroy(handle_); }
  [[nodiscard]] cublasHandle_t get() const { return handle_; }

 private:
  cublasHandle_t handle_ = nullptr;
};

// The same number of floats on both sides of a copy.
struct Mirror {
  CudaMemory host, device;
  [[nodiscard]] float* on_host() const { return host.as<float>(); }
  [[nodiscard]] float* on_device() const { return device.as<float>(); }
};

// One of the two sets of buffers that waves use in turn.
struct Slot {
  Mirror hidden, cosine, sine, q, k, v, prob, index, lse;
  CudaEvent uploaded, computed, downloaded;
};

// Parts of a layer's weights in one allocation; a null pointer: the model has none.
struct LayerOnDevice {
  CudaMemory memory;
  int layer = -1;                                                               // that is loaded
  std::byte *qkv = nullptr, *o = nullptr, *gate_up = nullptr, *down = nullptr;  // dense type
  float *attention_norm = nullptr, *mlp_norm = nullptr, *q_norm = nullptr, *k_norm = nullptr;
  float *qkv_bias = nullptr, *o_bias = nullptr, *gate_up_bias = nullptr, *down_bias = nullptr;
};

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
        cublas_(compute_) {
    check_attention_cuda(attention_type_, spec_.head_dim, options.top_k);
    const std::int64_t layers = options.keep_kv ? spec_.layers : 1;
    const std::string rows = fmt::format("{} rows", options.tokens);
    kv_ = allocate(
        MemoryKind::device,
        2 * layers * options.tokens * kv_width() * element_bytes(attention_type_),
        fmt::format("keys and values of {} in {} layer{}", rows, layers, layers == 1 ? "" : "s"));
    allocate_wave();
    reserve_scores({.top_k = options.top_k, .lse = options.top_k > 0});
    for (CudaMemory& staging : staging_)
      staging = allocate(MemoryKind::pinned, kStagingBytes, "weights on their way");
    if (dense_type_ != DeviceType::f32)
      staged_ = allocate(MemoryKind::device, kStagingBytes, "weights on their way");
    const std::int64_t all = spec_.layers * layer_bytes() + head_bytes();
    layers_.resize(options.keep_kv && all + kReserveBytes <= free_bytes()
                       ? static_cast<std::size_t>(spec_.layers)
                       : 1);
    for (LayerOnDevice& layer : layers_) lay_out(layer);
    head_ = allocate(MemoryKind::device, head_bytes(), "the output head");
  }

  void embed(std::span<const std::int32_t> ids, std::span<float> hidden) override {
    embed_rows(checkpoint_, ids, hidden);
  }

  void layer(int layer, RowIndex first, std::span<float> hidden, AttentionHook& hook,
             const std::function<void(double)>& progress) override {
    settle();  // an earlier call may have been left by an exception of the hook
    const LayerOnDevice& weights = load(layer);
    Pass pass{.layer = layer,
              .first = first,
              .rows = static_cast<std::int64_t>(hidden.size()) / spec_.hidden,
              .emit = hook.emit(layer),
              .hidden = hidden};
    const std::int64_t keys = first + pass.rows;
    const std::span<const std::uint8_t> visible = hook.visible(layer, first, pass.rows);
    if (!visible.empty()) {
      reserve(visible_, static_cast<std::int64_t>(visible.size()), "visibility of the keys");
      KVSPAN_CUDA_CHECK(cudaMemcpyAsync(visible_.as<void>(), visible.data(), visible.size(),
                                        cudaMemcpyHostToDevice, compute_.get()));
      pass.visible = visible_.as<std::uint8_t>();
    }
    if (pass.emit.column_mass) {
      const std::int64_t bytes = spec_.query_heads * keys * kFloat;
      reserve(mass_, bytes, "column masses");
      KVSPAN_CUDA_CHECK(
          cudaMemsetAsync(mass_.as<void>(), 0, static_cast<std::size_t>(bytes), compute_.get()));
    }
    reserve_scores(pass.emit);

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
      KVSPAN_CUDA_CHECK(cudaMemcpyAsync(mass.data(), mass_.as<void>(), mass.size() * kFloat,
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
        std::copy_n(from + begin * kv_width(), count * kv_width(), via.on_host());
        copy(via, count * kv_width(), cudaMemcpyHostToDevice, compute_);
        narrow_cuda(via.on_device(), count * kv_width(), attention_type_,
                    to + (rows.first + begin) * kv_width() * element_bytes(attention_type_),
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
    load_head();
    for (std::int64_t begin = 0; begin < rows; begin += block) {
      const std::int64_t count = std::min(block, rows - begin);
      const Mirror& in = slots_[0].hidden;
      std::copy_n(hidden.data() + begin * spec_.hidden, count * spec_.hidden, in.on_host());
      copy(in, count * spec_.hidden, cudaMemcpyHostToDevice, compute_);
      norm_rows_cuda(in.on_device(), final_norm_.as<float>(), count, spec_.hidden, eps(),
                     dense_type_, normed_.as<void>(), compute_.get());
      dense(normed_.as<void>(), count, head_.as<std::byte>(), spec_.vocabulary, spec_.hidden, 0,
            logits_.on_device());
      copy(logits_, count * spec_.vocabulary, cudaMemcpyDeviceToHost, compute_);
      KVSPAN_CUDA_CHECK(cudaStreamSynchronize(compute_.get()));
      require_finite(logits_.on_host(), count * spec_.vocabulary, "the logits");
      use(begin, count, logits_.on_host());
    }
  }

  [[nodiscard]] std::string description() const override {
    return fmt::format("CUDA, {}, {}; {} of weights on the device, {} allocated there", name_,
                       options_.half_precision ? "BF16 products and F16 attention, sums in fp32"
                                               : "fp32 without TF32",
                       layers_.size() == 1 ? "one layer" : "all layers",
                       human_bytes(device_bytes_));
  }

  [[nodiscard]] std::int64_t memory_bytes() const override { return pinned_bytes_; }

 private:
  struct Pass {
    int layer = 0;
    RowIndex first = 0;
    std::int64_t rows = 0;
    Emit emit;
    std::span<float> hidden;
    const std::uint8_t* visible = nullptr;  // [kv_heads, first + rows], on the device
  };

  [[nodiscard]] std::int64_t q_width() const {
    return std::int64_t{spec_.query_heads} * spec_.head_dim;
  }
  [[nodiscard]] std::int64_t kv_width() const {
    return std::int64_t{spec_.kv_heads} * spec_.head_dim;
  }
  [[nodiscard]] std::int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
  [[nodiscard]] float eps() const { return static_cast<float>(spec_.norm_eps); }
  [[nodiscard]] std::byte* keys_of(int layer) const {
    const std::int64_t bytes = options_.tokens * kv_width() * element_bytes(attention_type_);
    return kv_.as<std::byte>() + (options_.keep_kv ? 2 * layer : 0) * bytes;
  }
  [[nodiscard]] std::byte* values_of(int layer) const {
    return keys_of(layer) + options_.tokens * kv_width() * element_bytes(attention_type_);
  }

  // ---- Memory -----------------------------------------------------------------------------------

  CudaMemory allocate(MemoryKind kind, std::int64_t bytes, const std::string& purpose) {
    CudaMemory memory(kind, bytes, purpose);
    allocated(kind) += bytes;
    return memory;
  }
  std::int64_t& allocated(MemoryKind kind) {
    return kind == MemoryKind::device ? device_bytes_ : pinned_bytes_;
  }
  void reserve(CudaMemory& memory, std::int64_t bytes, const std::string& purpose) {
    if (memory.bytes() >= bytes) return;
    device_bytes_ -= memory.bytes();
    memory = {};
    memory = allocate(MemoryKind::device, bytes, purpose);
  }
  void reserve(Mirror& mirror, std::int64_t floats, const std::string& purpose) {
    if (mirror.device.bytes() >= floats * kFloat) return;
    device_bytes_ -= mirror.device.bytes();
    pinned_bytes_ -= mirror.host.bytes();
    mirror = {};
    mirror.device = allocate(MemoryKind::device, floats * kFloat, purpose);
    mirror.host = allocate(MemoryKind::pinned, floats * kFloat, purpose);
  }
  [[nodiscard]] static std::int64_t free_bytes() {
    std::size_t free = 0, total = 0;
    KVSPAN_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return static_cast<std::int64_t>(free);
  }

  void allocate_wave() {
    const std::string purpose = fmt::format("a wave of {} rows", wave_);
    for (Slot& slot : slots_) {
      reserve(slot.hidden, wave_ * spec_.hidden, purpose);
      reserve(slot.cosine, wave_ * pairs(), purpose);
      reserve(slot.sine, wave_ * pairs(), purpose);
      reserve(slot.q, wave_ * q_width(), purpose);
      reserve(slot.k, wave_ * kv_width(), purpose);
      reserve(slot.v, wave_ * kv_width(), purpose);
    }
    const std::int64_t widest =
        std::max({q_width(), std::int64_t{spec_.hidden}, std::int64_t{spec_.intermediate}});
    const auto buffer = [&](std::int64_t floats) {
      return allocate(MemoryKind::device, wave_ * floats * kFloat, purpose);
    };
    product_ = buffer(std::max(qkv_width(), 2 * std::int64_t{spec_.intermediate}));
    normed_ = buffer(widest);
    q_ = buffer(q_width());
    attended_ = buffer(q_width());
    final_norm_ = allocate(MemoryKind::device, spec_.hidden * kFloat, purpose);
    reserve(logits_, std::min(head_block_rows(spec_), wave_) * spec_.vocabulary, "logits");
  }
  [[nodiscard]] std::int64_t pairs() const {
    return static_cast<std::int64_t>(spec_.rope.inverse_frequencies.size());
  }

  void reserve_scores(const Emit& emit) {
    const std::int64_t heads = wave_ * spec_.query_heads;
    const std::string purpose = fmt::format("scores of {} rows, top {}", wave_, emit.top_k);
    for (Slot& slot : slots_) {
      reserve(slot.prob, heads * emit.top_k, purpose);
      reserve(slot.index, heads * emit.top_k, purpose);
      reserve(slot.lse, emit.lse ? heads : 0, purpose);
    }
    reserve(workspace_,
            static_cast<std::int64_t>(attention_cuda_workspace(
                {.query_heads = spec_.query_heads, .rows = wave_}, emit.top_k)),
            purpose);
  }

  // ---- Weights ----------------------------------------------------------------------------------

  // Calls use(part, bytes) for each part of a layer; parts start at multiples of 256 bytes.
  template <typename Use>
  void for_parts(LayerOnDevice& l, const LayerWeights& w, const Use& use) const {
    const std::int64_t element = element_bytes(dense_type_);
    const std::int64_t hidden = spec_.hidden, inner = spec_.intermediate;
    const auto floats = [&](float*& part, bool some, std::int64_t count) {
      use(part, some ? count * kFloat : 0);
    };
    use(l.qkv, qkv_width() * hidden * element);
    use(l.o, hidden * q_width() * element);
    use(l.gate_up, 2 * inner * hidden * element);
    use(l.down, hidden * inner * element);
    floats(l.attention_norm, true, hidden);
    floats(l.mlp_norm, true, hidden);
    floats(l.q_norm, !w.q_norm.empty(), spec_.head_dim);
    floats(l.k_norm, !w.k_norm.empty(), spec_.head_dim);
    floats(l.qkv_bias, !w.q_bias.empty() || !w.k_bias.empty() || !w.v_bias.empty(), qkv_width());
    floats(l.o_bias, !w.o_bias.empty(), hidden);
    floats(l.gate_up_bias, !w.gate_bias.empty() || !w.up_bias.empty(), 2 * inner);
    floats(l.down_bias, !w.down_bias.empty(), hidden);
  }
  static std::int64_t aligned(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

  [[nodiscard]] std::int64_t layer_bytes() const {  // of the largest
    std::int64_t most = 0;
    for (int l = 0; l < spec_.layers; ++l) {
      LayerOnDevice parts;
      std::int64_t bytes = 0;
      for_parts(parts, checkpoint_.layer(l),
                [&](auto& /*part*/, std::int64_t part_bytes) { bytes += aligned(part_bytes); });
      most = std::max(most, bytes);
    }
    return most;
  }
  [[nodiscard]] std::int64_t head_bytes() const {
    return spec_.vocabulary * spec_.hidden * element_bytes(dense_type_);
  }
  void lay_out(LayerOnDevice& layer) {
    layer.memory = allocate(MemoryKind::device, layer_bytes(), "the weights of a layer");
  }

  const LayerOnDevice& load(int layer) {
    LayerOnDevice& l = layers_[layers_.size() == 1 ? 0 : static_cast<std::size_t>(layer)];
    if (l.layer == layer) return l;
    const LayerWeights& w = checkpoint_.layer(layer);
    l.layer = -1;  // until all of it is there
    std::int64_t offset = 0;
    for_parts(l, w, [&](auto& part, std::int64_t bytes) {
      using Part = std::remove_reference_t<decltype(*part)>;
      part = bytes == 0 ? nullptr : reinterpret_cast<Part*>(l.memory.as<std::byte>() + offset);
      offset += aligned(bytes);
    });
    const std::int64_t element = element_bytes(dense_type_);
    upload(w.q, l.qkv);
    upload(w.k, l.qkv + q_width() * spec_.hidden * element);
    upload(w.v, l.qkv + (q_width() + kv_width()) * spec_.hidden * element);
    upload(w.o, l.o);
    upload(w.gate, l.gate_up);
    upload(w.up, l.gate_up + std::int64_t{spec_.intermediate} * spec_.hidden * element);
    upload(w.down, l.down);
    upload(w.attention_norm, l.attention_norm, spec_.hidden);
    upload(w.mlp_norm, l.mlp_norm, spec_.hidden);
    upload(w.q_norm, l.q_norm, spec_.head_dim);
    upload(w.k_norm, l.k_norm, spec_.head_dim);
    if (l.qkv_bias != nullptr) {
      upload(w.q_bias, l.qkv_bias, q_width());
      upload(w.k_bias, l.qkv_bias + q_width(), kv_width());
      upload(w.v_bias, l.qkv_bias + q_width() + kv_width(), kv_width());
    }
    upload(w.o_bias, l.o_bias, spec_.hidden);
    if (l.gate_up_bias != nullptr) {
      upload(w.gate_bias, l.gate_up_bias, spec_.intermediate);
      upload(w.up_bias, l.gate_up_bias + spec_.intermediate, spec_.intermediate);
    }
    upload(w.down_bias, l.down_bias, spec_.hidden);
    checkpoint_.release(layer);
    l.layer = layer;
    return l;
  }

  void load_head() {
    if (head_loaded_) return;
    upload(checkpoint_.head(), head_.as<std::byte>());
    upload(checkpoint_.final_norm(), final_norm_.as<float>(), spec_.hidden);
    head_loaded_ = true;
  }

  // The pinned buffer that is free next, and its event to record after the copy out of it.
  struct Staging {
    float* floats;
    CudaEvent* copied;
  };
  Staging next_staging() {
    stage_ = (stage_ + 1) % staging_.size();
    stage_copied_[stage_].wait();
    return {staging_[stage_].as<float>(), &stage_copied_[stage_]};
  }

  // A vector of `count` floats; zeros if it is empty; nothing if there is no place for it.
  void upload(const std::vector<float>& values, float* to, std::int64_t count) {
    if (to == nullptr) return;
    const Staging staging = next_staging();
    if (values.empty())
      std::fill_n(staging.floats, count, 0.0F);
    else
      std::copy_n(values.data(), count, staging.floats);
    KVSPAN_CUDA_CHECK(cudaMemcpyAsync(to, staging.floats, static_cast<std::size_t>(count * kFloat),
                                      cudaMemcpyHostToDevice, compute_.get()));
    staging.copied->record(compute_);
  }

  // A matrix, in the type of the dense products: widened on the host, narrowed on the device.
  void upload(const WeightMatrix& matrix, std::byte* to) {
    const std::int64_t rows_at_once = kStagingBytes / (matrix.columns * kFloat);
    if (rows_at_once == 0)
      throw DeviceError(fmt::format("{}: a row of {} weights is more than {} bytes", matrix.name,
                                    matrix.columns, kStagingBytes));
    for (std::int64_t row = 0; row < matrix.rows; row += rows_at_once) {
      const std::int64_t rows = std::min(rows_at_once, matrix.rows - row);
      const std::int64_t count = rows * matrix.columns;
      const Staging staging = next_staging();
      arena_.execute([&] {
        tbb::parallel_for(tbb::blocked_range<std::int64_t>(0, rows, 64), [&](const auto& range) {
          widen_rows(matrix, row + range.begin(), range.end() - range.begin(),
                     staging.floats + range.begin() * matrix.columns);
        });
      });
      std::byte* const part = to + row * matrix.columns * element_bytes(dense_type_);
      void* const via = dense_type_ == DeviceType::f32 ? part : staged_.as<std::byte>();
      KVSPAN_CUDA_CHECK(cudaMemcpyAsync(via, staging.floats,
                                        static_cast<std::size_t>(count * kFloat),
                                        cudaMemcpyHostToDevice, compute_.get()));
      staging.copied->record(compute_);
      if (via != part)
        narrow_cuda(static_cast<const float*>(via), count, dense_type_, part, compute_.get());
    }
  }

  // ---- Waves ------------------------------------------------------------------------------------

  // Waits for whatever was launched.
  void settle() const {
    for (const CudaStream* stream : {&upload_, &compute_, &download_})
      KVSPAN_CUDA_CHECK(cudaStreamSynchronize(stream->get()));
  }

  static void copy(const Mirror& mirror, std::int64_t floats, cudaMemcpyKind kind,
                   const CudaStream& stream) {
    void* const host = mirror.on_host();
    void* const device = mirror.on_device();
    const bool up = kind == cudaMemcpyHostToDevice;
    KVSPAN_CUDA_CHECK(cudaMemcpyAsync(up ? device : host, up ? host : device,
                                      static_cast<std::size_t>(floats * kFloat), kind,
                                      stream.get()));
  }

  // y [rows, outputs] = x [rows, inputs] W^T + beta y, W [outputs, inputs]; x and W in the dense
  // type. cuBLAS is column-major: it is told of y^T = W x^T.
  void dense(const void* x, std::int64_t rows, const std::byte* w, std::int64_t outputs,
             std::int64_t inputs, float beta, float* y) {
    const float alpha = 1;
    const cudaDataType_t type = dense_type_ == DeviceType::f32 ? CUDA_R_32F : CUDA_R_16BF;
    check_cublas(cublasGemmEx(cublas_.get(), CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(outputs),
                              static_cast<int>(rows), static_cast<int>(inputs), &alpha, w, type,
                              static_cast<int>(inputs), x, type, static_cast<int>(inputs), &beta, y,
                              CUDA_R_32F, static_cast<int>(outputs), CUBLAS_COMPUTE_32F,
                              CUBLAS_GEMM_DEFAULT),
                 "cublasGemmEx");
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
    copy(slot.hidden, rows * spec_.hidden, cudaMemcpyHostToDevice, upload_);
    copy(slot.cosine, rows * pairs(), cudaMemcpyHostToDevice, upload_);
    copy(slot.sine, rows * pairs(), cudaMemcpyHostToDevice, upload_);
    slot.uploaded.record(upload_);
    slot.uploaded.hold(compute_);

    project(pass, slot, row, rows, w);
    attend(pass, slot, row, rows);
    finish(slot, rows, w);
    slot.computed.record(compute_);
    slot.computed.hold(download_);

    const std::int64_t heads = rows * spec_.query_heads;
    copy(slot.hidden, rows * spec_.hidden, cudaMemcpyDeviceToHost, download_);
    if (pass.emit.qkv) {
      copy(slot.q, rows * q_width(), cudaMemcpyDeviceToHost, download_);
      copy(slot.k, rows * kv_width(), cudaMemcpyDeviceToHost, download_);
      copy(slot.v, rows * kv_width(), cudaMemcpyDeviceToHost, download_);
    }
    if (pass.emit.top_k > 0) {
      copy(slot.prob, heads * pass.emit.top_k, cudaMemcpyDeviceToHost, download_);
      copy(slot.index, heads * pass.emit.top_k, cudaMemcpyDeviceToHost, download_);
    }
    if (pass.emit.lse) copy(slot.lse, heads, cudaMemcpyDeviceToHost, download_);
    slot.downloaded.record(download_);
  }

  void project(const Pass& pass, const Slot& slot, std::int64_t row, std::int64_t rows,
               const LayerOnDevice& w) {
    norm_rows_cuda(slot.hidden.on_device(), w.attention_norm, rows, spec_.hidden, eps(),
                   dense_type_, normed_.as<void>(), compute_.get());
    dense(normed_.as<void>(), rows, w.qkv, qkv_width(), spec_.hidden, 0, product_.as<float>());
    const std::int64_t offset = row * kv_width() * element_bytes(attention_type_);
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
    heads(spec_.kv_heads, q_width(), w.k_norm, true, k);
    heads(spec_.kv_heads, q_width() + kv_width(), nullptr, false, v);
    if (!pass.emit.qkv) return;
    widen_cuda(attention_type_, q_.as<void>(), rows * q_width(), slot.q.on_device(),
               compute_.get());
    widen_cuda(attention_type_, k, rows * kv_width(), slot.k.on_device(), compute_.get());
    widen_cuda(attention_type_, v, rows * kv_width(), slot.v.on_device(), compute_.get());
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
    narrow_cuda(attended_.as<float>(), rows * q_width(), dense_type_, normed_.as<void>(),
                compute_.get());
    dense(normed_.as<void>(), rows, w.o, spec_.hidden, q_width(), 1, hidden);
    add_bias(w.o_bias);
    norm_rows_cuda(hidden, w.mlp_norm, rows, spec_.hidden, eps(), dense_type_, normed_.as<void>(),
                   compute_.get());
    dense(normed_.as<void>(), rows, w.gate_up, 2 * inner, spec_.hidden, 0, product_.as<float>());
    gate_rows_cuda(product_.as<float>(), w.gate_up_bias, rows, inner, dense_type_,
                   normed_.as<void>(), compute_.get());
    dense(normed_.as<void>(), rows, w.down, spec_.hidden, inner, 1, hidden);
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
      check(slot.q, q_width(), "q");
      check(slot.k, kv_width(), "k");
      check(slot.v, kv_width(), "v");
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
  std::int64_t device_bytes_ = 0, pinned_bytes_ = 0;

  CudaStream upload_, compute_, download_;
  CublasHandle cublas_;
  CudaMemory kv_;  // [layers or 1, 2, tokens, kv_heads, head_dim]
  std::array<Slot, 2> slots_;
  // Of one wave, used by the compute stream only.
  CudaMemory product_, normed_, q_, attended_, workspace_, visible_, mass_;
  Mirror logits_;
  std::array<CudaMemory, 2> staging_;
  std::array<CudaEvent, 2> stage_copied_;
  std::size_t stage_ = 0;
  CudaMemory staged_;
  std::vector<LayerOnDevice> layers_;  // all, or one in turn
  CudaMemory head_, final_norm_;
  bool head_loaded_ = false;
};

}  // namespace

std::unique_ptr<Runner> make_cuda_runner(const Checkpoint& checkpoint,
                                         const RunnerOptions& options) {
  return std::make_unique<CudaRunner>(checkpoint, options);
}

bool has_cuda_device() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess;
}

}  // namespace kvspan::tracegen
