// SPDX-License-Identifier: Apache-2.0
// A profile whose synthetic trace has the attention statistics of a real one, and how near it
// comes.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/attention/trace_stats.h"
#include "tracegen/synth/synth.h"

namespace kvspan::tracegen {

// Of the keys of one layer, mean over KV heads; sinks left out.
struct KeyGeometry {
  double norm_correlation = 0;  // of a key's norm with ln(mass received from the last prompt rows)
  double neighbour_cosine = 0;  // of the keys of tokens t and t + 1
};

struct SynthFit {
  SynthProfile profile;  // `layers` filled in
  SynthOptions options;  // shape and length of the real trace
  SynthPlan plan;        // its needles, questions and turns
  TraceStats real, synthetic;
  std::vector<KeyGeometry> real_keys, synthetic_keys;  // [layers]
};

// Fits sink mass, mass by distance, entropy, persistence, mass on needles while decoding, and the
// correlation of key norm and importance, for each query head (the last: layer) by damped steps on
// a synthetic layer of the same length. `tick` is told the share that is done and may throw.
// Errors: TraceError on a score trace: without keys there is no geometry to follow.
[[nodiscard]] SynthFit fit_synth(const Trace& trace, const std::string& name, std::uint64_t seed,
                                 const std::function<void(double)>& tick = {});

// Mean over the heads of a layer of |synthetic - real|, and the two means: what the report prints.
struct FitLine {
  std::string what;
  bool fitted = false;
  double real = 0, synthetic = 0, difference = 0;
};
[[nodiscard]] std::vector<FitLine> fit_lines(const SynthFit& fit, std::size_t layer);

// {"profile": .., "real": stats, "synthetic": stats,
//  "layers": [{"layer", "lines": [{"what","fitted","real","synthetic","difference"}]}]}
[[nodiscard]] nlohmann::json to_json(const SynthFit& fit);

}  // namespace kvspan::tracegen
