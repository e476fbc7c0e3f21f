"""TRL's order of prompts, shuffled anew for each epoch from the epoch's number."""

from collections.abc import Callable

from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler

from adapt_kernels.philox import row_seed


class EpochSampler(Sampler):
    """TRL's sampler with a shuffle that depends on its seed and the epoch alone (in epoch 0 it is TRL's own).

    TRL's goes on drawing from one generator, so a run resumed in a later epoch would see the first one's order again.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        self.sampler, self.epoch = sampler, epoch

    def __iter__(self):
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(row_seed(self.sampler.seed, self.epoch()) % 2**63)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)
