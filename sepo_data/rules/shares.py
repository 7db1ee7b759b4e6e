"""How many tokens a share of them is: the one place that rounds."""

import numpy as np
import numpy.typing as npt


def tokens_in_share(ratio: npt.ArrayLike, num_tokens: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """``max(1, floor(ratio * num_tokens + 1e-9))``, whatever shapes broadcast to.

    Args:
        ratio: Share in ``(0, 1]``.
        num_tokens: How many there are, at least 1.

    Example:
        >>> tokens_in_share(0.29, [100, 2]).tolist()
        [29, 1]
    """
    shares = np.multiply(ratio, num_tokens)
    return np.asarray(np.maximum(1, np.floor(shares + 1e-9)), dtype=np.int64)  # 0.29 * 100 is 28.999…
