"""Which of the ads of a request are clicked, as a conditional logit (McFadden 1974). Plain functions of arrays.

P(click is on i | request) = n_i exp(w x_i) / sum over k of the request of n_k exp(w x_k), n impressions, w at least 0.
What all ads of a request share (the user's mood, the place on the page) falls out.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from adcascade.records.clicks import Integers

Floats = npt.NDArray[np.float64]

_ALIKE = 1e-9


@dataclass(frozen=True)
class Choices:
    """Rows of requests, those of one request together.

    Attributes:
        inputs: what may speak for an ad, float64 [rows, inputs].
        clicks, impressions: int64 [rows].
        start: first row of each request, int64 [requests].
    """

    inputs: Floats
    clicks: Integers
    impressions: Integers
    start: Integers

    def log_likelihood(self, weights: Floats) -> Floats:
        """Of the clicks of each request, float64 [requests]."""
        return self._with_slope(weights)[0]

    def fit(self, inputs: Integers) -> Floats:
        """Weights of the highest likelihood, float64 [inputs], none negative; 0 for all but the given inputs."""
        scale = np.zeros(self.inputs.shape[1])
        deviation = (self.inputs - self._spread(self._mean())).std(axis=0)
        # What is alike within every request says nothing; what rounding leaves of it must not be blown up.
        differs = inputs[deviation[inputs] > _ALIKE * (1 + np.abs(self.inputs[:, inputs]).max(axis=0))]
        scale[differs] = 1 / deviation[differs]

        def loss(scaled: Floats) -> tuple[float, Floats]:
            value, slope = self._with_slope(scaled * scale)
            return -float(value.sum()) / len(self.start), -slope * scale / len(self.start)

        found = minimize(loss, np.zeros(len(scale)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(scale))
        weights: Floats = found.x * scale
        return weights

    def _with_slope(self, weights: Floats) -> tuple[Floats, Floats]:
        """Log-likelihood of each request, and the slope of their sum, float64 [inputs]."""
        utility = self.inputs @ weights
        utility = utility - self._spread(np.maximum.reduceat(utility, self.start))
        mass = self.impressions * np.exp(utility)
        total, clicks = np.add.reduceat(mass, self.start), np.add.reduceat(self.clicks, self.start)
        likelihood = np.add.reduceat(self.clicks * utility, self.start) - clicks * np.log(total)
        expected = mass * self._spread(clicks / total)
        return likelihood, (self.clicks - expected) @ self.inputs

    def _mean(self) -> Floats:
        """Of the inputs of each request, float64 [requests, inputs]."""
        mean: Floats = np.add.reduceat(self.inputs, self.start) / self._rows[:, None]
        return mean

    @property
    def _rows(self) -> Integers:
        return np.diff(np.append(self.start, len(self.clicks)))

    def _spread(self, of_requests: Floats) -> Floats:
        """A value of each request to each of its rows."""
        return np.repeat(of_requests, self._rows, axis=0)
