// The C ABI of steer. The contract is in adapt_kernels/ops/steer/__init__.py; names, shapes and dtypes are those of
// tables.py there, and so is the order of every enumeration.
#pragma once
#include <cstdint>

namespace adapt::steer {

enum Kind : int32_t { kGate, kForce, kSample, kProbe, kBias };
enum Role : int32_t { kOfForce, kPrefix, kSuffix };
enum SpanFlag : int32_t { kPromptCounts = 1, kRestarts = 2 };
enum Action : int32_t { kAdd, kScale, kBan, kOnly };
enum Limit : int32_t { kAt, kCount, kTotal, kEntry, kLeft, kEvery, kLimits };
enum RuleField : int32_t {
  kRuleKind, kSpan, kInside, kAfter, kDrawn, kSettle, kWithin, kTimes, kHold, kHoldSpan, kChance, kChanceRegister,
  kNeedsMode, kSequence, kStop, kDue, kHeld, kEnded, kMode, kStream, kRuleFields
};
enum Column : int32_t { kPosition, kRunning, kRunningIndex, kFirstSpan };
enum Ends : uint8_t { kEndsBefore = 1, kEndsAfter = 2 };

struct Tables {
  const int16_t* classes;
  const uint8_t* transitions;
  const bool* accept;
  const uint8_t* back;
  const int32_t* spans;
  const int32_t* rules;
  const int32_t* limits;
  const double* chances;
  const bool* waits;
  const int32_t* conditions;
  const float* condition_ranges;
  const int32_t* mode_clauses;
  const int32_t* blanks;
  const int32_t* sequences;
  const int32_t* lengths;
  const int32_t* ids;
  const int32_t* gate_modes;
  const int32_t* biases;
  const float* bias_amounts;
  const bool* bias_members;

  int64_t vocab_size;
  int64_t num_patterns, num_states, num_classes;
  int64_t num_spans, num_rules, num_conditions, num_mode_clauses, num_blanks, num_sequences, num_ids, num_gate_modes;
  int64_t num_biases, num_bias_classes;
  bool limits_per_row, lengths_per_row, ids_per_row;
  int64_t width;      // columns of `numbers`
  int64_t registers;  // columns of `registers`
};

struct State {
  const uint8_t* patterns;
  const uint8_t* flags;
  const int32_t* numbers;
  const float* registers;
};

struct Rows {
  int64_t count;
  const int64_t* seeds;
  const int32_t* max_new_tokens;
  const bool* uses;
  const bool* alive;
  const double* uniforms;  // [count, R] in place of the firing draws, or null
};

struct AdvanceArguments {
  State state;
  int64_t rows;
  const int64_t* tokens;
  bool generated;
  uint8_t* patterns;  // the new state's
  uint8_t* flags;
  int32_t* numbers;
};

struct ProbeArguments {
  State state;
  Rows rows;
  const int64_t* tokens;  // null: the probes without `drawn`
  int32_t* numbers;
  bool* wanted;  // [rows, R]
};

struct DecideArguments {
  State state;
  Rows rows;
  uint8_t* flags;
  int32_t* numbers;
  int64_t* forced;
  uint8_t* ends;
  int32_t* gate;
  float* scale;
  float* bias;
  int32_t* sample;
  bool* acting;
};

struct SettleArguments {
  State state;
  Rows rows;
  const int64_t* forced;  // of the decision, as are the next two
  const uint8_t* decided_ends;
  const int32_t* gate;
  const int64_t* drawn;
  int32_t* numbers;
  int64_t* tokens;
  uint8_t* ends;
  bool* replaced;
};

}  // namespace adapt::steer

// Each returns 0, or 1 for a token that is not below the vocabulary; `decide` reads none.
extern "C" int adapt_steer_advance_cpu(const adapt::steer::Tables*, const adapt::steer::AdvanceArguments*);
extern "C" int adapt_steer_probe_cpu(const adapt::steer::Tables*, const adapt::steer::ProbeArguments*);
extern "C" int adapt_steer_decide_cpu(const adapt::steer::Tables*, const adapt::steer::DecideArguments*);
extern "C" int adapt_steer_settle_cpu(const adapt::steer::Tables*, const adapt::steer::SettleArguments*);
