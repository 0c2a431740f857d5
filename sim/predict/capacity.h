// SPDX-License-Identifier: Apache-2.0
// What fits into the memory of a GPU: weights and activations apart, and per policy the KV cache of
// a batch, the longest context and the largest batch.
//
// Tensor parallelism over K GPUs gives every GPU the KV of max(1, kv_heads / K) heads, so with
// fewer heads than GPUs (one latent of MLA counts as one head) they are replicated. A batch is
// served as by continuous batching: one request prefills, at its peak, while the others decode,
// each at the peak of its own decode phase.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/ledger/metrics.h"
#include "sim/models/model_geometry.h"
#include "sim/policy/spec.h"
#include "sim/predict/model_prediction.h"

namespace kvspan {

struct Deployment {
  std::int64_t gpu_memory = 0;  // bytes of one GPU
  double utilization = 0.9;     // share of it that may be used, as vLLM's gpu_memory_utilization
  std::int64_t reserve = 0;     // bytes of that share that the runtime itself takes
  std::int64_t tp = 1;          // GPUs that share every layer
  std::int64_t batch = 1;       // requests at a time
  std::string weight_dtype;     // empty: the checkpoint's
};

// Formats of weights and of KV elements.
[[nodiscard]] std::vector<std::string> weight_dtypes();
[[nodiscard]] std::vector<std::string> kv_dtypes();
[[nodiscard]] std::int64_t kv_dtype_bytes(const std::string& dtype);  // Errors: ConfigError

// Bytes of the weights on one of `tp` GPUs. fp8, int8, int4 (4.5 bits with the scales and zeros of
// groups of 32 to 128) hold matrices; mxfp4 (4.25 bits) those of experts only; everything else, the
// embedding and the output head too, stays in 16 bits.
// Errors: ConfigError if the model's weights are not known, or the format.
[[nodiscard]] std::int64_t weight_bytes(const ModelGeometry& model, const std::string& dtype,
                                        std::int64_t tp);

// An estimate of the most that one forward pass of `tokens` rows, `requests` of which need logits,
// holds on one of `tp` GPUs beside weights and KV: the larger of
//   tokens x (2 x hidden + inner / tp) x 2 bytes   the residual stream, a block's input and inside
//   requests x vocabulary / tp x 4 bytes           logits in fp32
// with `inner` the widest of q + k + v + output, gate + up + their product (of all experts that a
// token uses), and a recurrence's projections. Attention itself is taken as tiled (no n x n
// matrix).
[[nodiscard]] std::int64_t activation_bytes(const ModelWeights& weights, std::int64_t tokens,
                                            std::int64_t requests, std::int64_t tp);

// GPUs that KV heads are divided among: kv_heads / this are on each.
// Errors: ConfigError if heads cannot be divided evenly, naming the nearest numbers that work.
[[nodiscard]] std::int64_t kv_shards(const ModelGeometry& model, std::int64_t tp);

// What does not depend on the policy. Bytes on one GPU unless stated.
struct FixedMemory {
  std::int64_t usable = 0;
  std::string weight_dtype;
  std::int64_t parameters = 0;
  std::int64_t all_weights = 0;  // on all GPUs of a single copy
  std::int64_t weights = 0;
  std::int64_t activations = 0;  // of a prefill chunk beside a decode step of the others
  std::int64_t left = 0;         // for KV; below 0: weights and activations do not fit
  std::string advice;            // if they do not: what would make them
};
// Errors: ConfigError for a share, a batch or a tp that cannot be, or weights that are not known.
[[nodiscard]] FixedMemory fixed_memory(const ModelGeometry& model, const Workload& workload,
                                       const Deployment& deployment);

// The figures that vLLM logs when it starts: tokens of a cache that holds everything (of a sliding
// layer only its window and a pass), and how many requests of L tokens that is.
struct VllmFigures {
  std::int64_t kv_tokens = 0;
  double concurrency = 0;
};
[[nodiscard]] VllmFigures vllm_figures(const ModelGeometry& model, const Workload& workload,
                                       std::int64_t kv_bytes, std::int64_t left, std::int64_t tp);

// Bytes of one request, with the state of recurrent layers, on one of `tp` GPUs.
struct RequestBytes {
  std::int64_t peak = 0;    // at any time
  std::int64_t decode = 0;  // in decode; without generated tokens, the same
  Basis basis = Basis::closed_form;
};
// calibration: as for capacity_of(). Errors: ConfigError as of predict().
[[nodiscard]] RequestBytes request_bytes(const RecipeSpec& spec, const ModelGeometry& model,
                                         const Workload& workload, const Accounting& accounting,
                                         std::int64_t tp, const Calibration* calibration);

// What one policy makes of what is left. Where its prediction is an upper bound, so are the bytes;
// contexts and batches are lower bounds then, and what does not fit may fit.
struct Capacity {
  Basis basis = Basis::closed_form;   // of one request at n + m
  std::int64_t kv = 0, overhead = 0;  // one request at its peak, on all GPUs of a single copy
  std::int64_t state = 0;             // of its recurrent layers, at any time
  std::int64_t request = 0;           // all three, on one GPU
  std::int64_t waiting = 0;           // the same in decode
  std::int64_t total = 0;             // weights, activations and the batch, on one GPU
  bool beyond_model = false;          // n + m are more than the model's positions
  bool fits = false;
  // By bisection over n with fixed m: this many prompt tokens fit and one more does not, or is more
  // than the model's positions. 0: not even one token.
  std::int64_t longest_prompt = 0;
  bool limited_by_model = false;
  std::int64_t largest_batch = 0;  // at n + m
};
// calibration: for policies without a closed form; null: none.
// Errors: ConfigError as of predict().
[[nodiscard]] Capacity capacity_of(const RecipeSpec& spec, const ModelGeometry& model,
                                   const Workload& workload, const Accounting& accounting,
                                   const Deployment& deployment,
                                   const Calibration* calibration = nullptr);

}  // namespace kvspan
