"""What our step is measured against: PyTorch composing with a plain LSTM, one token after the other, one row.

Two ways to step an LSTM of our size that carries its state along, and the way of the system that we replace: a window of the last
notes, run anew for every note. Their weights are random, which costs the same as trained ones. Each counts its multiply-adds.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from training.lstm import TORCH_ORDER

WINDOW = 100  # notes
WINDOW_VOCABULARY = 300  # names of pitches and chords


class Method(Protocol):
    """A way to compose."""

    multiply_adds: int  # for each note

    def compose(self, notes: int) -> Tensor:
        """Return so many notes, drawn one after the other."""
        ...


class Plain(nn.Module):
    """Layers of nn.LSTM that read the sum of embeddings of a token's fields, and one product with the heads of all fields.

    Parameters
    ----------
    embedding, hidden, layers : int
    sizes : sequence of int
        Values of each field.
    """

    def __init__(self, embedding: int, hidden: int, layers: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.hidden, self.layers, self.sizes = hidden, layers, list(sizes)
        self.embedding = nn.Embedding(sum(sizes), embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers)
        self.heads = nn.Linear(hidden, sum(sizes))
        self.register_buffer("starts", torch.tensor([0, *sizes]).cumsum(0)[:-1], persistent=False)
        self.multiply_adds = count_weights(self.lstm) + self.heads.weight.numel()

    def draw(self, x: Tensor) -> Tensor:
        """Return a token by the LSTM's output (1, H): one value of each field, (F,)."""
        parts = self.heads(x).split(self.sizes, dim=1)
        return torch.cat([torch.multinomial(part.softmax(1), 1) for part in parts], dim=1)[0]

    def embed(self, token: Tensor) -> Tensor:
        """Return what the LSTM reads of a token, (1, E)."""
        return self.embedding(token + self.starts).sum(0, keepdim=True)


class EagerStep:
    """nn.LSTM, called once for each note."""

    def __init__(self, plain: Plain) -> None:
        self.plain, self.multiply_adds = plain, plain.multiply_adds

    @torch.inference_mode()
    def compose(self, notes: int) -> Tensor:
        """Return so many tokens."""
        plain = self.plain
        state = tuple(torch.zeros(plain.layers, 1, plain.hidden) for _ in range(2))
        token, tokens = torch.zeros_like(plain.starts), []
        for _ in range(notes):
            out, state = plain.lstm(plain.embed(token)[None], state)
            token = plain.draw(out[0])
            tokens.append(token)
        return torch.stack(tokens)


class CellStep:
    """The same network with its cell written by hand: one addmm on x and h side by side, and one sigmoid for three gates."""

    def __init__(self, plain: Plain) -> None:
        self.plain, self.multiply_adds = plain, plain.multiply_adds
        self.weights, self.biases = [], []
        for i in range(plain.layers):
            parts = [getattr(plain.lstm, f"{kind}_l{i}").detach() for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            w_x, w_h, b_x, b_h = (torch.cat([part.chunk(4)[j] for j in TORCH_ORDER]) for part in parts)
            self.weights.append(torch.cat([w_x, w_h], dim=1).T)  # a contiguous copy is no faster
            self.biases.append(b_x + b_h)

    @torch.inference_mode()
    def step(self, x: Tensor, hs: list[Tensor], cs: list[Tensor]) -> Tensor:
        """Return the last layer's output (1, H) for an input (1, E); `hs` and `cs` go on."""
        hidden = self.plain.hidden
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            gates = torch.addmm(bias, torch.cat([x, hs[i]], dim=1), weight)
            sigmoids, candidate = gates.split([3 * hidden, hidden], dim=1)
            i_gate, f_gate, o_gate = sigmoids.sigmoid().chunk(3, dim=1)
            cs[i] = f_gate * cs[i] + i_gate * candidate.tanh()
            x = hs[i] = o_gate * cs[i].tanh()
        return x

    @torch.inference_mode()
    def compose(self, notes: int) -> Tensor:
        """Return so many tokens."""
        plain = self.plain
        hs, cs = ([torch.zeros(1, plain.hidden) for _ in range(plain.layers)] for _ in range(2))
        token, tokens = torch.zeros_like(plain.starts), []
        for _ in range(notes):
            token = plain.draw(self.step(plain.embed(token), hs, cs))
            tokens.append(token)
        return torch.stack(tokens)


class WindowMethod(nn.Module):
    """The replaced system's way: the last 100 notes, a number each, through three layers, anew for every note."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 512, 3)
        self.output = nn.Linear(512, WINDOW_VOCABULARY)
        self.multiply_adds = WINDOW * count_weights(self.lstm) + self.output.weight.numel()

    @torch.inference_mode()
    def compose(self, notes: int) -> Tensor:
        """Return so many indices of the vocabulary."""
        drawn = torch.zeros(WINDOW + notes, dtype=torch.int64)
        for at in range(WINDOW, len(drawn)):
            window = drawn[at - WINDOW : at].float()[:, None, None] / WINDOW_VOCABULARY
            out, _ = self.lstm(window)
            drawn[at] = torch.multinomial(self.output(out[-1]).softmax(1), 1)
        return drawn[WINDOW:]


def count_weights(lstm: nn.LSTM) -> int:
    """Return the multiply-adds of one step of an LSTM: the entries of its matrices."""
    return sum(parameter.numel() for name, parameter in lstm.named_parameters() if name.startswith("weight"))


@torch.inference_mode()
def difference(eager: EagerStep, cell: CellStep, steps: int = 8) -> float:
    """Return how far the hand-written cell's outputs are from nn.LSTM's at most."""
    plain = eager.plain
    x = torch.randn(steps, 1, plain.lstm.input_size)
    expected, _ = plain.lstm(x)
    hs, cs = ([torch.zeros(1, plain.hidden) for _ in range(plain.layers)] for _ in range(2))
    return max((cell.step(one, hs, cs) - out).abs().max().item() for one, out in zip(x, expected, strict=True))
