"""Programs on a real language model: what they do to the length of SmolLM2's thoughts.

    python benchmarks/smollm2_programs.py

answers twenty questions greedily under each program (some ten minutes on one core) and writes
benchmarks/results/smollm2_programs.json. SmolLM2-135M-Instruct was not trained to think: an example in the chat shows
it "First" and then "Answer", and these words open and close the thought.
"""

import json
from pathlib import Path
from statistics import mean

import torch
from transformers import set_seed

import adapt_kernels as ak
from adapt_recipes.models import load
from adapt_recipes.smollm2 import fetch

RESULTS = Path(__file__).resolve().parent / "results" / "smollm2_programs.json"
THINK = ak.Span({"word": ["first"]}, {"word": ["answer"]})
PROMPTS = (
    "What is 7 + 5?",
    "What is 12 + 9?",
    "What is 15 - 6?",
    "What is 8 times 4?",
    "What is 36 divided by 6?",
    "What is 25 + 17?",
    "What is 50 - 23?",
    "What is 9 times 7?",
    "What is 14 + 28?",
    "What is 100 - 45?",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
    "A box holds 6 pens. How many pens are in 5 boxes?",
    "Anna had 20 dollars and spent 8. How much is left?",
    "There are 4 rows of 7 chairs. How many chairs are there?",
    "A train travels 60 miles in one hour. How far does it travel in 3 hours?",
    "Ben reads 12 pages a day. How many pages does he read in 5 days?",
    "There are 30 students in 5 equal groups. How many are in each group?",
    "A pizza has 8 slices and 3 are eaten. How many slices remain?",
    "A book costs 9 dollars. How much do 6 books cost?",
    "Sara has 15 marbles and gives 7 away. How many marbles does she have?",
)
EXAMPLE = [
    {"role": "system", "content": "Think step by step, then give the answer."},
    {"role": "user", "content": "Lea has 5 pens. She buys 4 boxes of 3 pens. How many pens does she have?"},
    {
        "role": "assistant",
        "content": "First, we count the pens in the boxes. 4 boxes of 3 pens are 4 * 3 = 12 pens. Then we add the 5"
        " pens that she had. So she has 12 + 5 = 17 pens.\nAnswer: 17",
    },
]
# What the thoughts are made of here; published lists are of words that this model never writes.
WORDS = ("then", "so", "now", "therefore")
STOP_BIASES = (-6.0, -3.0, 3.0, 6.0, 9.0)
BUDGETS = (24, 12, 6)
CAP = 96


def programs(tokenizer) -> dict[str, ak.Program | None]:
    """By label; None: no program acts, spans are only reported."""
    found = {"none": ak.Program.preset("stop_bias", tokenizer, by=0.0, think=THINK)}
    for by in STOP_BIASES:
        found[f"stop_bias, by={by:+g}"] = ak.Program.preset("stop_bias", tokenizer, by=by, think=THINK)
    found[f"nowait, words={', '.join(WORDS)}"] = ak.Program.preset("nowait", tokenizer, words=WORDS, think=THINK)
    for tokens in BUDGETS:
        given = {"tokens": tokens, "soft": 0.0, "closing": "\nAnswer", "think": THINK}
        found[f"budget, tokens={tokens}"] = ak.Program.preset("budget", tokenizer, **given)
    return found


def measured(model, tokenizer, program) -> dict[str, float]:
    """Means over the questions: tokens of the thought, of the reply, banned words in a thought, ends by rule."""
    texts = [
        tokenizer.apply_chat_template(
            [*EXAMPLE, {"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        + "First"
        for prompt in PROMPTS
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    out = model.generate(
        **inputs, program=program, max_new_tokens=CAP, do_sample=False, return_dict_in_generate=True,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    first = [next(span for span in row if span[0] == "think") for row in out.spans]
    thoughts = [tokenizer.decode(row[start:end]).lower() for row, (_, start, end, _) in zip(new, first, strict=True)]
    count = len(PROMPTS)
    return {
        "thought_tokens": mean(end - start for _, start, end, _ in first),
        "longest_thought": max(end - start for _, start, end, _ in first),
        "reply_tokens": mean((row != tokenizer.pad_token_id).sum().item() for row in new),
        "words": sum(text.count(f" {word} ") for text in thoughts for word in WORDS) / count,
        "closed_by_model": sum(by == "model" for *_, by in first) / count,
        "closed_by_rule": sum(by == "rule" for *_, by in first) / count,
    }


def main() -> None:
    """Measure every program and write the results; see the module."""
    set_seed(0)
    torch.set_num_threads(1)
    model, tokenizer = load(fetch())
    tokenizer.padding_side = "left"
    ak.patch(model, ak.Modes.from_tokenizer(tokenizer, fast="The", slow="First"))
    found = {}
    for label, program in programs(tokenizer).items():
        found[label] = measured(model, tokenizer, program)
        print(label, {name: round(value, 2) for name, value in found[label].items()}, flush=True)
    RESULTS.write_text(json.dumps({"prompts": len(PROMPTS), "cap": CAP, "programs": found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
