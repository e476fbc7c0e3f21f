"""steer: one step of the programs of every row: what must be written, how the next token is chosen, what follows."""

import torch

from adapt_kernels.dispatch import choose
from adapt_kernels.ops.steer.arguments import check
from adapt_kernels.ops.steer.tables import (
    ENDS_AFTER,
    ENDS_BEFORE,
    FIRST_SPAN,
    POSITION,
    RUNNING,
    UNBOUNDED,
    Action,
    Decision,
    Kind,
    Limit,
    Role,
    RuleField,
    SpanFlag,
    SteerRows,
    SteerState,
    SteerTables,
    state_columns,
)

__all__ = [
    "ENDS_AFTER",
    "ENDS_BEFORE",
    "FIRST_SPAN",
    "POSITION",
    "RUNNING",
    "UNBOUNDED",
    "Action",
    "Decision",
    "Kind",
    "Limit",
    "Role",
    "RuleField",
    "SpanFlag",
    "SteerRows",
    "SteerState",
    "SteerTables",
    "advance",
    "decide",
    "probe",
    "settle",
    "state_columns",
    "step",
]


def advance(
    tables: SteerTables, state: SteerState, tokens, generated: bool = True, backend: str = "auto"
) -> SteerState:
    """The state after one more token of each row.

        for pattern: state = transitions[pattern, state, classes[token]]
        for span:    outside and open completed -> inside, a visit more; inside and close or break completed -> outside
                     tokens since the last of these count on; a finished visit leaves its tokens without its tag

    Args:
        tables: a program's tables, `adapt_kernels.program.compile_programs`.
        state: n rows; read only.
        tokens: [n] int64: the committed token, < 0 = none for that row (before the first one, and for dead rows).
        generated: False for tokens of the prompt, which count 0 and have no position.
        backend: "auto" (triton on CUDA, native on CPU, else reference), "reference", "native" or "triton": all are
            equal bit for bit. One launch per half on triton.

    Returns the new state. A pure function of the history; no randomness, no host sync. n = 0 works.

    Raises, as the other halves do, ValueError or TypeError naming the argument, what was given and what is allowed;
    IndexError for a token outside the vocabulary, where the backend runs on the CPU; RuntimeError if an explicit
    backend cannot run.
    """
    check(tables, state, tokens=tokens)
    return choose("steer", backend, state.numbers).advance(tables, state, tokens, generated)


def probe(
    tables: SteerTables, state: SteerState, rows: SteerRows, uniforms=None, tokens=None, backend: str = "auto"
) -> tuple[SteerState, torch.Tensor]:
    """(state, wanted [n, R] bool): the probes that hold here, to be run before `decide`; counts their firings.

    tokens: None for probes without `drawn`; else [n] int64, what each row drew (< 0 = nothing), for those with it, to
    be run before `settle`. Other arguments as in `decide`.
    """
    check(tables, state, rows, tokens, uniforms)
    return choose("steer", backend, state.numbers).probe(tables, state, rows, uniforms, tokens)


def decide(
    tables: SteerTables, state: SteerState, rows: SteerRows, uniforms=None, backend: str = "auto"
) -> tuple[SteerState, Decision]:
    """What each row's next token is to be: the first half of a step, before the draw.

        running sequence -> its next id
        else the first force whose guard holds starts, without leading white space that the text already ends with
        else the first gate that holds, or all biases that hold; and the first sample rule that holds

    A guard is every clause of `when` and the firing draw u < p. A force waits while the close of its span is half
    matched, and with `settle` for the token it settles on; while it waits its edges count as true.

    Args:
        tables: a program's tables.
        state: n rows after the last committed token; read only. Signals of this step are in its registers.
        rows: seeds, limits and the rules that each row uses.
        uniforms: [n, R] float64 in place of the firing draws, or None: uniform(seed, position, PURPOSE_RULE, rule).
        backend: as in `advance`.

    Returns (state, Decision). Rows that are not alive keep their state. Randomness: the firing draws alone, by row
    seed, position and the rule's place in its program, so they are the same in any batch and after a rewind. No host
    sync. n = 0 works.
    """
    check(tables, state, rows, uniforms=uniforms)
    return choose("steer", backend, state.numbers).decide(tables, state, rows, uniforms)


def step(
    tables: SteerTables, state: SteerState, rows: SteerRows, tokens, uniforms=None, backend: str = "auto"
) -> tuple[SteerState, Decision]:
    """`decide` of the state after `advance(tokens)`, bit for bit: all that lies between one draw and the next.

    For steps in which nobody looks at the state in between: one launch on triton instead of two. tokens: [n] int64,
    generated ones, < 0 = none for that row, alive or not. Other arguments as in the halves.

    Returns (state, Decision) as `decide` does, randomness and errors as theirs. No host sync. n = 0 works.
    """
    check(tables, state, rows, tokens, uniforms)
    return choose("steer", backend, state.numbers).step(tables, state, rows, tokens, uniforms)


def settle(
    tables: SteerTables,
    state: SteerState,
    rows: SteerRows,
    decision: Decision,
    tokens,
    uniforms=None,
    backend: str = "auto",
) -> tuple[SteerState, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(state, tokens [n], ends [n], replaced [n] bool): the second half of a step, after the draw.

        where a row drew: the first force whose `drawn` completes with its token and whose guard holds takes its place
        where it drew at a gate and kept its token: the mode is noted, and the ids that follow it start

    tokens: [n] int64, what each row drew, or `decision.forced`. Other arguments as in `decide`. The tokens returned are
    to be committed by `advance` at the next step; ends as in Decision.
    """
    check(tables, state, rows, tokens, uniforms, (decision.forced, decision.ends, decision.gate))
    return choose("steer", backend, state.numbers).settle(tables, state, rows, decision, tokens, uniforms)
