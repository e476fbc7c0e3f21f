"""How a `generate` call is run: one frozen `Plan`. A change of mind is another one, which says why."""

from dataclasses import dataclass, replace

FULL, SAMPLE_ONLY, ORIGINAL, UNDECIDED = "full", "sample_only", "original", "undecided"
ROWS, SHARED = "rows", "shared"


@dataclass(frozen=True)
class Plan:
    """name: "full" (our prefill, batch and cache), "sample_only" (Hugging Face's cache and batch, our sampler),
    "original" (Hugging Face untouched), or "undecided" while the call's settings are not merged; reason: why no faster
    one, "" under "full".

    layout: where prompts' KV lies under plan "full": "shared", once per prompt, while nothing speaks against it, or
    "rows", in every row, with its layout_reason. no_append: why positions cannot be appended to the rows and taken back
    again, "" where they can, or nobody needs it.
    """

    name: str = UNDECIDED
    reason: str = ""
    layout: str = SHARED
    layout_reason: str = ""
    no_append: str = ""

    @property
    def undecided(self) -> bool:
        return self.name == UNDECIDED

    @property
    def original(self) -> bool:
        return self.name == ORIGINAL

    @property
    def full(self) -> bool:
        return self.name == FULL

    def begun(self) -> "Plan":
        """The fastest one, until something speaks against it."""
        return replace(self, name=FULL)

    def left_to_huggingface(self, reason: str) -> "Plan":
        return replace(self, name=ORIGINAL, reason=reason)

    def keeping_the_batch(self, reason: str) -> "Plan":
        return replace(self, name=SAMPLE_ONLY, reason=reason)

    def without_appending(self, reason: str) -> "Plan":
        return replace(self, no_append=reason)

    def with_rows(self, reason: str) -> "Plan":
        """Every row holds its prompt."""
        return replace(self, layout=ROWS, layout_reason=reason)
