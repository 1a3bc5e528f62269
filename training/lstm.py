"""One LSTM layer over a sequence: PyTorch's kernels (oneDNN on a CPU, cuDNN on CUDA) with weights in our order of gates.

The gates stand in the order input, forget, output, candidate, so that one sigmoid does the first three in the exported graph.
With bfloat16 products the kernels are some three times as fast as with float32 on a processor with instructions for them
(`python -m bench.lstm`).

Shape letters: T steps, B rows, E input width, H hidden width. Arrays are time-major.
"""

import torch
from torch import Tensor, nn

TORCH_ORDER = (0, 1, 3, 2)  # where torch.nn.LSTM's gates (input, forget, candidate, output) stand in ours


class LSTMLayer(nn.Module):
    """An LSTM layer (Hochreiter and Schmidhuber 1997, with forget gates).

    Parameters
    ----------
    inputs, hidden : int
        E and H.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight_x = nn.Parameter(torch.empty(4 * hidden, inputs).uniform_(-bound, bound))
        self.weight_h = nn.Parameter(torch.empty(4 * hidden, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        with torch.no_grad():
            self.bias[hidden : 2 * hidden] = 1.0  # remember at first (Jozefowicz et al. 2015)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, product: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """Run over a sequence.

        Parameters
        ----------
        x : Tensor, shape (T, B, E)
        h, c : Tensor, shape (B, H)
            The state before.
        product : torch.dtype
            Type of the factors of matrix products; sums are float32.

        Returns
        -------
        outputs : Tensor, shape (T, B, H)
        h, c : Tensor, shape (B, H)
            The state after. All are float32.
        """
        weights = [torch.cat([w.chunk(4)[i] for i in TORCH_ORDER]) for w in (self.weight_x, self.weight_h, self.bias)]
        weights.append(torch.zeros_like(self.bias))  # torch's second bias
        tensors = [tensor.to(product) for tensor in (x, h[None], c[None], *weights)]
        x, h, c, *weights = tensors
        with torch.autocast(x.device.type, enabled=False):
            outputs, h, c = torch._VF.lstm(x, (h, c), weights, True, 1, 0.0, self.training, False, False)
        return outputs.float(), h[0].float(), c[0].float()
