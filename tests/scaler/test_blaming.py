"""What several optimizers' steps were lost to, told together."""

import torch

from gradscale.outcomes.evidence import Blame
from gradscale.scaler.blaming import _together

YES, NO = torch.ones(()), torch.zeros(())


def test_a_bad_loss_and_what_was_left_over_are_told_apart():
    told = _together([Blame(NO, YES, None), Blame(NO, NO, None)])
    assert (told.scaling.item(), told.loss.item(), told.stale) == (0, 1, None)
    told = _together([Blame(YES, None, NO), Blame(NO, None, YES)])
    assert (told.scaling.item(), told.loss, told.stale.item()) == (1, None, 1)
