"""A training's state on disk, so that it goes on as if it had never stopped.

One safetensors file: networks, Adam's moments and random state as tensors, the rest as JSON in the header. What is
drawn from the library is not kept: the seed draws it again.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hotdask.emulator.weights import write_whole
from hotdask.errors import EmulatorError

_FORMAT = "hotdask-checkpoint-1"


def write_checkpoint(path: str | Path, tensors: dict[str, torch.Tensor], state: dict, identity: dict) -> None:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    path : path
    tensors : dict of str to tensor
    state : dict
        JSON values.
    identity : dict
        What the training is made of; JSON values. Only the same training may go on from it.
    """
    header = json.dumps({"format": _FORMAT, "identity": identity, "state": state}, sort_keys=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(kept, metadata={"hotdask": header}))


def read_checkpoint(path: str | Path, identity: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and state of a checkpoint.

    Raises
    ------
    EmulatorError
        If the file cannot be read, is no checkpoint, or belongs to another training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["hotdask"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        found, state = header["identity"], header["state"]
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']!r}")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise EmulatorError(f"{path}: not a checkpoint of a training ({error}); remove it to begin again") from error
    # As JSON, because tuples come back as lists.
    wanted = json.loads(json.dumps(identity))
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        raise EmulatorError(
            f"{path}: the checkpoint is of another training ({', '.join(differing)} differ); "
            "give the settings it began with, or another --checkpoint"
        )
    return tensors, state
