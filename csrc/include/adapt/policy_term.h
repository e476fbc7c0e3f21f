// The loss of one row as a function of its log-prob and entropy, with its slopes: scalars only, for host and device.
// adapt_kernels/ops/policy_loss/terms.py is the same in torch.
#pragma once
#include <cmath>
#include <cstdint>

#include "adapt/rows.h"

enum LossKind : int8_t { kNone = 0, kPpo = 1, kCispo = 2, kReinforce = 3 };

constexpr double kMaxLogRatio = 20.0;

struct PolicySettings {
  double clip_low, clip_high;
  double dual_clip;  // inf = off
  double kl_coef, entropy_coef;
};

struct PolicyRow {
  double old_logprob, advantage, weight;
  LossKind kind;
  bool has_reference;
  double ref_logprob;
};

struct PolicyTerm {
  double loss, logprob_slope, entropy_slope, ratio;
  bool clipped;
};

// NaN stays NaN.
ADAPT_BOTH inline double clamp_to(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

// On an edge the gradient still flows.
ADAPT_BOTH inline void add_ppo(double advantage, double log_ratio, const PolicySettings& s, PolicyTerm* term) {
  const double plain = -advantage * term->ratio;
  const double limited = -advantage * clamp_to(term->ratio, 1 - s.clip_low, 1 + s.clip_high);
  double loss = limited > plain ? limited : plain;
  term->clipped = limited > plain;
  if (advantage < 0 && loss > -advantage * s.dual_clip) {
    loss = -advantage * s.dual_clip;
    term->clipped = true;
  }
  term->loss += loss;
  if (!term->clipped && !(fabs(log_ratio) > kMaxLogRatio)) term->logprob_slope += plain;
}

// A weight of 0 contributes exactly nothing, and so does an advantage of 0, whatever the log-prob.
ADAPT_BOTH inline PolicyTerm policy_term(double logprob, double entropy, const PolicyRow& row,
                                         const PolicySettings& s) {
  const double log_ratio = logprob - row.old_logprob;
  PolicyTerm term{0, 0, 0, exp(clamp_to(log_ratio, -kMaxLogRatio, kMaxLogRatio)), false};
  if (row.advantage == 0 || row.kind == kNone) {
  } else if (row.kind == kPpo) {
    add_ppo(row.advantage, log_ratio, s, &term);
  } else {
    const double bounded = clamp_to(term.ratio, 1 - s.clip_low, 1 + s.clip_high);
    const double score = row.kind == kCispo ? bounded * row.advantage : row.advantage;
    term.loss = -score * logprob;
    term.logprob_slope = -score;
    term.clipped = row.kind == kCispo && bounded != term.ratio;
  }
  if (row.has_reference) {
    const double gap = row.ref_logprob - logprob;
    const double d = clamp_to(gap, -kMaxLogRatio, kMaxLogRatio);
    term.loss += s.kl_coef * (expm1(d) - d);
    if (!(fabs(gap) > kMaxLogRatio)) term.logprob_slope -= s.kl_coef * expm1(d);
  }
  if (s.entropy_coef != 0) {
    term.loss -= s.entropy_coef * entropy;
    term.entropy_slope = -s.entropy_coef;
  }
  const bool counts = row.weight != 0;
  term.loss = counts ? row.weight * term.loss : 0;
  term.logprob_slope = counts ? row.weight * term.logprob_slope : 0;
  term.entropy_slope = counts ? row.weight * term.entropy_slope : 0;
  return term;
}
