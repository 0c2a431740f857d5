// SPDX-License-Identifier: Apache-2.0
// FastGen: every head gets the cheapest of five sets that explains its attention in the prompt:
//   special -> + punctuation -> + frequent -> + local -> everything
//   frequent  the ceil(f t) entries of most accumulated attention among all others (t: length so far)
//   local     the newest ceil(r t) entries
//   explains  mean over the prompt's rows of the probability inside the set is at least `recovery`;
//             in a row, local is the band of ceil(r n) tokens that ends at it, n being the prompt
// The choice is made after the prompt and kept; both sets grow with the length in decode.
// Source: Ge et al., arXiv 2310.01801; the authors' repository holds no code, so details follow
// AnswerDotAI/cold-compress. Decided here: "recovers" is mass >= T (the paper's L1 distance can also be
// read as 1 - (1 - T) / 2); frequent entries are chosen among those that belong to no other set of the
// class, so that the sets add up to |special| + |punctuation| + (f + r) t. The paper is for MHA: a
// group stores one set, so its frequent entries are those of the summed attention and it takes the
// class that its most demanding query head needs.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

enum class Class : std::uint8_t { special, punctuation, frequent, local, full };

struct Settings {
  double recovery, recent, frequent;
  bool punctuation;
  std::vector<char> is_special, is_punctuation;  // [tokens]; empty: unknown
};

TokenCount share_of(double percent, RowIndex length) {
  return static_cast<TokenCount>(std::ceil(percent / 100 * static_cast<double>(length) - 1e-9));
}

class Profile final : public Scorer {
 public:
  Profile(const Settings& settings, const LayerShape& shape)
      : settings_(settings),
        band_(index(shape.query_heads)),
        class_(index(shape.heads), Class::full),
        sure_(index(shape.heads), 1) {}
  Needs needs() const override { return {.column_sums = true, .observe = Observe::always}; }

  // What every entry receives from the rows whose band it is in.
  void observe(const View& view, RowIndex begin, RowIndex end) override {
    const RowIndex prompt = view.pass().evict_at;
    const TokenCount width = share_of(settings_.recent, prompt);
    for (RowIndex row = begin; row < std::min(end, prompt); ++row) {
      const auto from = static_cast<TokenIndex>(std::max<RowIndex>(0, row + 1 - width));
      std::vector<TokenIndex> entries(index(row + 1 - from));
      std::iota(entries.begin(), entries.end(), from);
      std::vector<double> p(entries.size());
      for (int q = 0; q < view.shape().query_heads; ++q) {
        (void)view.probabilities(q, row, entries, p);
        auto& sums = band_[index(q)];
        sums.resize(index(prompt), 0.0);
        for (std::size_t i = 0; i < p.size(); ++i) sums[index(from) + i] += p[i];
      }
    }
  }

  // 1 for an entry of the head's set, 0 for the others.
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    if (view.pass().is_evict_point()) choose_class(view, head, entries);
    const bool certain =
        mark(view, head, entries, class_[index(head)], out) && sure_[index(head)] != 0;
    return certain ? 0.0 : std::numeric_limits<double>::infinity();
  }

 private:
  // Returns false if the cut among the frequent entries lies within the slack.
  bool mark(const View& view, int head, std::span<const TokenIndex> entries, Class chosen,
            std::span<double> out) const {
    std::fill(out.begin(), out.end(), chosen == Class::full ? 1.0 : 0.0);
    if (chosen == Class::full) return true;
    const RowIndex length = view.pass().end;
    const TokenIndex local =
        chosen == Class::local
            ? static_cast<TokenIndex>(length - share_of(settings_.recent, length))
            : static_cast<TokenIndex>(length);
    std::vector<std::size_t> others;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::size_t t = index(entries[i]);
      const bool in = entries[i] >= local || is_special(t) ||
                      (chosen >= Class::punctuation && is_punctuation(t));
      out[i] = in ? 1.0 : 0.0;
      if (!in) others.push_back(i);
    }
    if (chosen < Class::frequent) return true;
    const std::size_t count = std::min(others.size(), index(share_of(settings_.frequent, length)));
    std::vector<double> sums(entries.size());
    const double slack = reduce_group(
        view.shape(), head, Group::sum, sums,
        [&](int q, std::span<double> one) { return view.column_sum(q, entries, one); });
    round_sums(sums);
    const auto cut = others.begin() + static_cast<std::ptrdiff_t>(count);
    const auto better = [&](std::size_t a, std::size_t b) {
      return sums[a] != sums[b] ? sums[a] > sums[b] : a < b;
    };
    if (cut != others.end()) std::nth_element(others.begin(), cut, others.end(), better);
    double lowest = std::numeric_limits<double>::infinity();
    for (auto it = others.begin(); it != cut; ++it) {
      out[*it] = 1.0;
      lowest = std::min(lowest, sums[*it]);
    }
    return slack == 0 || cut == others.end() || count == 0 || lowest - sums[*cut] > 2 * slack;
  }

  // The first class that recovers enough for every query head of the group.
  void choose_class(const View& view, int head, std::span<const TokenIndex> entries) {
    const int group = view.shape().group();
    std::vector<double> in(entries.size());
    std::vector<double> sums(entries.size());
    bool sure = true;
    for (int c = 0; c < static_cast<int>(Class::full); ++c) {
      const auto candidate = static_cast<Class>(c);
      if (candidate == Class::punctuation && !settings_.punctuation) continue;
      sure = mark(view, head, entries, candidate, in) && sure;
      bool enough = true;
      for (int q = head * group; q < (head + 1) * group; ++q) {
        const double slack = view.column_sum(q, entries, sums);
        double all = 0;
        double kept = 0;
        for (std::size_t i = 0; i < entries.size(); ++i) {
          all += sums[i];
          if (in[i] > 0 && !(candidate == Class::local && moves(view, entries[i]))) {
            kept += sums[i];
          } else if (candidate == Class::local) {
            kept += band_[index(q)][index(entries[i])];
          }
        }
        const double mass = all > 0 ? kept / all : 1.0;
        enough = enough && static_cast<float>(mass) >= static_cast<float>(settings_.recovery);
        // `slack` bounds each sum; so many entries may be off by it.
        const double doubt = slack * static_cast<double>(entries.size()) / std::max(all, 1e-30);
        sure = sure && (slack == 0 || std::abs(mass - settings_.recovery) > doubt);
      }
      if (!enough) continue;
      class_[index(head)] = candidate;
      sure_[index(head)] = sure ? 1 : 0;
      return;
    }
    class_[index(head)] = Class::full;
    sure_[index(head)] = sure ? 1 : 0;
  }

  // An entry that is in the set as a local one only: earlier rows had another band.
  [[nodiscard]] bool moves(const View& view, TokenIndex token) const {
    const RowIndex length = view.pass().end;
    return token >= length - share_of(settings_.recent, length) && !is_special(index(token)) &&
           !is_punctuation(index(token));
  }
  [[nodiscard]] bool is_special(std::size_t token) const {
    return settings_.is_special.empty() ? token == 0 : settings_.is_special[token] != 0;
  }
  [[nodiscard]] bool is_punctuation(std::size_t token) const {
    return settings_.punctuation && settings_.is_punctuation[token] != 0;
  }

  Settings settings_;
  std::vector<std::vector<double>> band_;  // [query_heads][prompt tokens]
  std::vector<Class> class_;               // [heads]
  std::vector<char> sure_;                 // [heads]
};

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

void read_tokens(const Trace& trace, Settings& settings, std::vector<std::string>& notes) {
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
    Settings settings{arguments.real("recovery"),
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
    // One accumulated score per entry, at the cache's precision (1 / 2d of an entry), and the class of
    // every head. Heads whose class has no frequent set could drop theirs.
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
