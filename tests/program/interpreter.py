"""A program read rule by rule for one row, from the text of the rule language: plain Python over the whole history."""

from pattern_definitions import Patterns

from adapt_kernels.philox_reference import PURPOSE_RULE, uniform

KINDS = ("gate", "force", "sample", "probe", "bias")
WHITE = b" \t\r\n\f\v"
FOREVER = float("inf")


class SpanState:
    def __init__(self, inside=False):
        self.inside, self.since, self.finished, self.visits, self.start, self.log = inside, 0, 0, 0, 0, []
        self.heard = 0  # the tokens before which its close does not listen to


class Row:
    """One row: `commit` tokens, `decide` a step, `settle` its draw."""

    def __init__(self, program, pieces, prompt, seed, max_new, inputs):
        self.spans, self.rules = program.get("spans", {}), program["rules"]
        self.t = Patterns(pieces)
        self.seed, self.max_new, self.inputs = seed, max_new, inputs
        self.registers = {}
        self.history, self.position = [], 0
        self.state = {name: SpanState() for name in self.spans}
        rules = range(len(self.rules))
        self.fired, self.ended, self.due = [0 for _ in rules], [0 for _ in rules], [None for _ in rules]
        self.held, self.armed, self.chosen = [0 for _ in rules], [False for _ in rules], [None for _ in rules]
        self.running = None  # (rule, ids left, what: "force", "prefix" or "suffix")
        for token in prompt:
            self.commit(token, generated=False)

    # 1. Patterns and spans advance on the last committed token.

    def commit(self, token, generated=True, by_rule=False):
        self.history.append(token)
        toggled = {name: self._advance(name, generated, by_rule) for name in self.spans}
        self.position += generated
        for i, rule in enumerate(self.rules):
            when, hold = rule.get("when", {}), rule.get("hold", 1)
            if "after" not in when:
                continue
            if hold == "span":
                self.held[i] = 0 if toggled[when["in"].lstrip("!")] else self.held[i]
            else:
                self.held[i] = max(self.held[i] - 1, 0)
            if self.t.match(when["after"], self.history)[0]:
                self.held[i] = FOREVER if hold == "span" else hold

    def _advance(self, name, generated, by_rule):
        span, own = self.spans[name], self.state[name]
        counted = generated or span.get("prompt", False)
        closed, tag, _ = self.close(name)
        broke, broken_tag, _ = self.t.match(span["breaks"], self.history) if "breaks" in span else (False, 0, 0)
        if not own.inside and span["open"] is not None and self.t.match(span["open"], self.history)[0]:
            own.heard = len(self.history) if span.get("restarts") else 0
            own.inside, own.since, own.visits, own.start = True, 0, own.visits + 1, self.position + generated
            return True
        if own.inside and (closed or broke):
            size = max(own.since + counted - (tag if closed else broken_tag), 0)
            ended_by = ("rule" if by_rule else "model") if closed else "break"
            own.finished += size
            if generated:
                own.log.append((name, own.start, own.start + size, ended_by))
            own.inside, own.since = False, 0
            return True
        own.since += counted
        return False

    def visits(self):
        open_ones = [(name, s.start, self.position, "end") for name, s in self.state.items() if s.inside]
        ended = [visit for state in self.state.values() for visit in state.log]
        return sorted(ended + open_ones, key=lambda visit: (visit[1], visit[2], visit[0]))

    def close(self, name):
        return self.t.match(self.spans[name]["close"], self.history[self.state[name].heard :])

    def half_closed(self, name):
        done, _, begun = self.close(name)
        return self.state[name].inside and not done and begun > 0

    def count(self, name):
        own = self.state[name]
        if not own.inside:
            return own.since
        done, whole, begun = self.close(name)
        return max(own.since - (whole if done else begun), 0)

    # Clauses.

    def within(self, value, wanted):
        if isinstance(wanted, int):
            wanted = [wanted, wanted + 1]
        if any(isinstance(bound, dict) and self.inputs[bound["input"]] is None for bound in wanted):
            return False  # the row does without the rule
        low, high = (self.inputs[b["input"]] if isinstance(b, dict) else b for b in wanted)
        return (low is None or value >= low) and (high is None or value < high)

    def place(self, i):
        when = self.rules[i].get("when", {})
        if "in" in when and self.state[when["in"].lstrip("!")].inside == when["in"].startswith("!"):
            return False
        if isinstance(when.get("mode"), list):
            name = when["mode"][0]
            gates = [j for j, rule in enumerate(self.rules) if name in rule.get("gate", {})]
            return any(self.chosen[j] in (name, None) for j in gates)
        return "mode" not in when or when["mode"] in self.chosen

    def level(self, i):
        when = self.rules[i].get("when", {})
        name = when.get("in", "").lstrip("!")
        if not self.place(i) or self.fired[i] >= when.get("times", FOREVER):
            return False
        checks = [self.within(self.max_new - self.position, when["left"])] if "left" in when else []
        if "count" in when:
            checks.append(self.within(self.count(name) if name else self.position, when["count"]))
        if "total" in when:
            own = self.state[name]
            checks.append(self.within(own.finished + (self.count(name) if own.inside else 0), when["total"]))
        if "entry" in when:
            checks.append(self.within(self.state[name].visits, when["entry"]))
        if "every" in when:
            every = self.inputs[when["every"]["input"]] if isinstance(when["every"], dict) else when["every"]
            passed = min(self.state[name].since, self.position - self.ended[i])
            checks.append(every is not None and passed >= every)
        for register, wanted in when.get("if", {}).items():
            value = self.registers.get(register, 0.0)
            checks.append(value == value and self.within(value, wanted))
        return all(checks)

    def edge(self, i):
        rule = self.rules[i]
        when = rule.get("when", {})
        if "at" in when and not self.within(self.position, when["at"]):
            return False
        return ("after" not in when or self.held[i] > 0) and self.lucky(i, rule.get("p"))

    def lucky(self, i, p):
        if isinstance(p, dict):
            register, low, high = p["ramp"]
            p = min(max((self.registers.get(register, 0.0) - low) / (high - low), 0), 1)
        return p is None or uniform(self.seed, self.position, PURPOSE_RULE, i) < p

    def kind(self, i):
        return next(kind for kind in KINDS if kind in self.rules[i])

    def of_kind(self, kind, drawn):
        return [
            i
            for i in range(len(self.rules))
            if self.kind(i) == kind and ("drawn" in self.rules[i].get("when", {})) == drawn
        ]

    def drawn(self, i, token):
        return self.t.match(self.rules[i]["when"]["drawn"], [*self.history, token])[0]

    def act(self, i, ended=True):
        self.fired[i] += 1
        if ended:
            self.ended[i] = self.position + 1

    # 3., 7. Probes.

    def probes(self, token=None):
        if token is None and self.running:
            return []
        found = [i for i in self.of_kind("probe", token is not None) if self.level(i) and self.edge(i)]
        found = [i for i in found if token is None or self.drawn(i, token)]
        for i in found:
            self.act(i)
        return found

    # 2., 4., 5., 6.

    def decide(self):
        """(what, detail): ("write", id), ("stop",), ("gate", rule, sample) or ("draw", acting biases, sample)."""
        self.armed = [armed or self.place(i) for i, armed in enumerate(self.armed)]
        if self.running and self.running[1]:
            return "write", self.emit(), self.stops_after
        if not self.running:
            force = self.start()
            if force is not None:
                self.act(force, ended=False)
                ids = self.trimmed(force)
                if not ids:
                    return ("stop",)
                self.running = (force, ids, "force")
                return "write", self.emit(), self.stops_after
            for i in self.of_kind("gate", False):
                if self.level(i) and self.edge(i):
                    self.act(i)
                    self.running = (i, self.gate(i)[0], "prefix")
                    if self.running[1]:
                        return "write", self.emit(), self.stops_after
                    break
        gate = self.running[0] if self.running else None
        sample = next((i for i in self.of_kind("sample", False) if self.level(i) and self.edge(i)), None)
        if sample is not None:
            self.act(sample)
        if gate is not None:
            return "gate", gate, sample
        acting = [i for i in self.of_kind("bias", False) if self.level(i) and self.edge(i)]
        for i in acting:
            self.act(i)
        return "draw", acting, sample

    def start(self):
        ready = []
        for i in self.of_kind("force", False):
            rule, when = self.rules[i], self.rules[i].get("when", {})
            guard = self.level(i) and (self.due[i] is not None or self.edge(i))
            self.due[i] = (self.position if self.due[i] is None else self.due[i]) if guard else None
            spans = [when["in"]] if "in" in when else list(self.spans)
            waits = any(self.half_closed(name) for name in spans if not name.startswith("!")) and rule.get("wait", True)
            if self.due[i] is None or waits or not (self.sequence(i) or rule.get("stop")):
                continue
            settle = rule.get("settle")
            on = settle and self.t.match(settle["on"], self.history)[0]
            if not settle or on or self.position >= self.due[i] + settle["within"]:
                ready.append(i)
        for i in ready:
            if i == ready[0] or "settle" not in self.rules[i]:
                self.due[i] = None
        return ready[0] if ready else None

    def sequence(self, i):
        given = self.rules[i]["force"]
        if isinstance(given, dict):
            return list(self.inputs[given["input"]] or [])
        return [self.t.pieces.index(t.encode()) if isinstance(t, str) else t for t in given]

    def trimmed(self, i):
        ids = self.sequence(i)
        given_by_row = isinstance(self.rules[i]["force"], dict)
        blank = next((n for n, t in enumerate(ids) if not self.t.pieces[t] or self.t.pieces[t].strip(WHITE)), len(ids))
        if blank == len(ids) or given_by_row:
            return ids
        seen = self.t.bytes(self.history)
        return ids[max(n for n in range(blank + 1) if seen.endswith(self.t.bytes(ids[:n]))) :]

    def emit(self):
        rule, ids, what = self.running
        self.running, self.stops_after = (rule, ids[1:], what), False
        if len(ids) == 1 and what != "prefix":
            self.running, self.ended[rule] = None, self.position + 1
            self.stops_after = what == "force" and self.rules[rule].get("stop", False)
        return ids[0]

    # 7. What was drawn.

    def settle(self, token):
        """(token, ends, replaced) of a row that drew."""
        gate = self.running
        for i in self.of_kind("force", True):
            able = self.sequence(i) or self.rules[i].get("stop")
            if able and self.level(i) and self.edge(i) and self.drawn(i, token):
                self.act(i, ended=False)
                self.running = None
                ids = self.trimmed(i)
                if not ids:
                    return token, "before", True
                self.running = (i, ids, "force")
                return self.emit(), "after" if self.stops_after else "", True
        if gate:
            _, modes = self.gate(gate[0])
            self.running, self.ended[gate[0]] = None, self.position + 1
            others = [name for name, ids in modes.items() if ids is None]
            name = next((n for n, ids in modes.items() if ids and ids[0] == token), *others or [None])
            self.chosen[gate[0]] = name
            if name is not None and modes[name] and modes[name][1:]:
                self.running = (gate[0], modes[name][1:], "suffix")
        return token, "", False

    def gate(self, i):
        """(common prefix, ids of each mode after it)."""
        modes = {}
        for name, given in self.rules[i]["gate"].items():
            modes[name] = given["seq"][0] if isinstance(given, dict) else given if given is None else [given]
        lists = list(modes.values())
        shared = 0
        while None not in lists and len({ids[shared] for ids in lists}) == 1:
            shared += 1
        return (lists[0] or [])[:shared], {name: ids and ids[shared:] for name, ids in modes.items()}

    def bias(self, acting):
        """(scale, shift) of every id."""
        scale, shift = [1.0] * len(self.t.pieces), [0.0] * len(self.t.pieces)
        out = set()
        for i in acting:
            ids, by = self.t.ids(self.rules[i]["bias"]), self.rules[i]["by"]
            for token in range(len(self.t.pieces)):
                if isinstance(by, dict) and token in ids:
                    scale[token] *= by["scale"]
                elif not isinstance(by, (dict, str)) and token in ids:
                    shift[token] += by
                elif (by == "ban" and token in ids) or (by == "only" and token not in ids):
                    out.add(token)
        return scale, [-FOREVER if token in out else shift[token] for token in range(len(shift))]
