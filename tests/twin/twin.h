// SPDX-License-Identifier: Apache-2.0
//
// Brute-force twin of the replay engine: plain loops in double precision, from written
// definitions alone. It is the oracle of the tests: slow, but easy to check against the text.
// Source: the definitions of arXiv 2506.17121 and the papers of the policies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvspan::twin {

// Plain rotary embedding: angle = position * theta^(-2i / dim). dim 0 = head_dim.
struct Rope {
  bool present = false;
  double theta = 10000;
  int dim = 0;
  bool interleaved = false;
};

// One stored layer.
//   q [tokens, query_heads, head_dim], k [tokens, kv_heads, head_dim], post-rotary
//   v [tokens, kv_heads, v_head_dim] or empty; sink_logits [query_heads] or empty
struct Layer {
  int model_layer = 0;
  std::vector<double> q, k, v;
  std::vector<double> sink_logits;
  int sliding_window = 0;  // 0 = none
};

struct Trace {
  int tokens = 0, prompt_tokens = 0, query_heads = 0, kv_heads = 0;
  int head_dim = 0, v_head_dim = 0, model_layers = 0;
  double score_scale = 1;
  double softcap = 0;  // 0 = none
  Rope rope;
  std::vector<Layer> layers;
  struct Span {
    std::string name;
    int begin = 0, end = 0;
  };
  std::vector<Span> spans;
};

// How the rows are cut into passes.
struct Plan {
  int chunk = 0;         // tokens of a prefill pass, 0 = the whole prompt
  int prompt = -1;       // replaces prompt_tokens if >= 0
  int evict_point = -1;  // row n' of --evict-at, or -1
};

struct Amount {
  enum Kind { tokens, share, bytes } kind = tokens;
  double value = 0;     // tokens or bytes
  std::string decimal;  // share of the prompt in per cent as the user wrote it: "10" is 10 %
};

// One policy: full random streaming_llm h2o tova snapkv pyramidkv duoattention scores deaths.
// The defaults below are those of the first policy listed for a field; duoattention's 128/1024 and
// pyramidkv's observation window of 8 are set by the caller.
struct Spec {
  std::string name;
  Amount budget;
  bool has_budget = false;          // required by random, tova, snapkv, pyramidkv, scores
  int sinks = 4, window = 1020;     // streaming_llm without budget; duoattention
  int heavy = 0, recent = 0;        // h2o without budget; scores: recent, inside the budget
  int obs_window = 32, kernel = 7;  // snapkv, pyramidkv
  bool max_pool = true;             // false: average pooling
  std::string group = "mean";       // snapkv, pyramidkv: mean max sum none; h2o: mean is sum
  bool pool_then_group = false;
  double beta = 20;                          // pyramidkv
  bool exact_rounding = false;               // pyramidkv: rounding=exact
  std::uint64_t seed = 0;                    // random
  double sparsity = 0.5;                     // duoattention fitted on this trace
  std::vector<std::vector<int>> full_heads;  // [layers][kv_heads] 1 = full; empty = fitted
  std::vector<double> scores;                // [layers, heads, tokens], larger = keep
  bool at_every_pass = false;                // scores: at=every_pass
  std::vector<int> deaths;                   // [layers, heads, tokens]
  bool evict_model_window = false;           // full(model_window=evict)
  bool chunked = false;                      // wrap in chunked(...)
  bool metric_count = true;                  // count=metric, else count=implementation
  bool patched = false;                      // variant=patched
  bool small_window = false;                 // small=window
  int compete = 0;                           // 0 default rule, 1 frozen, 2 all
};

struct Near {
  std::int64_t decisions = 0;  // (layer, head, pass) at which something was evicted
  std::int64_t near_ties = 0;  // those with an unequal kept/evicted pair within 1e-5 relative
};

// heads = stored heads. Bytes are exact, for layout ideal. NaN: no rows, or no v.
struct Result {
  int heads = 0;
  std::vector<int> death;  // [layers, heads, tokens]
  std::vector<char> near;  // [layers, heads] 1 = some decision was a near tie
  Near near_count;
  double footprint = 0, peak_kv = 0;
  long long entry_rows = 0, full_entry_rows = 0;
  double mass_all_mean = 0, mass_all_p5 = 0, mass_all_min = 0;
  double mass_prefill_mean = 0, mass_decode_mean = 0, mass_decode_min = 0;
  double error_all_mean = 0, error_all_max = 0, error_all_p95 = 0;  // output error
  std::vector<double> row_mass;                       // [tokens] mean over (layer, query head)
  std::vector<double> span_resident, span_mass_lost;  // [spans]
  long long entries_read = 0;
  long long peak_total_whole = 0, peak_total_layerwise = 0;
  long long peak_kv_bytes = 0, peak_overhead = 0;  // the parts of peak_total_whole at peak_row
  long long prefill_whole = 0, decode_whole = 0;
  long long byte_rows = 0;
  int peak_row = 0;
};

// Replays one policy on one trace.
// REQUIRES: shapes as stated above, query_heads % kv_heads == 0.
// Errors: std::invalid_argument for a spec or plan without meaning.
[[nodiscard]] Result simulate(const Trace& trace, const Spec& spec, const Plan& plan,
                              int kv_bytes = 2);

// The paper's closed forms for one head.  Source: arXiv 2506.17121, kv_footprint.py.
struct Closed {
  long long entry_rows = 0;
  std::vector<long long> peak_points;  // one per chunk, then one for decode if m > 0
};
[[nodiscard]] Closed streaming_head(int n, int m, int chunk, int sinks, int window);
[[nodiscard]] Closed evicting_head(int n, int m, int chunk, double s, int w);

// Peak in bytes of one storage layout, prefill mode whole, overhead on the resident entries
// included (a constant overhead is the caller's to add).  Definitions: sim/ledger/metrics.h.
//   death [layers, heads, tokens]
// Names: ideal query_head padded paged16_per_head paged16_per_layer paged16_per_head_compact
// paged16_per_layer_compact openvino masked.
// Errors: std::invalid_argument for an unknown name.
[[nodiscard]] long long layout_peak(const std::string& layout, const Trace& trace, const Plan& plan,
                                    const std::vector<int>& death, int heads, int kv_bytes,
                                    long long overhead_per_entry);

}  // namespace kvspan::twin
