// SPDX-License-Identifier: Apache-2.0
#include "sim/fleet/requests.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <numbers>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/json_fields.h"
#include "sim/base/random.h"
#include "sim/base/text.h"

namespace kvspan {
namespace {

using nlohmann::json;

std::vector<std::string_view> split(std::string_view line) {
  std::vector<std::string_view> out;
  while (true) {
    const std::size_t comma = line.find(',');
    out.push_back(line.substr(0, comma));
    if (comma == std::string_view::npos) return out;
    line.remove_prefix(comma + 1);
  }
}

template <class Number>
bool whole(std::string_view text, Number* out) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), *out);
  return result.ec == std::errc() && result.ptr == text.data() + text.size();
}

// Two digits and what follows them.
bool two_digits(std::string_view text, std::size_t at, int highest, int* out) {
  return at + 2 <= text.size() && whole(text.substr(at, 2), out) && *out >= 0 && *out <= highest;
}

// "2023-11-16 18:17:03.9799600", with or without "+00:00": seconds since 1970.
bool date_time(std::string_view text, double* out) {
  int year = 0, month = 0, day = 0, hour = 0, minute = 0;
  if (text.size() < 19 || !whole(text.substr(0, 4), &year) || !two_digits(text, 5, 12, &month) ||
      !two_digits(text, 8, 31, &day) || !two_digits(text, 11, 23, &hour) ||
      !two_digits(text, 14, 59, &minute))
    return false;
  std::string_view rest = text.substr(17);
  rest = rest.substr(0, rest.find_first_of("+Z"));
  double second = 0;
  const std::chrono::year_month_day date{std::chrono::year(year),
                                         std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (!date.ok() || !whole(rest, &second) || !(second >= 0 && second < 61)) return false;
  const auto days = std::chrono::sys_days(date).time_since_epoch().count();
  *out = (static_cast<double>(days) * 24 + hour) * 3600 + minute * 60 + second;
  return true;
}

class RequestReader {
 public:
  explicit RequestReader(const std::filesystem::path& file) : file_(file), bytes_(map_file(file)) {}

  std::vector<FleetRequest> read(std::int64_t* skipped) {
    const std::string_view text(reinterpret_cast<const char*>(bytes_.bytes.data()),
                                bytes_.bytes.size());
    std::size_t at = 0;
    while (at < text.size()) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      std::string_view line = text.substr(at, end - at);
      at = end + 1;
      ++line_;
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (!line.empty()) add(line);
    }
    if (out_.empty()) {
      throw TraceError(fmt::format("{}: found no requests, expected a line each of the columns {}",
                                   path_text(file_), kColumns));
    }
    std::stable_sort(out_.begin(), out_.end(),
                     [](const auto& a, const auto& b) { return a.arrival < b.arrival; });
    const double first = out_.front().arrival;
    for (FleetRequest& r : out_) r.arrival -= first;
    *skipped = skipped_;
    return std::move(out_);
  }

 private:
  static constexpr const char* kColumns =
      "TIMESTAMP,ContextTokens,GeneratedTokens (Azure), Timestamp,..,Request tokens,Response "
      "tokens (BurstGPT), or JSON with timestamp, input_length and output_length (Mooncake)";

  [[noreturn]] void fail(const std::string& what) const {
    throw TraceError(fmt::format("{}, line {}: {}", path_text(file_), line_, what));
  }

  void add(std::string_view line) {
    if (line.starts_with('{')) return add_json(line);
    const std::vector<std::string_view> fields = split(line);
    if (columns_ == 0) return read_header(fields);
    if (fields.size() != columns_)
      fail(fmt::format("found {} fields, expected {}", fields.size(), columns_));
    FleetRequest r;
    if (!whole(fields[time_], &r.arrival) && !date_time(fields[time_], &r.arrival))
      fail(fmt::format("found the time {}, expected seconds or 2023-11-16 18:17:03.97",
                       in_quotes(fields[time_])));
    r.prompt = count(fields[prompt_]);
    r.generated = count(fields[generated_]);
    keep(std::move(r));
  }

  void read_header(const std::vector<std::string_view>& names) {
    const auto place = [&](std::initializer_list<std::string_view> known) {
      for (std::size_t i = 0; i < names.size(); ++i) {
        if (std::find(known.begin(), known.end(), names[i]) != known.end()) return i;
      }
      fail(fmt::format("found {}, expected the columns {}", in_quotes(names.front()), kColumns));
    };
    time_ = place({"TIMESTAMP", "Timestamp"});
    prompt_ = place({"ContextTokens", "Request tokens"});
    generated_ = place({"GeneratedTokens", "Response tokens"});
    columns_ = names.size();
  }

  [[nodiscard]] std::int64_t count(std::string_view text) const {
    std::int64_t out = 0;
    if (!whole(text, &out) || out < 0 || out > kLongest)
      fail(fmt::format("found {}, expected tokens from 0 to {}", in_quotes(text), kLongest));
    return out;
  }

  void add_json(std::string_view line) {
    json object;
    try {
      object = parse_json_strict(line);
    } catch (const std::invalid_argument& error) {
      fail(error.what());
    }
    FleetRequest r;
    const auto tokens = [&](const char* key) {
      std::int64_t value = -1;
      if (!object.contains(key) || !json_integer(object[key], &value) || value < 0 ||
          value > kLongest)
        fail(fmt::format("expected '{}' from 0 to {}", key, kLongest));
      return value;
    };
    const auto time = object.find("timestamp");
    if (time == object.end() || !time->is_number()) fail("expected 'timestamp' in milliseconds");
    r.arrival = time->get<double>() / 1000;
    r.prompt = tokens("input_length");
    r.generated = tokens("output_length");
    const auto hashes = object.find("hash_ids");
    if (hashes != object.end()) {
      for (const json& id : *hashes) {
        std::int64_t value = 0;
        if (!json_integer(id, &value)) fail("expected whole numbers in 'hash_ids'");
        r.blocks.push_back(value);
      }
      const auto most = static_cast<std::size_t>((r.prompt + kHashBlock - 1) / kHashBlock);
      if (r.blocks.size() > most)
        fail(fmt::format("found {} hash_ids, expected at most {} blocks of {} tokens",
                         r.blocks.size(), most, kHashBlock));
    }
    keep(std::move(r));
  }

  void keep(FleetRequest request) {
    if (!std::isfinite(request.arrival)) fail("found a time that is not finite");
    if (request.prompt == 0) {
      ++skipped_;
    } else {
      out_.push_back(std::move(request));
    }
  }

  std::filesystem::path file_;
  MappedFile bytes_;
  std::int64_t line_ = 0, skipped_ = 0;
  std::size_t columns_ = 0, time_ = 0, prompt_ = 0, generated_ = 0;
  std::vector<FleetRequest> out_;
};

}  // namespace

std::vector<FleetRequest> read_requests(const std::filesystem::path& file, std::int64_t* skipped) {
  return RequestReader(file).read(skipped);
}

LengthDistribution::LengthDistribution(const std::string& text, const std::string& what) {
  const auto refuse = [&] {
    throw ConfigError(fmt::format(
        "{}: found {}, expected tokens such as 1024, uniform(512,2048), exponential(300) or "
        "lognormal(1024,0.8)",
        what, in_quotes(text)));
  };
  const std::size_t open = text.find('(');
  if (open == std::string::npos) {
    if (!whole(std::string_view(text), &a_) || !(a_ >= 1 && a_ <= kLongest)) refuse();
    return;
  }
  const std::string name = text.substr(0, open);
  if (!text.ends_with(')')) refuse();
  const std::vector<std::string_view> numbers =
      split(std::string_view(text).substr(open + 1, text.size() - open - 2));
  kind_ = name == "uniform"       ? Kind::uniform
          : name == "exponential" ? Kind::exponential
          : name == "lognormal"   ? Kind::lognormal
                                  : Kind::fixed;
  if (kind_ == Kind::fixed || numbers.size() != (kind_ == Kind::exponential ? 1U : 2U)) refuse();
  if (!whole(numbers[0], &a_) || !(a_ >= 1 && a_ <= kLongest)) refuse();
  if (kind_ == Kind::exponential) return;
  const double lowest = kind_ == Kind::uniform ? a_ : 0;
  const double highest = kind_ == Kind::uniform ? static_cast<double>(kLongest) : 10;
  if (!whole(numbers[1], &b_) || !(b_ >= lowest && b_ <= highest)) refuse();
}

std::int64_t LengthDistribution::draw(double u, double v) const {
  double x = a_;
  switch (kind_) {
    case Kind::fixed:
      break;
    case Kind::uniform:
      x = std::floor(a_ + u * (b_ - a_ + 1));
      break;
    case Kind::exponential:
      x = -a_ * std::log(u);
      break;
    case Kind::lognormal:  // Box and Muller
      x = a_ * std::exp(b_ * std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v));
      break;
  }
  return std::clamp<std::int64_t>(std::llround(std::min(x, static_cast<double>(kLongest))), 1,
                                  kLongest);
}

std::vector<FleetRequest> draw_requests(const DrawnRequests& wanted) {
  std::vector<FleetRequest> out(static_cast<std::size_t>(wanted.count));
  const auto number = [&](std::int64_t request, std::int64_t which) {
    return uniform(wanted.seed, {request, which});
  };
  double now = 0;
  for (std::int64_t i = 0; i < wanted.count; ++i) {
    FleetRequest& r = out[static_cast<std::size_t>(i)];
    if (i > 0) now -= std::log(number(i, 0)) / wanted.rate;
    r.arrival = now;
    r.prompt = wanted.prompt.draw(number(i, 1), number(i, 2));
    r.generated = wanted.generated.draw(number(i, 3), number(i, 4));
  }
  return out;
}

}  // namespace kvspan
