"""What `paths` cannot be given together with, refused before anything is computed."""

from adapt_kernels.hf.compat import CACHE_NAMES
from adapt_kernels.program.paths import Paths
from adapt_kernels.program.request import ModeRequest


def check_paths(paths: Paths, model, config, arguments: dict, request: ModeRequest) -> None:
    """Raises ValueError that names what to leave out. config: the merged GenerationConfig; arguments: by name."""
    if config.pad_token_id is None and config.eos_token_id is None:
        raise ValueError("paths needs a pad token for rows that end early: pass pad_token_id=...")
    if config.return_dict_in_generate and config.output_attentions:
        raise ValueError("paths lets rows leave, and output_attentions shows what every row computes: leave one out")
    given = [name for name in CACHE_NAMES if arguments.get(name) is not None]
    if given:
        raise ValueError(
            f"paths lets rows leave, and {given[0]} belongs to the caller, with a row for each: leave one out"
        )
    if paths.score == "random" and request.rng == "hf":
        raise ValueError("paths: score='random' draws from a stream of each row, which rng='hf' has not: leave one out")
    check = getattr(paths.score, "check_model", None)
    if check is not None:
        check(model)
