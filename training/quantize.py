"""What the int8 graph has to know beside the weights: how large the factors of its products become."""

import torch
from torch import Tensor, nn

from training.data import Dataset
from training.model import Network
from training.scoring import score_dataset

MARGIN = 1.1  # over the largest value seen; what is larger still is cut off


def activation_ranges(network: Network, dataset: Dataset) -> dict[str, float]:
    """Return the largest absolute value of each factor of the large products, by the names of `training.graph_step`.

    Parameters
    ----------
    network : Network
    dataset : Dataset
        Pieces that it is shown, with their conditions and without.

    Returns
    -------
    dict of str to float
        "x" of what the first layer reads, "read" of what is read of the memory, "head_<field>" of each rectified head;
        with MARGIN.
    """
    largest: dict[str, float] = {}

    def note(name: str, value: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), MARGIN * value.abs().max().item())

    hidden = network.config.hidden
    handles = [network.layers[0].register_forward_pre_hook(lambda _, inputs: note("x", inputs[0]))]
    if network.config.layers > 1:
        handles.append(network.layers[1].register_forward_pre_hook(lambda _, inputs: note("read", inputs[0][..., hidden:])))
    for field, output in network.outputs.items():

        def note_head(_: nn.Module, inputs: tuple[Tensor, ...], name: str = f"head_{field}") -> None:
            note(name, inputs[0])

        handles.append(output.register_forward_pre_hook(note_head))
    try:
        with torch.no_grad():
            for with_conditions in (False, True):
                score_dataset(network, dataset, with_conditions=with_conditions)
    finally:
        for handle in handles:
            handle.remove()
    return largest
