"""Dataset columns that the trainer writes or reads itself."""

from collections.abc import Iterator, Mapping

from adapt_kernels.schemes import SIGNALS
from adapt_kernels.trl.config import ADaPTConfig
from adapt_kernels.trl.signals import Source


def check_columns(args: ADaPTConfig, sources: dict[str, Source], train_dataset=None, eval_dataset=None) -> None:
    """Raises ValueError for a column that the trainer would write over, or one that the scheme needs and is not there.

    sources: of the scheme's signals. eval_dataset may hold several by name. Of a stream that does not know its columns
    the first example is read.
    """
    for name, dataset in _named(train_dataset, eval_dataset):
        columns = _columns(dataset)
        if columns is None:
            continue
        if "mode" in columns:
            raise ValueError(
                f"{name} has a column 'mode', which ADaPTTrainer gives to the reward functions itself, as each"
                " completion's mode: rename it with dataset.rename_column('mode', ...)"
            )
        for signal, source in sources.items():
            if source.kind == "column" and source.name not in columns:
                what = SIGNALS.get(signal, "1 for a row without a mode")
                raise ValueError(
                    f"scheme {args.scheme!r} needs {signal}, {what}, in a dataset column {source.name!r}, or from a"
                    f" reward function of that name, or one that signals={{{signal!r}: ...}} names; {name} has"
                    f" {', '.join(columns) or 'none'}"
                )


def _named(train_dataset, eval_dataset) -> Iterator[tuple]:
    yield "train_dataset", train_dataset
    if isinstance(eval_dataset, Mapping):
        for name, dataset in eval_dataset.items():
            yield f"eval_dataset[{name!r}]", dataset
    else:
        yield "eval_dataset", eval_dataset


def _columns(dataset) -> list[str] | None:
    if dataset is None:
        return None
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        first = next(iter(dataset), None)
        return None if first is None else list(first)
    return list(columns)
