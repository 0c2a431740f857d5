// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/lifetime_map.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "sim/base/error.h"

namespace kvspan::gui {

namespace {

constexpr std::int64_t kAttentionGrid = 2048;  // cells an axis: 16 MiB

}  // namespace

LifetimeMap::LifetimeMap(Document& document, QWidget* parent, Of of)
    : QWidget(parent),
      document_(document),
      of_(of),
      map_work_(this),
      attention_work_(this),
      wants_attention_(document.display().attention) {
  setFocusPolicy(Qt::StrongFocus);
  setMouseTracking(true);
  setMinimumSize(300, 120);
  setAccessibleName(of == Of::current ? "Map of tokens and rows" : "Map of the baseline");
  setAccessibleDescription("Left and right choose the token, up and down the row");
}

void LifetimeMap::follow() {
  const ShownRun* run = of_ == Of::current ? document_.current_run() : document_.baseline_run();
  empty_ = why_no_lives(run);
  std::optional<WhichHead> now;
  if (empty_.isEmpty()) {
    const Focus focus = document_.focus();
    now = WhichHead{run->result, run->index, std::max(focus.layer, 0), std::max(focus.head, 0)};
  }
  if (now != which_) {
    if (!now || !which_ || now->result != which_->result) {
      tokens_ = {0, now ? now->result->trace.tokens : 0};
      trace_ = now ? document_.trace_of(*now->result) : nullptr;
    }
    which_ = now;
    if (!which_) picture_.reset();
    error_.clear();
    attention_.reset();
    attention_work_.cancel();
    message_.clear();
    if (wants_attention_) start_attention();
  }
  show_token();
  request();
  notify();
}

void LifetimeMap::set_attention(bool on) {
  Display display = document_.display();
  display.attention = on;
  document_.set_display(display);
}

void LifetimeMap::follow_display() {
  const bool on = document_.display().attention;
  if (on == wants_attention_) return;
  wants_attention_ = on;
  message_.clear();
  if (on && !attention_) start_attention();
  if (!on) attention_work_.cancel();
  request();
  notify();
}

void LifetimeMap::request() {
  if (!isVisible()) return map_work_.cancel();
  update();
  const auto frame = which_ ? frame_for(map_rect(rect()), devicePixelRatioF()) : std::nullopt;
  if (!frame) {
    map_work_.cancel();
    return;
  }
  map_work_.run(
      [which = *which_, frame = *frame, attention = shown_attention(),
       colours = life_colours()](const auto& cancelled) {
        return make_life_picture(which, frame, attention, colours, cancelled);
      },
      [this](LifePicture picture) {
        picture_ = std::move(picture);
        error_.clear();
        update();
        notify();
      },
      [this](const QString& what) {
        error_ = what;
        update();
        notify();
      });
}

Rows LifetimeMap::rows() const {
  const RowIndex all = which_ ? which_->result->trace.tokens : 0;
  const Rows zoomed = document_.zoom();
  return {std::min(zoomed.begin, all), std::min(zoomed.end, all)};
}

const LifetimesFile::Run& LifetimeMap::file_run() const {
  return which_->result->lifetimes->runs()[which_->run];
}

bool LifetimeMap::knows_reads() const {
  return file_run().has_selected && !file_run().read_rows.empty();
}

Attention LifetimeMap::shown_attention() const { return wants_attention_ ? attention_ : nullptr; }

const std::vector<Span>* LifetimeMap::spans() const {
  return trace_ == nullptr || trace_->meta().spans.empty() ? nullptr : &trace_->meta().spans;
}

void LifetimeMap::notify() const {
  if (changed) changed();
}

void LifetimeMap::show_token() {
  const std::int64_t token = document_.focus().token;
  if (token < 0 || (token >= tokens_.begin && token < tokens_.end)) return;
  const RowIndex size = tokens_.size();
  set_tokens({token - size / 2, token - size / 2 + size});
}

void LifetimeMap::start_attention() {
  if (!which_ || !isVisible() || attention_work_.busy()) return;
  QString why;
  const auto trace = document_.trace_of(*which_->result, &why);
  const TraceMeta* meta = trace == nullptr ? nullptr : &trace->meta();
  const int heads = run().heads;
  if (meta != nullptr && heads != meta->kv_heads && heads != meta->query_heads) {
    why = QString("the run stores %1 heads, the trace has %2").arg(heads).arg(meta->kv_heads);
  }
  if (meta == nullptr || !why.isEmpty()) {
    message_ = "No attention: " + why;
    return;
  }
  attention_work_.run(
      [trace, which = *which_, heads](const auto& cancelled) {
        HeadAttentionOptions options;
        options.grid = kAttentionGrid;
        options.cancelled = cancelled;
        const auto deaths =
            which.result->lifetimes->deaths(static_cast<int>(which.run), which.layer, which.head);
        return attention_of_head(*trace, {which.layer, which.head, heads}, deaths, options);
      },
      [this](HeadAttention attention) {
        attention_ = std::make_shared<const HeadAttention>(std::move(attention));
        request();
        notify();
      },
      [this](const QString& what) {
        message_ = "No attention: " + what;
        notify();
      });
}

}  // namespace kvspan::gui
