// steer on the CPU: one row after another. A row looks at a rule only where the rule could matter.
#include "adapt/steer.h"

#include "steer_row.h"

namespace adapt::steer {
namespace {

bool has_unknown_token(const Tables& t, const int64_t* tokens, int64_t rows) {
  return std::any_of(tokens, tokens + rows, [&](int64_t token) { return token >= t.vocab_size; });
}

// Spans open and close by what the patterns complete; `states` of the patterns and `inside` become the new state's.
void cross_spans(const Tables& t, uint8_t* states, bool generated, uint8_t* inside, int32_t* numbers) {
  const Columns columns(t);
  const Patterns patterns{t, states};
  for (int64_t span = 0; span < t.num_spans; ++span) {
    const int32_t open = t.spans[4 * span], close = t.spans[4 * span + 1], breaks = t.spans[4 * span + 2];
    int32_t& since = numbers[columns.since + span];
    const int32_t flags = t.spans[4 * span + 3];
    since += generated ? 1 : flags & kPromptCounts;
    if (!inside[span]) {
      if (!patterns.accept(open)) continue;
      ++numbers[columns.visits + span];
      if (flags & kRestarts) states[close] = 0;
    } else {
      const bool closed = patterns.accept(close);
      if (!closed && !patterns.accept(breaks)) continue;
      numbers[columns.total + span] += std::max(since - patterns.back(closed ? close : breaks), 0);
    }
    inside[span] = !inside[span];
    since = 0;
  }
}

void hold_edges(const Tables& t, const Patterns& patterns, const uint8_t* before, const uint8_t* inside,
                int32_t* numbers) {
  for (int64_t rule = 0; rule < t.num_rules; ++rule) {
    const int32_t* r = rule_of(t, rule);
    if (r[kHeld] < 0) continue;
    int32_t& left = numbers[r[kHeld]];
    const int64_t span = std::max(r[kSpan], 0);
    if (patterns.accept(r[kAfter])) left = r[kHold];
    else if (!r[kHoldSpan]) left = std::max(left - 1, 0);
    else if (t.num_spans > 0 && before[span] != inside[span]) left = 0;
  }
}

void advance_row(const Tables& t, const AdvanceArguments& a, int64_t row) {
  const int64_t num_flags = t.num_spans + t.num_rules;
  const uint8_t* before = a.state.flags + row * num_flags;
  const Patterns old{t, a.state.patterns + row * t.num_patterns};
  uint8_t *patterns = a.patterns + row * t.num_patterns, *flags = a.flags + row * num_flags;
  int32_t* numbers = a.numbers + row * t.width;
  const int64_t token = a.tokens[row];
  std::copy(before, before + num_flags, flags);
  std::copy(a.state.numbers + row * t.width, a.state.numbers + (row + 1) * t.width, numbers);
  numbers[t.width - 1] = 0;
  if (token < 0) {
    std::copy(old.states, old.states + t.num_patterns, patterns);
    return;
  }
  for (int64_t pattern = 0; pattern < t.num_patterns; ++pattern) patterns[pattern] = old.next(int32_t(pattern), token);
  cross_spans(t, patterns, a.generated, flags, numbers);
  numbers[kPosition] += a.generated;
  hold_edges(t, Patterns{t, patterns}, before, flags, numbers);
}

void probe_row(const Row& row, const int64_t* token, int32_t* numbers, bool* wanted) {
  const Tables& t = row.t;
  Written written(row, numbers);
  for (int64_t rule = 0; rule < t.num_rules; ++rule) {
    const int32_t* r = rule_of(t, rule);
    const bool asked = r[kRuleKind] == kProbe &&
                       (token ? *token >= 0 && row.patterns.accept_next(r[kDrawn], *token)
                              : r[kDrawn] < 0 && row.numbers[kRunning] < 0);
    wanted[rule] = asked && row.level(rule) && row.edge(rule);
    if (!wanted[rule]) continue;
    written.fire(rule);
    written.end(rule);
  }
}

// The first force that starts now, -1 = none; notes since when the waiting ones are due.
int64_t starting_force(const Row& row, Written& written) {
  int64_t first = -1, started = -1;
  for (int64_t rule = 0; rule < row.t.num_rules; ++rule) {
    const int32_t* r = rule_of(row.t, rule);
    if (r[kDue] < 0) continue;
    int32_t since = row.numbers[r[kDue]];
    const bool due = row.level(rule) && (since >= 0 || row.edge(rule));
    since = !due ? -1 : since >= 0 ? since : row.position();
    const bool settled = r[kSettle] < 0 || row.patterns.accept(r[kSettle]) ||
                         row.position() >= int64_t(since) + r[kWithin];
    const bool ready = since >= 0 && settled && !row.waits(rule) && row.writes(rule);
    if (ready && first < 0 && r[kDrawn] < 0) first = rule;
    const bool starts = ready && started < 0;
    if (starts) started = rule;
    // A rule that could start and lost to an earlier one has had its edge, unless it may still settle.
    written.set(r[kDue], starts || (ready && r[kSettle] < 0) ? -1 : since);
  }
  return first;
}

int64_t first_acting(const Row& row, Kind kind) {
  for (int64_t rule = 0; rule < row.t.num_rules; ++rule)
    if (rule_of(row.t, rule)[kRuleKind] == kind && row.level(rule) && row.edge(rule)) return rule;
  return -1;
}

// Scales multiply, additions add up, in the order of the rules; then "only" and "ban".
void class_bias(const Tables& t, const bool* acting, float* scale, float* bias) {
  std::fill(scale, scale + t.num_bias_classes, 1.0f);
  std::fill(bias, bias + t.num_bias_classes, 0.0f);
  for (const bool out : {false, true}) {
    for (int64_t b = 0; b < t.num_biases; ++b) {
      const int32_t action = t.biases[2 * b + 1];
      if (!acting[t.biases[2 * b]] || out != (action == kBan || action == kOnly)) continue;
      for (int64_t each = 0; each < t.num_bias_classes; ++each) {
        if (t.bias_members[b * t.num_bias_classes + each] == (action == kOnly)) continue;
        if (action == kScale) scale[each] *= t.bias_amounts[b];
        else bias[each] = out ? -INFINITY : bias[each] + t.bias_amounts[b];
      }
    }
  }
}

// What the biases and the sample rules of a row that draws add: returns the sample rule, -1 = none.
int64_t act_on_draw(const Row& row, bool at_gate, Written& written, bool* acting) {
  for (int64_t rule = 0; !at_gate && rule < row.t.num_rules; ++rule) {
    if (rule_of(row.t, rule)[kRuleKind] != kBias || !row.level(rule) || !row.edge(rule)) continue;
    acting[rule] = true;
    written.fire(rule);
    written.end(rule);
  }
  const int64_t sample = first_acting(row, kSample);
  if (sample >= 0) {
    written.fire(sample);
    written.end(sample);
  }
  return sample;
}

struct Choice {
  int64_t forced = -1;
  uint8_t ends = 0;
  int64_t gate = -1, sample = -1;
};

// A row with no sequence running: a force, a gate, or a draw under biases and a sample rule.
Choice start_something(const Row& row, Written& written, bool* acting) {
  Choice choice;
  const int64_t force = starting_force(row, written);
  if (force >= 0) {
    written.fire(force);
    choice.forced = written.emit(rule_of(row.t, force)[kSequence], row.blank(force), &choice.ends);
    if (choice.forced < 0) choice.ends = kEndsBefore;
    return choice;
  }
  const int64_t gate = first_acting(row, kGate);
  if (gate >= 0) {
    written.fire(gate);
    written.end(gate);
    choice.forced = written.emit(rule_of(row.t, gate)[kSequence], 0, &choice.ends);
  }
  if (choice.forced >= 0) return choice;
  choice.gate = gate;
  choice.sample = act_on_draw(row, gate >= 0, written, acting);
  return choice;
}

Choice decide_row(const Row& row, Written& written, bool* acting) {
  const int32_t running = row.numbers[kRunning], index = row.numbers[kRunningIndex];
  Choice choice;
  if (!row.alive) return choice;
  if (running < 0) return start_something(row, written, acting);
  if (row.t.sequences[3 * running + 2] == kPrefix && index >= row.length(running)) {
    choice.gate = row.t.sequences[3 * running + 1];
    choice.sample = act_on_draw(row, true, written, acting);
  } else {
    choice.forced = written.emit(running, index, &choice.ends);
  }
  return choice;
}

// Notes the mode that a token opens at a gate, and starts the ids that follow it.
void record_mode(const Row& row, int64_t gate, int64_t token, Written& written) {
  const Tables& t = row.t;
  const int32_t *found = nullptr, *other = nullptr;
  for (const int32_t* m = t.gate_modes; m < t.gate_modes + 4 * t.num_gate_modes; m += 4) {
    if (m[0] != gate) continue;
    if (!found && m[2] == token) found = m;
    if (!other && m[2] == -1) other = m;
  }
  found = found ? found : other;
  written.set(rule_of(t, gate)[kMode], found ? found[1] : -1);
  written.run(found ? found[3] : -1, 0);
  written.end(gate);
}

int64_t replacing_force(const Row& row, int64_t token) {
  for (int64_t rule = 0; rule < row.t.num_rules; ++rule) {
    const int32_t* r = rule_of(row.t, rule);
    if (r[kRuleKind] == kForce && row.patterns.accept_next(r[kDrawn], std::max<int64_t>(token, 0)) &&
        row.writes(rule) && row.level(rule) && row.edge(rule))
      return rule;
  }
  return -1;
}

void settle_row(const Row& row, const SettleArguments& a, int64_t i) {
  Written written(row, a.numbers + i * row.t.width);
  a.tokens[i] = a.drawn[i];
  a.ends[i] = a.decided_ends[i];
  a.replaced[i] = false;
  if (!row.alive || a.forced[i] >= 0 || a.decided_ends[i]) return;
  const int64_t force = replacing_force(row, a.drawn[i]);
  if (force < 0) {
    if (a.gate[i] >= 0) record_mode(row, a.gate[i], a.drawn[i], written);
    return;
  }
  a.replaced[i] = true;
  written.fire(force);
  const int64_t first = written.emit(rule_of(row.t, force)[kSequence], row.blank(force), &a.ends[i]);
  if (first < 0) a.ends[i] = kEndsBefore;
  else a.tokens[i] = first;
}

}  // namespace
}  // namespace adapt::steer

using namespace adapt::steer;

extern "C" int adapt_steer_advance_cpu(const Tables* t, const AdvanceArguments* a) {
  if (has_unknown_token(*t, a->tokens, a->rows)) return 1;
  for (int64_t row = 0; row < a->rows; ++row) advance_row(*t, *a, row);
  return 0;
}

extern "C" int adapt_steer_probe_cpu(const Tables* t, const ProbeArguments* a) {
  if (a->tokens && has_unknown_token(*t, a->tokens, a->rows.count)) return 1;
  for (int64_t i = 0; i < a->rows.count; ++i)
    probe_row(Row(*t, a->state, a->rows, i), a->tokens ? a->tokens + i : nullptr, a->numbers + i * t->width,
              a->wanted + i * t->num_rules);
  return 0;
}

extern "C" int adapt_steer_decide_cpu(const Tables* t, const DecideArguments* a) {
  const int64_t num_flags = t->num_spans + t->num_rules;
  for (int64_t i = 0; i < a->rows.count; ++i) {
    const Row row(*t, a->state, a->rows, i);
    Written written(row, a->numbers + i * t->width);
    bool* acting = a->acting + i * t->num_rules;
    uint8_t* flags = a->flags + i * num_flags;
    std::fill(acting, acting + t->num_rules, false);
    const Choice choice = decide_row(row, written, acting);
    a->forced[i] = choice.forced;
    a->ends[i] = choice.ends;
    a->gate[i] = int32_t(choice.gate);
    a->sample[i] = int32_t(choice.sample);
    class_bias(*t, acting, a->scale + i * t->num_bias_classes, a->bias + i * t->num_bias_classes);
    std::copy(row.inside, row.inside + num_flags, flags);
    for (int64_t rule = 0; rule < t->num_rules; ++rule)
      flags[t->num_spans + rule] |= row.uses(rule) && row.place(rule);
  }
  return 0;
}

extern "C" int adapt_steer_settle_cpu(const Tables* t, const SettleArguments* a) {
  if (has_unknown_token(*t, a->drawn, a->rows.count)) return 1;
  for (int64_t i = 0; i < a->rows.count; ++i) settle_row(Row(*t, a->state, a->rows, i), *a, i);
  return 0;
}
