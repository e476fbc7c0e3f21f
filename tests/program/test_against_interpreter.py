"""Random programs over random streams: every decision of steer is that of a plain interpreter, row by row."""

import random

import pytest
import torch
from interpreter import Row
from random_programs import PIECES, as_given, definition, token
from toy_tokenizer import ToyTokenizer

from adapt_kernels.ops.steer import ENDS_AFTER, ENDS_BEFORE
from adapt_kernels.program.program import Program
from adapt_kernels.program.run import ProgramRun

TOKENIZER = ToyTokenizer(PIECES, added=("<t>", "</t>"))
VOCAB, STEPS, ROWS = len(PIECES), 14, 16


def some_program(rng):
    """A random program that can be built; what is refused is drawn again."""
    while True:
        try:
            d = definition(rng)
            return d, Program.from_dict(as_given(d), TOKENIZER)
        except ValueError:
            continue


class Batch:
    """Rows of a few random programs, each with an interpreter of its own beside it."""

    def __init__(self, seed, rows=ROWS):
        rng = self.rng = random.Random(seed)
        made = [some_program(rng) for _ in range(4)]
        self.which = [rng.choice([*range(4), None]) if rng.random() < 0.1 else rng.randrange(4) for _ in range(rows)]
        self.definitions = [{"rules": []} if i is None else made[i][0] for i in self.which]
        self.programs = [None if i is None else made[i][1] for i in self.which]
        used = [program for program in self.programs if program is not None]
        self.inputs = {
            "n": [rng.choice([None, 0, 1, 2, 3]) for _ in range(rows)],
            "s": [rng.choice([None, [token(rng) for _ in range(rng.randint(1, 3))]]) for _ in range(rows)],
            "C": [rng.random() for _ in range(rows)],
        }
        self.inputs["n"] = [1 if n == 0 else n for n in self.inputs["n"]]
        self.seeds = [rng.getrandbits(63) for _ in range(rows)]
        self.prompts = [[token(rng) for _ in range(rng.randint(0, 3))] + rng.choice([[], [1]]) for _ in range(rows)]
        self.max_new = [rng.randint(6, 20) for _ in range(rows)]
        self.needed = {name for program in used for name in program.inputs}
        self.wishes = [
            [[rng.gauss(0, 1) + 2 * (i == token(rng)) for i in range(VOCAB)] for _ in range(STEPS)] for _ in range(rows)
        ]
        self.signals = [[round(rng.random(), 3) for _ in range(STEPS)] for _ in range(rows)]

    def run(self, rows=None, backend="auto"):
        """A ProgramRun over some of the rows, after their prompts."""
        rows = range(len(self.programs)) if rows is None else rows

        def take(values):
            return [values[i] for i in rows]

        programs = take(self.programs)
        needed = {name for program in programs if program is not None for name in program.inputs}
        run = ProgramRun(
            programs,
            vocab_size=VOCAB,
            max_new_tokens=torch.tensor(take(self.max_new)),
            seeds=torch.tensor(take(self.seeds)),
            inputs={name: take(self.inputs[name]) for name in needed},
            backend=backend,
        )
        run.begin(take(self.prompts))
        return run

    def interpreters(self):
        rows = []
        for i, d in enumerate(self.definitions):
            row = Row(
                d, PIECES, self.prompts[i], self.seeds[i], self.max_new[i], {n: v[i] for n, v in self.inputs.items()}
            )
            row.registers["C"] = self.inputs["C"][i] if self.programs[i] and "C" in self.programs[i].inputs else 0.0
            row.registers["C"] = float(torch.tensor(row.registers["C"]))
            rows.append(row)
        return rows


def step_of(run, slots, batch, step, committed, log):
    """One step of a ProgramRun over the batch's rows `slots`; appends to `log[row]` what it decided."""
    if committed is not None:
        run.advance(torch.tensor(committed))
    run.fill({"entropy": torch.tensor([batch.signals[i][step] for i in slots])})
    probed = answer(run, run.wanted_probes(), slots, batch, step)
    decision = run.decide()
    classes = run.compiled.tables.bias_classes.long()
    scale, bias = decision.scale[:, classes], decision.bias[:, classes]
    drawn = []
    for slot, row in enumerate(slots):
        z = torch.tensor(batch.wishes[row][step], dtype=torch.float32) * scale[slot] + bias[slot]
        gate = int(decision.gate[slot])
        if gate >= 0:
            modes = run.compiled.tables.gate_modes[run.compiled.tables.gate_modes[:, 0] == gate][:, 2].tolist()
            z = torch.tensor(batch.wishes[row][step]) if -1 in modes else torch.full((VOCAB,), float("-inf"))
            z[[m for m in modes if m >= 0]] = torch.tensor(batch.wishes[row][step])[[m for m in modes if m >= 0]]
        drawn.append(int(decision.forced[slot]) if decision.forced[slot] >= 0 else int(z.argmax()))
    drawn = torch.tensor(drawn)
    late = answer(run, run.wanted_probes(decision, drawn), slots, batch, step)
    tokens, ends, replaced = run.settle(decision, drawn)
    own = [run.compiled.first_rule[p] if p is not None else 0 for p in [o[0] if o else None for o in run._of_rows]]
    own = [own[int(r)] for r in run.slots.host]
    for slot, row in enumerate(slots):
        if not run.rows.alive[slot]:
            continue
        first = own[slot]
        acting = [i - first for i in decision.acting[slot].nonzero().flatten().tolist()]
        log[row].append(
            {
                "probed": [i - first for i in probed[slot]],
                "forced": int(decision.forced[slot]),
                "gate": int(decision.gate[slot]) - first if decision.gate[slot] >= 0 else None,
                "acting": acting,
                "sample": int(decision.sample[slot]) - first if decision.sample[slot] >= 0 else None,
                "scale": scale[slot].tolist(),
                "bias": bias[slot].tolist(),
                "drawn": int(drawn[slot]),
                "late": [i - first for i in late[slot]],
                "token": int(tokens[slot]),
                "ends": {0: "", ENDS_BEFORE: "before", ENDS_AFTER: "after"}[int(ends[slot])],
                "replaced": bool(replaced[slot]),
            }
        )
    run.end(ends > 0)
    return tokens.tolist()


def answer(run, probes, slots, batch, step):
    """Fills what probes ask for, and lists them per slot."""
    found = [[] for _ in slots]
    for index, wanted in probes:
        values = torch.tensor([probe_value(batch, row, step) for row in slots])
        run.fill({"C": values}, wanted)
        for slot in wanted.nonzero().flatten().tolist():
            found[slot].append(index)
    return found


def probe_value(batch, row, step):
    return batch.signals[row][(step * 7 + 3) % STEPS]


def expected_step(row, batch, index, step, drawn):
    """The interpreter's record of one step, given what the row drew."""
    row.registers["entropy"] = float(torch.tensor(batch.signals[index][step]))
    probed = row.probes()
    if probed:
        row.registers["C"] = float(torch.tensor(probe_value(batch, index, step)))
    what, *detail = row.decide()
    record = dict.fromkeys(("gate", "sample"))
    record |= {"probed": probed, "forced": -1, "acting": [], "late": [], "ends": "", "replaced": False, "drawn": drawn}
    record["scale"], record["bias"] = row.bias(detail[0] if what == "draw" else [])
    if what == "stop":
        return record | {"ends": "before", "token": drawn}
    if what == "write":
        token, stops = detail
        return record | {"forced": token, "token": token, "ends": "after" if stops else ""}
    record["sample"] = detail[1]
    record |= {"gate": detail[0]} if what == "gate" else {"acting": detail[0]}
    record["late"] = row.probes(drawn)
    if record["late"]:
        row.registers["C"] = float(torch.tensor(probe_value(batch, index, step)))
    token, ends, replaced = row.settle(drawn)
    return record | {"token": token, "ends": ends, "replaced": replaced}


def check(seed, backend="auto"):
    batch = Batch(seed)
    run, rows = batch.run(backend=backend), batch.interpreters()
    log = [[] for _ in rows]
    committed = None
    for step in range(STEPS):
        committed = step_of(run, range(len(rows)), batch, step, committed, log)
    for index, (row, records) in enumerate(zip(rows, log, strict=True)):
        for step, record in enumerate(records):
            expected = expected_step(row, batch, index, step, record["drawn"])
            where = (seed, index, step, batch.definitions[index], batch.prompts[index], [r["token"] for r in records])
            for key in expected:
                assert record[key] == expected[key], (key, record[key], expected[key], *where)
            if record["ends"] != "before":
                row.commit(record["token"], by_rule=record["forced"] >= 0 or record["replaced"])
    fired = run.fired()
    for index, row in enumerate(rows):
        assert fired[index].tolist()[: len(row.fired)] == row.fired, (seed, index, batch.definitions[index])
        never = [i for i, armed in enumerate(row.armed) if not armed]
        assert [int(name[6 : name.index("]")]) for name in run.never_armed()[index]] == never, (seed, index)
    assert [[tuple(visit) for visit in own] for own in visits_of(run, log)] == [row.visits() for row in rows], seed
    return batch, log


def visits_of(run, log):
    kept = [[r for r in records if r["ends"] != "before"] for records in log]
    tokens = [[r["token"] for r in records] + [0] * (STEPS - len(records)) for records in kept]
    forced = [
        [r["forced"] >= 0 or r["replaced"] for r in records] + [False] * (STEPS - len(records)) for records in kept
    ]
    return run.visits(torch.tensor(tokens), torch.tensor([len(records) for records in kept]), torch.tensor(forced))


@pytest.mark.parametrize("seed", range(12))
def test_every_decision_is_the_interpreters(seed, backend):
    check(seed, backend)


def test_the_random_programs_reach_every_kind_of_decision():
    seen = dict.fromkeys(
        ("forced", "gate", "acting", "sample", "probed", "late", "before", "after", "replaced", "rest"), 0
    )
    for seed in range(40, 48):
        for records in check(seed)[1]:
            for before, record in zip([None, *records], records, strict=False):
                seen["forced"] += record["forced"] >= 0
                seen["rest"] += bool(before) and before["replaced"] and record["forced"] >= 0
                seen["gate"] += record["gate"] is not None
                seen["sample"] += record["sample"] is not None
                for name in ("acting", "probed", "late", "replaced"):
                    seen[name] += bool(record[name])
                for name in ("before", "after"):
                    seen[name] += record["ends"] == name
    assert min(seen.values()) >= 5, seen.items()


def played(batch, rows, order=None):
    """The decisions of some rows of a batch; `order`: at each step, the rows that the slots then hold."""
    run = batch.run(rows)
    log = {row: [] for row in rows}
    committed, slots = None, list(rows)
    for step in range(STEPS):
        if order is not None:
            moved = order(step)
            run.place(torch.tensor([rows.index(row) for row in moved]))
            committed = committed and [committed[slots.index(row)] for row in moved]
            slots = moved
        committed = step_of(run, slots, batch, step, committed, log)
    return log, run


@pytest.mark.parametrize("seed", range(60, 62))
def test_a_row_decides_the_same_alone_and_in_any_slot(seed):
    batch = Batch(seed)
    rows = list(range(ROWS))
    together, whole = played(batch, rows)
    rng = random.Random(seed)
    moved, shuffled = played(batch, rows, order=lambda step: rng.sample(rows, ROWS))
    assert moved == together
    assert shuffled.fired().tolist() == whole.fired().tolist() and shuffled.never_armed() == whole.never_armed()
    for row in rng.sample(rows, 4):
        alone, run = played(batch, [row])
        assert alone[row] == together[row]
        width = run.fired().shape[1]
        assert run.fired()[0].tolist() == whole.fired()[row].tolist()[:width]


@pytest.mark.parametrize("seed", range(70, 72))
def test_a_rewound_run_decides_the_same_again(seed):
    batch = Batch(seed)
    rows = list(range(ROWS))
    straight, _ = played(batch, rows)
    rng = random.Random(seed)
    run, log = batch.run(rows), {row: [] for row in rows}
    committed = None
    for step in range(STEPS):
        before = run.snapshot()
        for draft in range(rng.randint(1, min(3, STEPS - step))):
            # Other tokens than the ones kept: a draft that is rejected.
            wrong = [rng.randrange(VOCAB) for _ in rows] if draft else committed
            step_of(run, rows, batch, step + draft, wrong, {row: [] for row in rows})
        run.rewind(before)
        committed = step_of(run, rows, batch, step, committed, log)
    assert log == straight


@pytest.mark.full
@pytest.mark.parametrize("part", range(20))
def test_every_decision_is_the_interpreters_5000_times(part):
    for seed in range(part * 16, part * 16 + 16):
        check(1000 + seed)
