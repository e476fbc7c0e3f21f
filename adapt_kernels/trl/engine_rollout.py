"""Rollouts through the vLLM engine that TRL keeps in this process (`use_vllm=True, vllm_mode="colocate"`)."""

import torch

from adapt_kernels.modes import Modes
from adapt_kernels.ops.mode_sample import selected_modes
from adapt_kernels.program.program import Program
from adapt_kernels.serving.control import RowControl
from adapt_kernels.serving.lane import Row
from adapt_kernels.serving.refusals import check_served
from adapt_kernels.serving.served import Served
from adapt_kernels.serving.settings import parse
from adapt_kernels.serving.writing import noted_draws
from adapt_kernels.trl.rollout import Rollout

_ELSEWHERE = (
    "use_vllm: the engine runs in a process of its own, which would not tell the log-probs of modes: set"
    " VLLM_ENABLE_V1_MULTIPROCESSING=0 before vLLM is imported"
)


def check_engine_rollouts(args) -> None:
    """Raises ValueError, naming the argument, for what rollouts through vLLM would not do as asked."""
    if args.vllm_mode != "colocate":
        raise ValueError(
            f"vllm_mode={args.vllm_mode!r}: modes and their log-probs of single rows need the engine in this process:"
            " set vllm_mode='colocate'"
        )
    if args.vllm_tensor_parallel_size != 1:
        raise ValueError("vllm_tensor_parallel_size must be 1: rows of several ranks would need one seed each of them")
    for name in ("paths", "vllm_enable_sleep_mode"):
        if getattr(args, name):
            raise ValueError(f"{name} is not kept by rollouts through vLLM: leave it out, or use_vllm=False")
    reshaping = {"top_p": (1.0, None), "top_k": (0, -1, None), "min_p": (0.0, None)}
    given = {name: getattr(args, name) for name, off in reshaping.items() if getattr(args, name) not in off}
    given |= args.generation_kwargs or {}
    if given:
        name, value = next(iter(given.items()))
        raise ValueError(
            f"{name}={value!r}: rollouts through vLLM are drawn from the policy itself, or the importance ratio is off"
            " by the mass that is left out (trl #6789): leave it out"
        )


def served_here(modes: Modes, steering: dict) -> Served:
    """The modes and the program of a trainer, told to the engine of this process. Raises ValueError, ImportError."""
    from adapt_kernels.vllm.model import serve_here

    program: Program | None = steering["program"]
    if program is not None:
        check_served(program)
    served = Served(modes, {} if program is None else {"rollout": program})
    assert served.gate_modes
    if steering["thinking_budget"] is not None:
        assert served.budget
    serve_here(served)
    return served


def engine_rollout(trainer, prompt_ids, arguments: dict):
    """(tokens, log-probs, Rollout) of the rows `prompt_ids`, in order; arguments: as of the patched `generate`.

    The engine has the policy's weights of this step. Log-probs are its own, tempered; that of a mode token is of the
    whole vocabulary, as the policy's.
    """
    if trainer.state.global_step != trainer._last_loaded_step:
        trainer.vllm_generation.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step
    place = trainer._served, trainer.args, prompt_ids, arguments, trainer.accelerator.device
    return _rollout(trainer.vllm_generation.llm, *place)


def _rollout(engine, served: Served, args, prompt_ids, arguments: dict, device):
    from adapt_kernels.vllm.model import sampling_params

    seeds = arguments["seed"].tolist()
    shared = {}
    if arguments["program"] is not None:
        shared["program"] = "rollout"
    if arguments["thinking_budget"] is not None:
        shared["thinking_budget"] = arguments["thinking_budget"]
    settings = [
        {"mode": mode, "adapt_seed": seed, **shared} for mode, seed in zip(arguments["mode"], seeds, strict=True)
    ]
    own = {"temperature": args.temperature, "max_tokens": args.max_completion_length, "logprobs": 0}
    asked = [sampling_params(each, **own) for each in settings]
    with noted_draws() as draws:
        outs = engine.generate([{"prompt_token_ids": list(ids)} for ids in prompt_ids], asked, use_tqdm=False)
    tokens = [list(out.outputs[0].token_ids) for out in outs]
    logprobs = [
        [step[token].logprob for step, token in zip(out.outputs[0].logprobs, ids, strict=True)]
        for out, ids in zip(outs, tokens, strict=True)
    ]
    found = {seed: (logprob, probs) for each in draws for seed, logprob, probs in each.rows()}
    if not set(seeds) <= set(found):
        raise RuntimeError(_ELSEWHERE)
    modes = served.gate_modes
    gate = len(modes.prefix)
    decided = torch.tensor([ids[gate] for ids in tokens])
    vocab = engine.llm_engine.model_config.get_vocab_size()
    rollout = Rollout(
        selected_modes(decided, modes.token_ids, vocab).long().to(device),
        torch.tensor([found[seed][1] for seed in seeds], dtype=torch.float32, device=device),
        torch.tensor([found[seed][0] for seed in seeds], dtype=torch.float32, device=device),
        torch.tensor([len(ids) for ids in tokens], device=device),
        _written(served, settings, prompt_ids, tokens, args, vocab).to(device) if shared else None,
    )
    return tokens, logprobs, rollout


def _written(served: Served, settings, prompt_ids, tokens, args, vocab: int) -> torch.Tensor:
    """[B, T] bool: tokens that rules wrote, told by going through them once more."""
    control, width = RowControl(served, vocab, torch.device("cpu")), max(map(len, tokens))
    rows = []
    for asked, prompt, ids in zip(settings, prompt_ids, tokens, strict=True):
        own = parse(asked, served)
        row = Row(own, prompt, ids, asked["adapt_seed"], args.temperature, args.max_completion_length)
        written = control.lane(own).written(row)
        rows.append(written + [False] * (width - len(ids)))
    return torch.tensor(rows)
