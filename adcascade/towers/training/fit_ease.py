"""Neighbours of ads from what users met: a linear model of each ad by all others, in closed form.

EASE (Steck, arXiv 1905.03375), with the strongest entries of each row alone (as Steck, arXiv 1911.08858, shows to lose
little).
"""

import numpy as np
from scipy.sparse import csr_matrix

from adcascade.records.users import EventType
from adcascade.towers.item_to_item import ItemToItem
from adcascade.towers.model import EVENT_TYPES
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.sequences import Sequences


def fit_ease(sequences: Sequences, ad_ids: list[str], options: TowerOptions) -> ItemToItem | None:
    """Neighbours of the `options.neighbour_ads` ads that most users met; None if the option is 0.

    Takes memory for three dense matrices of these ads by these ads, float64.
    """
    if not options.neighbour_ads:
        return None
    met = _met(sequences, len(ad_ids), options.impression_weight)
    users_of = np.asarray((met > 0).sum(axis=0)).ravel()
    ads = np.sort(np.argsort(-users_of, kind="stable")[: options.neighbour_ads])
    ads = ads[users_of[ads] > 0]
    met = met[:, ads]
    inverse = np.linalg.inv((met.T @ met).toarray() + options.neighbour_penalty * np.eye(len(ads)))
    strengths = inverse / -np.diag(inverse)
    np.fill_diagonal(strengths, 0)
    kept = min(options.neighbours, len(ads))
    columns = np.argpartition(-np.abs(strengths), kept - 1, axis=1)[:, :kept]
    rows = np.repeat(np.arange(len(ads)), kept)
    values = np.take_along_axis(strengths, columns, axis=1).ravel().astype(np.float32)
    sparse = csr_matrix((values, (rows, columns.ravel())), strengths.shape)
    return ItemToItem([ad_ids[ad] for ad in ads.tolist()], sparse, options.impression_weight)


def neighbour_scores(neighbours: ItemToItem, sequences: Sequences, ad_ids: list[str]) -> csr_matrix:
    """What all that users met speaks for each ad, float32 [users + 1, ads]; the last row is of nobody."""
    met = _met(sequences, len(ad_ids), neighbours.impression_weight)
    return (met @ neighbours.over(ad_ids)).tocsr()


def _met(sequences: Sequences, ads: int, impression_weight: float) -> csr_matrix:
    """Which ads each user met, float32 [users + 1, ads]; the best of several events counts."""
    users = np.repeat(np.arange(len(sequences.users)), np.diff(sequences.start))
    shape = (len(sequences.users) + 1, ads)
    clicked = sequences.types != EVENT_TYPES.index(EventType.IMPRESSION)
    clicks = _marks(users[clicked], sequences.ads[clicked], shape)
    impressions = _marks(users[~clicked], sequences.ads[~clicked], shape)
    return clicks.maximum(impressions * impression_weight).astype(np.float32)


def _marks(users: np.ndarray, ads: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    marks = csr_matrix((np.ones(len(users), np.float32), (users, ads)), shape)
    marks.data[:] = 1.0
    return marks
