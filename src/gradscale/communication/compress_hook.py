"""A communication hook for DDP that sends half or 8 bits, each gradient at a scale of its own."""

# No `from __future__ import annotations`: DDP compares the hook's with the types themselves.
import math

import torch
import torch.distributed as dist
from torch import Tensor

from gradscale.formats import FloatFormat
from gradscale.policies.bits import MIN_SCALE, floor_log2, power_of_two

HALF = (torch.float16, torch.bfloat16)
EIGHT_BITS = (torch.float8_e5m2, torch.float8_e4m3fn)


class CompressGradients:
    """Sends the gradients of `DistributedDataParallel` in a narrow format; none overflows.

        ask      the largest magnitude of each gradient of a bucket, over all ranks
        divide   each gradient by a power of two, so that the sum of all ranks fits the format
        send     in the format, and add
        multiply by that power of two, divided by the number of ranks

    `fp16_compress_hook` casts the gradient as it is, multiplied by the loss scale: what lies above
    65504 / S overflows there though float32 held it, and what lies 40 octaves below is lost. Here
    each gradient has the whole range of the format, wherever its scale is. It costs one more
    message of 4 bytes a gradient. A gradient that is not finite arrives as NaN, and the step is
    skipped.

    With 8 bits each rank adds its part of the bucket in float32 and sends it on in 8 bits, since
    sums in that format would be rounded at every rank.

    Args:
        dtype: float16, bfloat16, or a float8 format.
        process_group: that of the DDP; None is the default one.

    Raises:
        ValueError: for another dtype.

    Example:
        >>> from gradscale.communication import CompressGradients
        >>> hook = CompressGradients(torch.float16)
        >>> # ddp = DistributedDataParallel(model)
        >>> # ddp.register_comm_hook(None, hook)
        >>> hook
        CompressGradients(torch.float16)
    """

    def __init__(
        self, dtype: torch.dtype = torch.float16, process_group: dist.ProcessGroup | None = None
    ) -> None:
        if dtype not in HALF + EIGHT_BITS:
            raise ValueError(
                f"`CompressGradients({dtype})` must be one of "
                f"{', '.join(map(str, HALF + EIGHT_BITS))}."
            )
        self.dtype = dtype
        self.process_group = process_group
        self._octaves = math.floor(math.log2(FloatFormat.of(dtype).max))
        # DDP reads what a hook takes and returns.
        self.__name__ = self.__qualname__ = type(self).__name__

    def __call__(
        self,
        state: object,
        bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
    ) -> torch.futures.Future[Tensor]:
        """Reduces a bucket to the mean over the ranks, in place."""
        buffer = bucket.buffer()
        ranks = dist.get_world_size(self.process_group)
        wide = buffer.float()  # the buffer itself, if it is float32
        gradients = list(wide.split([gradient.numel() for gradient in bucket.gradients()]))
        down, up = self._factors(gradients, ranks)
        torch._foreach_mul_(gradients, list(down.unbind()))  # pyright: ignore
        wide.copy_(self._sum(wide, ranks) if self.dtype in HALF else self._mean(wide, ranks))
        torch._foreach_mul_(gradients, list(up.unbind()))  # pyright: ignore
        if wide is not buffer:
            buffer.copy_(wide)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(buffer)
        return future

    def _factors(self, gradients: list[Tensor], ranks: int) -> tuple[Tensor, Tensor]:
        """What each gradient is multiplied by before and after, alike on all ranks."""
        amax = torch.stack(torch._foreach_norm(gradients, math.inf)).float()  # pyright: ignore
        # A maximum over ranks may drop a NaN; an infinity it keeps.
        amax = amax.nan_to_num(nan=math.inf, posinf=math.inf)
        dist.all_reduce(amax, op=dist.ReduceOp.MAX, group=self.process_group)
        # A mean of parts is no larger than the largest of them; a sum is, by the number of ranks.
        terms = ranks if self.dtype in HALF else 1
        room = self._octaves - 1 - math.ceil(math.log2(terms))
        octaves = floor_log2(amax.clamp(min=MIN_SCALE).nan_to_num(posinf=1.0)) - room
        octaves = octaves.clamp(-126, 126)
        down = torch.where(amax.isfinite(), power_of_two(-octaves), math.nan)
        return down, power_of_two(octaves) / terms

    def _sum(self, wide: Tensor, ranks: int) -> Tensor:
        narrow = wide.to(self.dtype)
        dist.all_reduce(narrow, group=self.process_group)
        return narrow

    def _mean(self, wide: Tensor, ranks: int) -> Tensor:
        """Each rank is sent its part of the buffer by all of them, and sends on its mean."""
        length = math.ceil(wide.numel() / ranks)
        sent = torch.zeros(length * ranks, dtype=torch.uint8, device=wide.device)
        sent[: wide.numel()] = wide.to(self.dtype).view(torch.uint8)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.process_group)
        parts = received.view(self.dtype).float().view(ranks, length)
        mean = parts.mean(0).to(self.dtype).view(torch.uint8)
        dist.all_gather_into_tensor(sent, mean, group=self.process_group)  # pyright: ignore
        return sent.view(self.dtype)[: wide.numel()]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype})"
