// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/trace_reads.h"

#include <string>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::policies {

LayerVectors read_vectors(const Trace& trace, int layer, char which, RowIndex begin, RowIndex end,
                          bool before_rope) {
  const TraceMeta& m = trace.meta();
  const TensorView* tensor = which == 'q'   ? trace.q(layer)
                             : which == 'k' ? trace.k(layer)
                                            : trace.v(layer);
  LayerVectors out;
  out.begin = begin;
  out.heads = which == 'q' ? m.query_heads : m.kv_heads;
  out.dim = which == 'v' ? m.v_head_dim : m.head_dim;
  const std::int64_t row = std::int64_t{out.heads} * out.dim;
  out.data.resize(index((end - begin) * row));
  const std::string name = fmt::format("{}: layers.{}.{}", trace.name(), layer, which);
  if (tensor == nullptr) throw TraceError(fmt::format("{}: the fit needs it", name));
  widen(*tensor, begin * row, out.data, name);
  if (!before_rope || !m.rope) return out;
  for (RowIndex r = begin; r < end; ++r) {
    for (int h = 0; h < out.heads; ++h) {
      const std::size_t at = index(((r - begin) * out.heads + h) * out.dim);
      rotate(*m.rope, -static_cast<double>(r), std::span(out.data).subspan(at, index(out.dim)));
    }
  }
  return out;
}

}  // namespace kvspan::policies
