"""Tensors on their way from the device to the host, which the host waits for when it reads them.

Knows no answer and no loop.
"""

import torch
from torch import Tensor


class OnTheWay:
    """A tensor whose copy to the host was asked for behind the work that makes it.

    `here` waits for this copy alone; the device may be at work on later steps by then.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.copied = tensor, None
        if tensor.is_cuda:
            self.tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self.tensor.copy_(tensor, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def here(self) -> Tensor:
        """The tensor on the host. A copy that has arrived is no wait."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensor if self.tensor.device.type == "cpu" else self.tensor.cpu()
