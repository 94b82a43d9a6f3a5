"""Equations of eleven labels, one small system for each spectrum.

LAPACK rounds by where in memory a matrix begins. Padded to 16 x 16, with ones on the diagonal, all begin alike, and a
spectrum's result does not depend on its company.
"""

import torch

from hotdask.labels import N_LABELS

_ALIGN = 16


def factor(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cholesky factors (m, 16, 16) of (m, 11, 11), and (m,) 0 where there is one."""
    wide = torch.nn.functional.pad(matrix, (0, _ALIGN - N_LABELS, 0, _ALIGN - N_LABELS))
    wide.diagonal(dim1=1, dim2=2)[:, N_LABELS:] = 1
    return torch.linalg.cholesky_ex(wide)


def solve(root: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solutions (m, 11, k) for right sides (m, 11, k) and factors from `factor`."""
    wide = torch.nn.functional.pad(
        right, (0, -right.shape[2] % _ALIGN if right.shape[2] > 1 else 0, 0, _ALIGN - N_LABELS)
    )
    return torch.cholesky_solve(wide, root)[:, :N_LABELS, : right.shape[2]]


def invert(matrix: torch.Tensor) -> torch.Tensor:
    """Inverses of positive definite matrices (m, 11, 11); NaN where one is not."""
    root, failed = factor(matrix)
    unit = torch.eye(N_LABELS, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    return torch.where((failed == 0)[:, None, None], solve(root, unit), float("nan"))
