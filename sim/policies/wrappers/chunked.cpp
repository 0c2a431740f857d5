// SPDX-License-Identifier: Apache-2.0
// chunked(policy): any policy with a scorer, evicting after every chunk of the prompt (--chunk),
// and in decode as it does alone: the adaptation with which arXiv 2506.17121 compares post-fill
// methods.
// Source: its metric (kv_footprint.py: count=metric) and evaluation code (snapkv.py, pyramidkv.py:
// count=implementation); variant=patched scores every chunk but the last with the prompt's last
// rows at the positions after the chunk: their softmax runs over the chunk and, up to the row, over
// the patch's own keys, whose columns are then cut off. They saw the whole prompt: a stand-in.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

// A budget that is a share, in steps of 0.01 %.
Knob share_knob() {
  return {"budget", 1, 10000, true,
          [](TokenCount steps) { return fmt::format("{}%", static_cast<double>(steps) / 100); }};
}

}  // namespace

PolicyEntry chunked() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "chunked";
  entry.kind = MethodKind::wrapper;
  entry.summary = "lets a policy evict after every chunk of the prompt";
  entry.source = "Bhaskar et al. 2025, arXiv 2506.17121, section 3; code princeton-pli/PruLong";
  entry.evidence = "code read";
  entry.differs =
      "the paper's metric keeps the window on top of every chunk's share, its evaluation "
      "code inside it (count=metric|implementation). A budget that is a share (20%) is of each "
      "chunk, whose survivors stay (compete=frozen); tokens or bytes (204) are a total that all "
      "chunks compete for (compete=all): two methods, of different footprint and retained "
      "attention at what looks like one budget. Runs say \"20% of each chunk\" or \"204 in all\", "
      "and --match turns the kind that the policy was given with (a share, where nothing was)";
  entry.needs =
      "what the inner policy needs, for the last rows of every chunk; patched: q, k and rope_*";
  entry.wrapper = true;
  entry.parameters = {
      {.name = "count",
       .kind = Kind::word,
       .fallback = "metric",
       .help = "kept per chunk: the paper's metric, or the authors' code",
       .choices = {"metric", "implementation"}},
      {.name = "variant",
       .kind = Kind::word,
       .fallback = "naive",
       .help = "observing queries: the chunk's own, or the prompt's last",
       .choices = {"naive", "patched"}},
      {.name = "compete",
       .kind = Kind::word,
       .fallback = "auto",
       .help = "frozen: survivors of earlier chunks stay; all: every entry competes",
       .choices = {"auto", "frozen", "all"}},
      {.name = "small",
       .kind = Kind::word,
       .fallback = "budget",
       .help = "when the count is within the window: keep the count, or the window",
       .choices = {"budget", "window"}}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    const auto refuse = [&](const std::string& why) {
      throw ConfigError(fmt::format("chunked({}) has no meaning: {}", inner.name, why));
    };
    if (inner.chunked) refuse("it is chunked already");
    if (!inner.scorer) refuse(fmt::format("{} ranks nothing", inner.name));
    if (inner.schedule && inner.schedule.value.every_chunk)
      refuse("it evicts after every pass as it is");
    if (inner.schedule && !inner.schedule.value.evict_point) refuse("it leaves the prompt alone");
    if (!inner.size) refuse("it has no budget");
    if (geometry.chunk == 0)
      inner.notes.emplace_back("chunked without --chunk: the prompt is one chunk");
    if (inner.capacity_step > 0) {  // preset=prulong: the paper's program, not its metric
      if (!arguments.given("count")) arguments.set("count", "implementation");
      if (!arguments.given("small")) arguments.set("small", "window");
    }
    const bool share = inner.size.value.kind == Amount::Kind::share;
    Recipe::Chunked chunked;
    chunked.metric_count = arguments.is("count", "metric");
    chunked.patched = arguments.is("variant", "patched");
    chunked.small_window = arguments.is("small", "window");
    chunked.compete_all = !share || inner.scorer.value.evicts_in_decode;
    if (share && inner.knob && inner.knob->parameter == "budget") inner.knob = share_knob();
    if (!arguments.is("compete", "auto")) chunked.compete_all = arguments.is("compete", "all");
    arguments.set("compete", chunked.compete_all ? "all" : "frozen");
    if (!chunked.compete_all && !share) {
      refuse(
          "a fixed total cannot be spread over chunks whose survivors are frozen; give a share "
          "such as budget=10%");
    }
    if (chunked.patched) {
      if (inner.scorer.value.window == 0)
        refuse("variant=patched needs a policy with an observation window");
      if (inner.scorer.value.row_by_row)
        refuse("variant=patched has sums of votes only, and its scores are of single rows");
      inner.notes.emplace_back("stand-in: patched queries saw the whole prompt");
    }
    if (inner.block_size > 0 &&
        (chunked.patched || (!chunked.compete_all && geometry.chunk % inner.block_size != 0))) {
      refuse(
          fmt::format("chunks of {} tokens{} do not end where blocks of {} do; expected --chunk "
                      "as a multiple, or compete=all",
                      geometry.chunk, chunked.patched ? ", patched," : "", inner.block_size));
    }
    const std::string args = arguments.canonical();
    inner.terms = {
        fmt::format("chunked({},{}", fmt::join(inner.terms, "+"), args.substr(args.find('(') + 1))};
    inner.chunked = chunked;
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
