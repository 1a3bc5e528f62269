"""One LSTM layer over a sequence, fast on CPU and CUDA alike.

On a CPU, PyTorch's own LSTM runs its matrix products in float32 and saves many intermediate tensors. Here the loop is written
out, forward and backward: products in bfloat16 where the processor has instructions for it, the cell in float32, the gradient
of the weights in one product at the end. On CUDA the layer is cuDNN's.

Shape letters: T steps, B rows, E input width, H hidden width. Arrays are time-major. Gates stand in the order
input, forget, output, candidate, so that one sigmoid does the first three.
"""

from typing import Any

import torch
from torch import Tensor, nn

CUDNN_ORDER = (0, 1, 3, 2)  # where torch.nn.LSTM's gates (input, forget, candidate, output) stand in ours


class LSTMLayer(nn.Module):
    """An LSTM layer (Hochreiter and Schmidhuber 1997, with forget gates).

    Parameters
    ----------
    inputs, hidden : int
        E and H.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
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
            Type of the factors of matrix products on the CPU.

        Returns
        -------
        outputs : Tensor, shape (T, B, H)
        h, c : Tensor, shape (B, H)
            The state after, float32.
        """
        if x.is_cuda:
            return self._cudnn(x.to(product), h, c)
        projected = nn.functional.linear(x.to(product), self.weight_x.to(product)).float() + self.bias
        outputs, h, c = _Recurrence.apply(projected, self.weight_h, h, c, product)  # type: ignore[no-untyped-call]
        return outputs, h, c

    def _cudnn(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def ordered(weight: Tensor) -> Tensor:
            return torch.cat([weight.chunk(4)[i] for i in CUDNN_ORDER])

        weights = [ordered(self.weight_x), ordered(self.weight_h), ordered(self.bias), torch.zeros_like(self.bias)]
        state = (h[None].to(x.dtype), c[None].to(x.dtype))
        weights = [w.to(x.dtype) for w in weights]
        outputs, h, c = torch._VF.lstm(x, state, weights, True, 1, 0.0, self.training, False, False)
        return outputs.float(), h[0].float(), c[0].float()


class _Recurrence(torch.autograd.Function):
    """The recurrent part, given the inputs' share of the gates."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, h: Tensor, c: Tensor, product: torch.dtype) -> Any:
        steps, rows, _ = projected.shape
        hidden = h.shape[1]
        weight_t = weight.t().to(product).contiguous()
        gates = torch.empty_like(projected)
        hs = torch.empty(steps + 1, rows, hidden, dtype=product)
        cells = torch.empty(steps + 1, rows, hidden)
        tanhs = torch.empty(steps, rows, hidden)
        outputs = torch.empty(steps, rows, hidden)
        hs[0], cells[0] = h, c
        for t in range(steps):
            gate = gates[t]
            torch.add(projected[t], hs[t] @ weight_t, out=gate)
            sigmoids, candidate = gate[:, : 3 * hidden], gate[:, 3 * hidden :]
            sigmoids.sigmoid_()
            candidate.tanh_()
            i, f, o = sigmoids[:, :hidden], sigmoids[:, hidden : 2 * hidden], sigmoids[:, 2 * hidden :]
            torch.mul(f, cells[t], out=cells[t + 1])
            cells[t + 1].addcmul_(i, candidate)
            torch.tanh(cells[t + 1], out=tanhs[t])
            torch.mul(o, tanhs[t], out=outputs[t])
            hs[t + 1] = outputs[t]
        ctx.save_for_backward(weight, gates, hs, cells, tanhs)
        ctx.product = product
        return outputs, outputs[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        d_outputs, d_h, d_c = grads
        weight, gates, hs, cells, tanhs = ctx.saved_tensors
        steps, rows, hidden = tanhs.shape
        product = ctx.product
        weight_p = weight.to(product)
        d_gates = torch.empty(gates.shape)
        d_gates_p = torch.empty(gates.shape, dtype=product)
        d_h, d_c = d_h.clone(), d_c.clone()
        # Slopes of the activations for all steps at once; in the loop each is one product.
        slopes = gates.clone()
        sigmoids = slopes[..., : 3 * hidden]
        sigmoids.addcmul_(sigmoids, sigmoids, value=-1)
        candidate = slopes[..., 3 * hidden :]
        candidate.mul_(candidate).neg_().add_(1)
        through = gates[..., 2 * hidden : 3 * hidden] * (1 - tanhs * tanhs)
        for t in reversed(range(steps)):
            d_h += d_outputs[t]
            d_c.addcmul_(d_h, through[t])
            gate, d_gate = gates[t], d_gates[t]
            torch.mul(d_c, gate[:, 3 * hidden :], out=d_gate[:, :hidden])
            torch.mul(d_c, cells[t], out=d_gate[:, hidden : 2 * hidden])
            torch.mul(d_h, tanhs[t], out=d_gate[:, 2 * hidden : 3 * hidden])
            torch.mul(d_c, gate[:, :hidden], out=d_gate[:, 3 * hidden :])
            d_gate.mul_(slopes[t])
            d_gates_p[t] = d_gate
            d_h = (d_gates_p[t] @ weight_p).float()
            d_c.mul_(gate[:, hidden : 2 * hidden])
        d_weight = (d_gates_p.reshape(steps * rows, -1).t() @ hs[:-1].reshape(steps * rows, hidden)).float()
        return d_gates, d_weight, d_h, d_c, None
