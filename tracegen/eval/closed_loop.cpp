// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/closed_loop.h"

#include <algorithm>
#include <memory>
#include <utility>

#include <fmt/format.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/policy/registry.h"
#include "sim/replay/layer_walk.h"
#include "sim/run/run.h"
#include "tracegen/eval/batch.h"
#include "tracegen/eval/decoding.h"
#include "tracegen/eval/shared_prompt.h"

namespace kvspan::tracegen {
namespace {

constexpr double kPrefillShare = 0.3;  // of the progress

// A policy that the model can serve.
struct Entrant {
  std::size_t spec = 0;    // in the caller's list
  std::size_t policy = 0;  // in the lineup
  RowIndex fork = 0;       // rows before it are the full cache's
  std::int64_t bytes = 0;  // of its branches
};

class ClosedLoop {
 public:
  ClosedLoop(const Checkpoint& checkpoint, const LoopInput& input,
             const std::vector<RecipeSpec>& specs, const LoopOptions& options)
      : checkpoint_(checkpoint),
        model_(checkpoint.spec()),
        input_(input),
        specs_(specs),
        options_(options),
        arena_(options.threads > 0 ? options.threads : tbb::task_arena::automatic),
        reference_(std::ssize(input.reference)),
        tokens_(std::ssize(input.prompt.ids) + std::max<RowIndex>(input.generate, reference_)),
        share_(options.share > 0 ? options.share : options.memory),
        kept_bytes_(options.dense != nullptr && options.dense->keeps()
                        ? StableDense::kept_bytes(checkpoint)
                        : 0),
        prompt_(checkpoint, input.prompt,
                {tokens_, std::ssize(input.prompt.ids), input.spans, input.name}, options.threads,
                share_ - kept_bytes_, [this](double done) { advance_to(kPrefillShare * done); }) {}

  LoopResult run() {
    bind();
    arena_.execute([&] {
      StableDense own(false);
      Batch batch(checkpoint_, options_.dense != nullptr ? *options_.dense : own, lineup_.geometry,
                  measured_, block_rows_);
      for (std::size_t begin = 0; begin < entrants_.size();) {
        const std::size_t end = end_of_group(begin);
        run_group(batch, begin, end);
        begin = end;
      }
    });
    if (full_reading_) replay_reading();
    std::sort(order_.begin(), order_.end());
    LoopResult out = std::move(result_);
    std::vector<LoopRun> runs = std::exchange(out.runs, {});
    for (const auto& [spec, place] : order_) out.runs.push_back(std::move(runs[place]));
    out.report.trace_path = input_.name;
    out.report.trace = prompt_.sequence().trace().meta();
    out.report.chunk = options_.chunk;
    out.report.accounting = options_.accounting;
    return out;
  }

 private:
  void advance_to(double done) const {
    if (options_.cancelled && options_.cancelled()) throw Interrupted();
    if (options_.progress) options_.progress(done);
  }
  [[nodiscard]] EngineOptions engine_options() const {
    EngineOptions out;
    out.prompt = prompt_.rows();
    out.evict_point = options_.evict_point;
    out.chunk = options_.chunk;
    out.kv_bytes = options_.accounting.kv_bytes;
    out.seed = options_.seed;
    out.threads = options_.threads;
    return out;
  }

  void bind() {
    const Trace& trace = prompt_.sequence().trace();
    const EngineOptions engine = engine_options();
    lineup_.geometry = geometry_of(trace, engine);
    lineup_.geometry.trace = &prompt_.trace();
    block_rows_ = plan_memory(trace, lineup_, engine).block_rows;
    measured_ = plan_fidelity(tokens_, prompt_.rows(), 0, 0);
    measured_.output_error = true;
    deaths_.resize(specs_.size());
    fixed_bytes_ = prompt_.memory_bytes() + reference_ * model_.vocabulary * 4 + kept_bytes_;
    for (std::size_t s = 0; s < specs_.size(); ++s) {
      if (auto reason = why_not_enter(s)) {
        if (s == 0) throw ConfigError(*reason);
        result_.refused.push_back({label_of(specs_[s]), std::move(*reason)});
      }
    }
    // Those that share the whole prompt come first, `full` before all.
    std::stable_sort(entrants_.begin(), entrants_.end(),
                     [&](const Entrant& a, const Entrant& b) { return a.fork > b.fork; });
  }

  // Binds a policy, or says why it cannot be served.
  std::optional<std::string> why_not_enter(std::size_t s) {
    Policy policy;
    Requirements asked;
    try {
      policy = make_policy(specs_[s], lineup_.geometry);
      asked = requirements_of(policy, lineup_.geometry);
    } catch (const TraceError& error) {
      return error.what();
    }
    if (auto reason = why_not(prompt_.trace(), policy, asked)) return reason;
    if (auto reason = why_not_live(policy, asked)) return reason;
    const RowIndex fork = std::min(asked.changes_from, prompt_.rows());
    const std::int64_t bytes =
        ((input_.generate > 0 ? 1 : 0) + (reference_ > 0 ? 1 : 0)) *
            (LiveReplay::memory_bytes(prompt_.sequence().trace(), lineup_.geometry, policy, asked) +
             Sequence::fork_bytes(model_, tokens_ - fork) + 2 * model_.vocabulary * 4) +
        Batch::bytes(model_, longest_pass(asked.passes, fork));
    if (fixed_bytes_ + bytes > options_.memory) {
      return fmt::format("{} needs {} beside the {} of model and prompt; --memory allows {}",
                         policy.spec, human_bytes(bytes), human_bytes(fixed_bytes_),
                         human_bytes(options_.memory));
    }
    if (fixed_bytes_ + bytes > share_) throw NeedsMore(policy.spec);
    entrants_.push_back({s, lineup_.policies.size(), fork, bytes});
    lineup_.policies.push_back(std::move(policy));
    lineup_.requirements.push_back(std::move(asked));
    return std::nullopt;
  }

  // Rows of the prompt's longest pass from `from` on, 2 for decode at least.
  [[nodiscard]] RowIndex longest_pass(const PassPlan& passes, RowIndex from) const {
    RowIndex rows = 2;
    for (const RowIndex end : passes.ends) {
      if (end <= from || end > prompt_.rows()) continue;
      rows = std::max(rows, end - std::exchange(from, end));
    }
    return rows;
  }

  // Entrants [begin, end) fork at the same row, and fit into memory together.
  [[nodiscard]] std::size_t end_of_group(std::size_t begin) {
    std::size_t end = begin;
    std::int64_t bytes = fixed_bytes_;
    while (end < entrants_.size() && entrants_[end].fork == entrants_[begin].fork &&
           (end == begin || bytes + entrants_[end].bytes <= share_)) {
      bytes += entrants_[end++].bytes;
    }
    result_.memory_bytes = std::max(result_.memory_bytes, bytes);
    return end;
  }

  void run_group(Batch& batch, std::size_t begin, std::size_t end) {
    std::vector<Course> courses;
    for (std::size_t e = begin; e < end; ++e) {
      for (const bool answers : {true, false}) {
        if (!(answers ? input_.generate > 0 : reference_ > 0)) continue;
        Course& course = courses.emplace_back();
        course.entrant = e;
        course.answers = answers;
        course.full = entrants_[e].spec == 0;
        course.logits.assign(prompt_.logits().begin(), prompt_.logits().end());
      }
    }
    const std::vector<Shares> shares = survey(begin, end);
    std::vector<const Policy*> policies;
    for (const Course& course : courses) policies.push_back(&policy_of(course.entrant));
    LiveGroup together(policies, lineup_.geometry);
    std::vector<LiveReplay*> replays(courses.size());
    tbb::parallel_for(std::size_t{0}, courses.size(), [&](std::size_t i) {
      Branch& branch = courses[i].branch;
      branch.sequence = prompt_.sequence().fork();
      branch.replay = replay_of(courses[i].entrant, branch.sequence->trace(),
                                shares[courses[i].entrant - begin], together);
      replays[i] = branch.replay.get();
    });
    walk(together, replays, begin, end);
    if (entrants_[begin].fork < prompt_.rows()) catch_up(batch, courses);
    decoding_.run(batch, courses, [&](double done) {
      const auto first = static_cast<double>(begin);
      const double share = first + (static_cast<double>(end) - first) * done;
      advance_to(kPrefillShare +
                 (1 - kPrefillShare) * share / static_cast<double>(entrants_.size()));
    });
    std::vector<RunResult> runs(courses.size());
    tbb::parallel_for(std::size_t{0}, courses.size(), [&](std::size_t i) {
      if (has_ledger(courses[i])) runs[i] = run_of(courses[i]);
    });
    for (std::size_t i = 0; i < courses.size(); ++i) {
      if (has_ledger(courses[i])) finish(courses, i, std::move(runs[i]));
    }
  }

  [[nodiscard]] const Policy& policy_of(std::size_t entrant) const {
    return lineup_.policies[entrants_[entrant].policy];
  }

  [[nodiscard]] std::unique_ptr<LiveReplay> replay_of(std::size_t entrant, const Trace& trace,
                                                      Shares shares, LiveGroup& group) const {
    const std::size_t p = entrants_[entrant].policy;
    return std::make_unique<LiveReplay>(trace, lineup_.geometry, lineup_.policies[p],
                                        lineup_.requirements[p], std::move(shares), &group);
  }

  // What budgets of all layers share out, which the layers have to show first. [end - begin]
  std::vector<Shares> survey(std::size_t begin, std::size_t end) {
    std::vector<Shares> out(end - begin);
    std::vector<std::size_t> places;
    std::vector<const Policy*> policies;
    for (std::size_t e = begin; e < end; ++e) {
      if (!coupled_rule(policy_of(e))) continue;
      places.push_back(e - begin);
      policies.push_back(&policy_of(e));
    }
    if (places.empty()) return out;
    LiveGroup together(policies, lineup_.geometry);
    std::vector<std::unique_ptr<LiveReplay>> coupled;
    std::vector<LiveReplay*> replays;
    for (const std::size_t place : places) {
      coupled.push_back(replay_of(begin + place, prompt_.sequence().trace(), {}, together));
      replays.push_back(coupled.back().get());
    }
    walk(together, replays, begin, end);
    for (std::size_t i = 0; i < places.size(); ++i) out[places[i]] = replays[i]->share_out();
    return out;
  }

  // Rows before the fork, whose attention is computed once for all.
  void walk(LiveGroup& together, std::span<LiveReplay* const> replays, std::size_t begin,
            std::size_t end) {
    Lineup group{lineup_.geometry, {}, {}};
    bool in_order = false;
    for (std::size_t e = begin; e < end; ++e) {
      group.policies.push_back(lineup_.policies[entrants_[e].policy]);
      group.requirements.push_back(lineup_.requirements[entrants_[e].policy]);
      in_order = in_order || group.policies.back().reads_lower_layers;
    }
    const RowIndex fork = entrants_[begin].fork;
    const WalkPlan plan = plan_walk(prompt_.sequence().trace(), group, {}, block_rows_);
    const auto walk_layer = [&](int layer) {
      BlockTerms terms(lineup_.geometry, plan.fidelity, block_rows_, false);
      for (RowIndex from = 0; const RowIndex to : plan.block_ends) {
        if (to > fork) break;
        const RowBlock& block =
            terms.compute(prompt_.sequence().scores(layer), from, to, plan.needed);
        together.process(layer, block, replays);
        from = to;
      }
    };
    if (in_order) {
      for (int l = 0; l < model_.layers; ++l) walk_layer(l);
    } else {
      tbb::parallel_for(0, model_.layers, walk_layer);
    }
    for (LiveReplay* replay : replays) replay->part();
  }

  // The rest of the prompt, pass by pass, of policies that evict inside it: as many at a time as
  // there are threads. Both courses of a policy read the same.
  void catch_up(Batch& batch, std::vector<Course>& courses) {
    const std::size_t each = input_.generate > 0 && reference_ > 0 ? 2 : 1;
    const std::size_t at_once = each * index(arena_.max_concurrency());
    for (std::size_t begin = 0; begin < courses.size(); begin += at_once) {
      const std::span<Course> some =
          std::span(courses).subspan(begin, std::min(at_once, courses.size() - begin));
      catch_up_some(batch, some, each);
    }
  }

  // `each` courses of every policy.
  void catch_up_some(Batch& batch, std::span<Course> courses, std::size_t each) {
    std::vector<RowIndex> from(courses.size(), entrants_[courses.front().entrant].fork);
    for (;;) {
      advance_to(kPrefillShare);
      std::vector<Batch::Rows> rows;
      std::vector<std::size_t> places;
      for (std::size_t i = 0; i < courses.size(); i += each) {
        if (from[i] == prompt_.rows()) continue;
        const auto& ends = lineup_.requirements[entrants_[courses[i].entrant].policy].passes.ends;
        const RowIndex to = std::min(*std::ranges::upper_bound(ends, from[i]), prompt_.rows());
        const auto ids = input_.prompt.ids.begin();
        rows.push_back({&courses[i].branch,
                        from[i],
                        {ids + from[i], ids + to},
                        each > 1 ? &courses[i + 1].branch : nullptr});
        places.push_back(i);
        from[i] = to;
      }
      if (rows.empty()) return;
      batch.advance(rows);
      std::vector<std::size_t> ended;
      for (std::size_t r = 0; r < rows.size(); ++r) {
        if (from[places[r]] == prompt_.rows()) ended.push_back(r);
      }
      std::vector<std::vector<float>> logits(rows.size());
      batch.logits(ended, logits);
      for (const std::size_t r : ended) {
        for (std::size_t i = places[r]; i < places[r] + each; ++i) courses[i].logits = logits[r];
      }
    }
  }

  // The run is the answer's; else the reference's.
  [[nodiscard]] bool has_ledger(const Course& course) const {
    return course.answers || input_.generate == 0;
  }

  RunResult run_of(const Course& course) const {
    const RowIndex rows = prompt_.rows() + std::ssize(course.tokens);
    return result_of(prompt_.sequence().trace(), specs_[entrants_[course.entrant].spec],
                     policy_of(course.entrant), course.branch.replay->finish(rows),
                     options_.accounting);
  }

  // Puts both readings of an entrant together.
  void finish(std::vector<Course>& courses, std::size_t i, RunResult run) {
    const Entrant& entrant = entrants_[courses[i].entrant];
    const bool with_reference = courses[i].answers && reference_ > 0;
    const std::size_t reading = with_reference ? i + 1 : i;
    LoopRun out;
    out.run = std::move(run);
    out.nll = std::move(courses[reading].nll);
    out.divergence = std::move(courses[reading].divergence);
    if (courses[i].answers) out.answer = std::move(courses[i].tokens);
    if (options_.proxies && rows_of_reference(input_) > 0) {
      if (entrant.spec == 0) full_reading_ = std::move(courses[reading].branch.sequence);
      deaths_[entrant.spec] =
          with_reference ? courses[reading]
                               .branch.replay->finish(prompt_.rows() + rows_of_reference(input_))
                               .ledger.death
                         : out.run.ledger.death;
    }
    order_.emplace_back(entrant.spec, result_.runs.size());
    result_.runs.push_back(std::move(out));
  }

  // What a replay of the full cache's reading says of the same policies.
  void replay_reading() {
    const RowIndex rows = prompt_.rows() + rows_of_reference(input_);
    Sequence::Text text = input_.prompt;
    text.ids.insert(text.ids.end(), input_.reference.begin(), input_.reference.end());
    text.ids.resize(static_cast<std::size_t>(rows));
    text.pieces.resize(static_cast<std::size_t>(rows));
    const Trace full = full_reading_->prompt_trace(rows, text, checkpoint_);
    const auto found = open_loop(full, specs_, engine_options(), deaths_);
    for (const auto& [spec, place] : order_) result_.runs[place].open = found[spec];
  }

  const Checkpoint& checkpoint_;
  const ModelSpec& model_;
  const LoopInput& input_;
  const std::vector<RecipeSpec>& specs_;
  const LoopOptions& options_;
  tbb::task_arena arena_;
  RowIndex reference_;       // tokens
  RowIndex tokens_;          // that there is room for
  std::int64_t share_;       // bytes that this run may hold
  std::int64_t kept_bytes_;  // of widened weights, which others use as well
  SharedPrompt prompt_;
  Lineup lineup_;
  RowIndex block_rows_ = 0;
  FidelityPlan measured_;
  std::int64_t fixed_bytes_ = 0;
  std::vector<Entrant> entrants_;  // by fork, falling
  Decoding decoding_{input_};
  std::unique_ptr<Sequence> full_reading_;          // of the reference, by specs[0]
  std::vector<std::vector<std::uint32_t>> deaths_;  // [specs] while the reference was read
  LoopResult result_;
  std::vector<std::pair<std::size_t, std::size_t>> order_;  // specification, place in result_.runs
};

}  // namespace

LoopResult run_closed_loop(const Checkpoint& checkpoint, const LoopInput& input,
                           const std::vector<RecipeSpec>& specs, const LoopOptions& options) {
  return ClosedLoop(checkpoint, input, specs, options).run();
}

}  // namespace kvspan::tracegen
