"""Calibration of class probabilities: are classes foretold with 80 per cent seen in 80 of 100 rows?"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError

_ROUNDING = 1e-4  # how far probabilities may be from a sum of one


class Reliability(NamedTuple):
    """Bins of confidence, as :func:`reliability` gives them.

    Attributes:
        confidence: Mean confidence of every bin; NaN where it is empty.
        accuracy: Share of its rows that are classified rightly, likewise.
        rows: How many it has.

    Example:
        >>> import torch
        >>> found = reliability(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([[0.0], [1.0]]), bins=1)
        >>> round(found.confidence.item(), 2), found.accuracy.item(), found.rows.item()
        (0.85, 0.5, 2)
    """

    confidence: Tensor
    accuracy: Tensor
    rows: Tensor


def reliability(probabilities: Tensor, Y: Tensor, *, bins: int = 15, binning: str = "width") -> Reliability:
    r"""Confidence against accuracy, the points of a reliability diagram.

    The confidence of a row is the probability of its likeliest class, :math:`c_i = \max_k p_{ik}`, and it is accurate
    where that class is the outcome (Guo, Pleiss, Sun and Weinberger 2017, arXiv 1706.04599). Bins hold

    - ``"width"``: confidences in :math:`(\frac{b-1}{B}, \frac{b}{B}]`;
    - ``"mass"``: as many rows as each other, but for ties, which share a bin, so that the order of rows is of no
      account (Nguyen and O'Connor 2015, arXiv 1508.05154). The mean of its rows' ranks says which.

    Args:
        probabilities: ``n x K``, one column a class; or ``n x 1``, the probability of class 1 of the classes 0 and 1.
        Y: Classes 0, ..., K - 1, ``n`` or ``n x 1``, integers or whole numbers.
        bins: Number B of bins.
        binning: ``"width"`` or ``"mass"``.

    Returns:
        Mean confidence, accuracy and number of rows of every bin, ``B`` each, in the order of confidence.

    Raises:
        ShapeError: Shapes that do not match, or no row.
        NonFiniteError: NaN or infinity in the probabilities.
        DomainError: Probabilities that are negative or do not sum to one, outcomes that are no class, or a setting out
            of its range.

    Example:
        >>> import torch
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> reliability(p, torch.tensor([0, 1, 1]), bins=2).rows.tolist()
        [0, 3]
    """
    where = "reliability"
    p, classes = _checked(where, probabilities, Y)
    B = validation.positive_int(where, "bins", bins)
    validation.choice(where, "binning", binning, ("width", "mass"))
    confidence, likeliest = p.max(-1)
    hit = (likeliest == classes).double()
    if binning == "width":
        edges = torch.arange(1, B, dtype=torch.double, device=p.device) / B
        index = torch.bucketize(confidence, edges)
    else:
        ordered = confidence.sort().values
        below, upto = (torch.searchsorted(ordered, confidence, right=right) for right in (False, True))
        index = (below + upto) * B // (2 * len(p))  # the mean rank of the tie, counted from a half
    count, total, hits = (
        torch.zeros(B, dtype=torch.double, device=p.device).index_add_(0, index, x)
        for x in (torch.ones_like(hit), confidence, hit)
    )
    return Reliability(total / count, hits / count, count.long())


def calibration_error(probabilities: Tensor, Y: Tensor, *, bins: int = 15, binning: str = "width") -> Tensor:
    r"""Expected calibration error (ECE): how far confidence and accuracy are apart, in the mean.

    With the bins of :func:`reliability`, :math:`n_b` rows in each,

    .. math:: \text{ECE} = \sum_{b=1}^{B} \frac{n_b}{n}\, |\text{accuracy}_b - \text{confidence}_b|

    (Naeini, Cooper and Hauskrecht 2015, AAAI, for the probability of one class; Guo et al. 2017, arXiv 1706.04599, for
    that of the likeliest, which is what this takes).

    It is no proper score: to foretell the frequencies of the classes everywhere is perfectly calibrated, so read it
    beside the log likelihood. It is also biased upwards, more so with more bins: of n rows of a perfectly calibrated
    forecast it is about :math:`\sum_b \sqrt{2 n_b v_b / \pi} / n`, where :math:`v_b` is the mean of c (1 - c) over the
    bin.

    Args:
        probabilities: ``n x K``, one column a class; or ``n x 1``, the probability of class 1 of the classes 0 and 1.
        Y: Classes 0, ..., K - 1, ``n`` or ``n x 1``, integers or whole numbers.
        bins: Number B of bins.
        binning: ``"width"`` or ``"mass"``, as in :func:`reliability`.

    Returns:
        One number from 0 to 1, in double precision.

    Raises:
        ShapeError, NonFiniteError, DomainError: As :func:`reliability` does.

    Example:
        >>> import torch
        >>> p = torch.tensor([[0.75], [0.75], [0.75], [0.75]])
        >>> calibration_error(p, torch.tensor([1, 1, 1, 0])).item()
        0.0
    """
    confidence, accuracy, rows = reliability(probabilities, Y, bins=bins, binning=binning)
    used = rows > 0
    return (rows[used] * (accuracy - confidence)[used].abs()).sum() / rows.sum()


def _checked(where: str, probabilities: Any, Y: Any) -> tuple[Tensor, Tensor]:
    """Probabilities ``n x K`` in double precision, K >= 2, and the classes."""
    validation.tensor(where, "probabilities", probabilities)
    if probabilities.ndim != 2 or not probabilities.numel():
        raise ShapeError(f"{where}: probabilities must have shape (n, K), n >= 1, got {tuple(probabilities.shape)}")
    p = probabilities.double()
    # Not of the dtype alone: what was computed in single precision may have been converted since.
    slack = max(_ROUNDING, torch.finfo(probabilities.dtype).eps ** 0.5)
    if p.shape[-1] == 1:
        p = torch.cat([1 - p, p], -1)
    if (p < -slack).any() or ((p.sum(-1) - 1).abs() > slack).any():
        bad = ((p < -slack).any(-1) | ((p.sum(-1) - 1).abs() > slack)).nonzero()[0].item()
        raise DomainError(
            f"{where}: every row of probabilities must be at least 0 and sum to 1, got {probabilities[bad].tolist()} "
            f"in row {bad}; give probabilities, not logits"
        )
    n, K = p.shape
    if not torch.is_tensor(Y) or Y.shape not in ((n,), (n, 1)):
        got = tuple(Y.shape) if torch.is_tensor(Y) else f"a {type(Y).__name__}"
        raise ShapeError(f"{where}: Y must have shape ({n},) or ({n}, 1) to match the probabilities, got {got}")
    classes = Y.reshape(n)
    bad_classes = (classes < 0) | (classes >= K)
    if classes.is_floating_point():
        bad_classes |= classes != classes.round()
    if bad_classes.any():
        raise DomainError(
            f"{where}: every entry of Y must be a class from 0 to {K - 1}, got {classes[bad_classes][0].item():g}"
        )
    return p, classes.long().to(p.device)
