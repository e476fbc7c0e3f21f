"""TRL's order of prompts, shuffled anew for each epoch from the epoch's number."""

from collections.abc import Callable

from trl.trainer.utils import RepeatSampler

from adapt_kernels.philox import row_seed


class EpochSampler(RepeatSampler):
    """`RepeatSampler` whose shuffle depends on the seed and the epoch alone (in epoch 0 it is TRL's own).

    TRL's goes on drawing from one generator, so a run resumed in a later epoch would see the first one's order again.
    """

    def __init__(self, *args, epoch: Callable[[], int], **kwargs):
        super().__init__(*args, **kwargs)
        self.epoch = epoch

    def __iter__(self):
        if self.shuffle:
            self.generator.manual_seed(row_seed(self.seed, self.epoch()) % 2**63)
        yield from super().__iter__()
