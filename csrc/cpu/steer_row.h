// One row of steer: what its patterns say, which clauses of which rules hold, how it moves through a sequence.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "adapt/philox.h"
#include "adapt/steer.h"

namespace adapt::steer {

constexpr uint32_t kPurposeRule = 2;

// Patterns in some state; pattern -1 never completes.
struct Patterns {
  const Tables& t;
  const uint8_t* states;
  bool accept(int32_t pattern) const { return pattern >= 0 && t.accept[pattern * t.num_states + states[pattern]]; }
  int32_t back(int32_t pattern) const { return pattern < 0 ? 0 : t.back[pattern * t.num_states + states[pattern]]; }

  // The state of one pattern after one more token.
  uint8_t next(int32_t pattern, int64_t token) const {
    return t.transitions[(pattern * t.num_states + states[pattern]) * t.num_classes + t.classes[token]];
  }
  bool accept_next(int32_t pattern, int64_t token) const {
    return pattern >= 0 && t.accept[pattern * t.num_states + next(pattern, token)];
  }
};

inline const int32_t* rule_of(const Tables& t, int64_t rule) { return t.rules + rule * kRuleFields; }

// The first columns of `numbers` that hold what.
struct Columns {
  explicit Columns(const Tables& t)
      : since(kFirstSpan), total(since + t.num_spans), visits(total + t.num_spans), fired(visits + t.num_spans) {}
  int64_t since, total, visits, fired;
};

// A row as it is before this half of the step writes.
class Row {
 public:
  Row(const Tables& tables, const State& state, const Rows& rows, int64_t row)
      : t(tables), columns(tables), patterns{tables, state.patterns + row * tables.num_patterns},
        inside(state.flags + row * (tables.num_spans + tables.num_rules)),
        numbers(state.numbers + row * tables.width), alive(rows.alive[row]), row_(row),
        registers_(state.registers + row * tables.registers), uses_(rows.uses + row * tables.num_rules),
        uniforms_(rows.uniforms ? rows.uniforms + row * tables.num_rules : nullptr),
        seed_(uint64_t(rows.seeds[row])), max_new_tokens_(rows.max_new_tokens[row]) {}

  const Tables& t;
  const Columns columns;
  const Patterns patterns;
  const uint8_t* inside;
  const int32_t* numbers;
  const bool alive;

  int32_t position() const { return numbers[kPosition]; }
  bool uses(int64_t rule) const { return uses_[rule] && alive; }

  // Tokens of this visit, or since the last one; a half-matched close does not count.
  int32_t count(int64_t span) const {
    const int32_t since = numbers[columns.since + span];
    return inside[span] ? std::max(since - patterns.back(close(span)), 0) : since;
  }

  bool half_closed(int64_t span) const {
    return inside[span] && patterns.back(close(span)) > 0 && !patterns.accept(close(span));
  }

  bool waits(int64_t rule) const {
    for (int64_t span = 0; span < t.num_spans; ++span)
      if (t.waits[rule * t.num_spans + span] && half_closed(span)) return true;
    return false;
  }

  // `in` and `mode`.
  bool place(int64_t rule) const {
    const int32_t* r = rule_of(t, rule);
    if (r[kSpan] >= 0 && (inside[r[kSpan]] != 0) != (r[kInside] > 0)) return false;
    return !r[kNeedsMode] || mode_holds(rule);
  }

  // Every clause but the edges.
  bool level(int64_t rule) const {
    if (!uses(rule) || !place(rule) || numbers[columns.fired + rule] >= rule_of(t, rule)[kTimes]) return false;
    for (int32_t limit = kCount; limit < kLimits; ++limit)
      if (!in_range(rule, limit)) return false;
    return conditions_hold(rule);
  }

  // `at`, `after` and the chance.
  bool edge(int64_t rule) const {
    const int32_t* r = rule_of(t, rule);
    const bool after = r[kAfter] < 0 || (r[kHeld] >= 0 ? numbers[r[kHeld]] > 0 : patterns.accept(r[kAfter]));
    return after && in_range(rule, kAt) && chance_holds(rule);
  }

  // The sequence of a rule holds something, or the rule stops the row.
  bool writes(int64_t rule) const {
    const int32_t* r = rule_of(t, rule);
    return r[kSequence] >= 0 && (length(r[kSequence]) > 0 || r[kStop] > 0);
  }

  int32_t length(int32_t sequence) const {
    return sequence < 0 ? 0 : t.lengths[(t.lengths_per_row ? row_ * t.num_sequences : 0) + sequence];
  }

  int32_t id(int32_t sequence, int32_t index) const {
    return t.ids[(t.ids_per_row ? row_ * t.num_ids : 0) + t.sequences[3 * sequence] + index];
  }

  // Leading white-space ids of a starting force that the text of the history already ends with.
  int32_t blank(int64_t rule) const {
    int32_t most = 0;
    for (const int32_t* b = t.blanks; b < t.blanks + 3 * t.num_blanks; b += 3)
      if (b[0] == rule && patterns.accept(b[2])) most = std::max(most, b[1]);
    return most;
  }

 private:
  int32_t close(int64_t span) const { return t.spans[4 * span + 1]; }

  bool in_range(int64_t rule, int32_t limit) const {
    const int64_t line = t.limits_per_row ? row_ * t.num_rules : 0;
    const int32_t* bounds = t.limits + ((line + rule) * kLimits + limit) * 2;
    const int32_t value = measure(rule, limit);
    return value >= bounds[0] && value < bounds[1];
  }

  int32_t measure(int64_t rule, int32_t limit) const {
    const int32_t* r = rule_of(t, rule);
    const int64_t span = std::max(r[kSpan], 0);
    const bool any_span = t.num_spans > 0;
    switch (limit) {
      case kAt: return position();
      case kCount: return r[kSpan] < 0 ? position() : count(span);
      case kTotal: return any_span ? numbers[columns.total + span] + (inside[span] ? count(span) : 0) : 0;
      case kEntry: return any_span ? numbers[columns.visits + span] : 0;
      case kLeft: return max_new_tokens_ - position();
    }
    const int32_t since_ended = position() - (r[kEnded] >= 0 ? numbers[r[kEnded]] : 0);
    return std::min(any_span ? numbers[columns.since + span] : 0, since_ended);
  }

  bool mode_holds(int64_t rule) const {
    for (const int32_t* c = t.mode_clauses; c < t.mode_clauses + 3 * t.num_mode_clauses; c += 3)
      if (c[0] == rule && numbers[c[1]] == c[2]) return true;
    return false;
  }

  bool conditions_hold(int64_t rule) const {
    for (int64_t k = 0; k < t.num_conditions; ++k) {
      if (t.conditions[2 * k] != rule) continue;
      const float value = registers_[t.conditions[2 * k + 1]];
      const float low = t.condition_ranges[2 * k], high = t.condition_ranges[2 * k + 1];
      // An open end holds infinity too, and nothing holds NaN.
      if (!(value >= low && (value < high || high == INFINITY))) return false;
    }
    return true;
  }

  bool chance_holds(int64_t rule) const {
    const int32_t* r = rule_of(t, rule);
    if (r[kChance] == 0) return true;
    double chance = t.chances[2 * rule];
    if (r[kChance] == 2) {
      const double low = chance, high = t.chances[2 * rule + 1];
      chance = (double(registers_[std::max(r[kChanceRegister], 0)]) - low) / (high - low);
      chance = chance < 0 ? 0 : chance > 1 ? 1 : chance;  // NaN stays
    }
    const double u = uniforms_
                         ? uniforms_[rule]
                         : uniform(random_bits(seed_, uint32_t(position()), kPurposeRule, uint64_t(r[kStream])));
    return u < chance;
  }

  const int64_t row_;
  const float* registers_;
  const bool* uses_;
  const double* uniforms_;
  const uint64_t seed_;
  const int32_t max_new_tokens_;
};

// What this half of the step writes of a row, a copy of what it was.
class Written {
 public:
  Written(const Row& row, int32_t* numbers) : row_(row), numbers_(numbers) {
    std::memcpy(numbers, row.numbers, row.t.width * sizeof(int32_t));
    numbers_[row.t.width - 1] = 0;
  }

  void set(int32_t column, int32_t value) { numbers_[column] = value; }
  void fire(int64_t rule) { ++numbers_[row_.columns.fired + rule]; }
  void end(int64_t rule) {
    const int32_t column = rule_of(row_.t, rule)[kEnded];
    if (column >= 0) numbers_[column] = row_.position() + 1;
  }
  void run(int32_t sequence, int32_t index) {
    numbers_[kRunning] = sequence;
    numbers_[kRunningIndex] = index;
  }

  // The next id of a sequence, -1 = none, and whether the row ends after it.
  int64_t emit(int32_t sequence, int32_t index, uint8_t* ends) {
    if (sequence < 0 || index >= row_.length(sequence)) return -1;
    const int32_t owner = row_.t.sequences[3 * sequence + 1], role = row_.t.sequences[3 * sequence + 2];
    const bool over = index + 1 >= row_.length(sequence) && role != kPrefix;
    run(over ? -1 : sequence, over ? 0 : index + 1);
    if (over) end(owner);
    if (over && role == kOfForce && rule_of(row_.t, owner)[kStop] > 0) *ends = kEndsAfter;
    return row_.id(sequence, index);
  }

 private:
  const Row& row_;
  int32_t* numbers_;
};

}  // namespace adapt::steer
