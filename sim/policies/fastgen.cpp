// SPDX-License-Identifier: Apache-2.0
// FastGen: every head gets the cheapest of five sets that explains its attention in the prompt:
//   special -> + punctuation -> + frequent -> + local -> everything
//   frequent  the ceil(f t) entries of most accumulated attention among all others (t: length so
//             far)
//   local     the newest ceil(r t) entries
//   explains  mean over the prompt's rows of the probability inside the set is at least `recovery`;
//             in a row, local is the band of ceil(r n) tokens that ends at it, n being the prompt
// The choice is made after the prompt and kept; both sets grow with the length in decode.
// Source: Ge et al., arXiv 2310.01801; the authors' repository holds no code, so details follow
// AnswerDotAI/cold-compress. Decided here: "recovers" is mass >= T (the paper's L1 distance can
// also be read as 1 - (1 - T) / 2); frequent entries are chosen among those that belong to no other
// set of the class, so that the sets add up to |special| + |punctuation| + (f + r) t. The paper is
// for MHA: a group stores one set, so its frequent entries are those of the summed attention and it
// takes the class that its most demanding query head needs.
#include <algorithm>
#include <cctype>
#include <string_view>

#include <fmt/format.h>

#include "sim/policies/fastgen_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

// Only ASCII punctuation and line breaks, spaces aside.
bool punctuates(std::string_view piece) {
  bool any = false;
  for (const char c : piece) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == ' ') continue;
    if (c != '\n' && c != '\r' && (byte > 127 || std::ispunct(byte) == 0)) return false;
    any = true;
  }
  return any;
}

void read_tokens(const Trace& trace, Profile::Settings& settings, std::vector<std::string>& notes) {
  const TraceMeta& meta = trace.meta();
  const std::vector<std::int32_t> ids = trace.token_ids();
  if (!ids.empty() && !meta.special_ids.empty()) {
    for (const std::int32_t id : ids) {
      settings.is_special.push_back(
          std::count(meta.special_ids.begin(), meta.special_ids.end(), id) > 0);
    }
  } else {
    notes.emplace_back("the trace names no special tokens: the first token is the only one");
  }
  if (!settings.punctuation) return;
  settings.punctuation = false;
  for (std::int64_t t = 0; t < meta.tokens; ++t) {
    const std::string_view piece = trace.token_text(t);
    settings.punctuation = settings.punctuation || !piece.empty();
    settings.is_punctuation.push_back(punctuates(piece) ? 1 : 0);
  }
  if (!settings.punctuation)
    notes.emplace_back("the trace has no text: punctuation is not a class");
}

}  // namespace

PolicyEntry fastgen() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "fastgen";
  entry.kind = MethodKind::head_budget;
  entry.summary = "every head the cheapest of five sets that explains its attention in the prompt";
  entry.source = "Ge et al. 2023, arXiv 2310.01801; AnswerDotAI/cold-compress";
  entry.evidence = "secondary";
  entry.differs =
      "the paper bounds |A - softmax(QK_C)|, read here as recovered mass >= T; MHA only, a "
      "group takes its most demanding head's class";
  entry.needs =
      "q and k, or probabilities of all rows; special_ids and token text if there are any";
  entry.parameters = {{.name = "recovery",
                       .kind = Kind::real,
                       .fallback = "0.95",
                       .help = "mass that a set must hold in the prompt",
                       .range = {0, 1}},
                      {.name = "recent",
                       .kind = Kind::real,
                       .fallback = "30",
                       .unit = "% of the length",
                       .help = "newest entries of the local set",
                       .range = {0, 100}},
                      {.name = "frequent",
                       .kind = Kind::real,
                       .fallback = "30",
                       .unit = "% of the length",
                       .help = "entries of most accumulated attention",
                       .range = {0, 100}},
                      {.name = "punctuation",
                       .kind = Kind::flag,
                       .fallback = "true",
                       .help = "false: there is no class of punctuation"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Profile::Settings settings{arguments.real("recovery"),
                               arguments.real("recent"),
                               arguments.real("frequent"),
                               arguments.flag("punctuation"),
                               {},
                               {}};
    Recipe recipe;
    if (geometry.trace != nullptr) {
      read_tokens(*geometry.trace, settings, recipe.notes);
    } else {
      settings.punctuation = false;
      recipe.notes.emplace_back("without a trace no set is known: the bound is the full cache");
    }
    Scoring scoring;
    scoring.make = [settings](const LayerShape& shape) {
      return std::make_unique<Profile>(settings, shape);
    };
    scoring.evicts_in_decode = true;
    recipe.scorer = own(scoring);
    recipe.shape = own(keep_positive());
    recipe.schedule = own(Schedule::from_evict_point());
    recipe.closed_form = false;
    // One accumulated score per entry, at the cache's precision (1 / 2d of an entry), and the class
    // of every head. Heads whose class has no frequent set could drop theirs.
    recipe.charge.entry = geometry.kv_bytes;
    recipe.charge.once = std::int64_t{geometry.layers()} * geometry.kv_heads;
    recipe.knob = Knob{"recovery", 1, 100, false, [](TokenCount percent) {
                         return fmt::format("{:g}", static_cast<double>(percent) / 100);
                       }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
