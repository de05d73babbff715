"""What users of a log say of themselves. Knows no models."""

from typing import TYPE_CHECKING

import numpy as np

from adcascade.records.clicks import Integers
from adcascade.records.coded import CodedColumn
from adcascade.records.users_by_id import who_tell

if TYPE_CHECKING:
    from ranking.data.dataset import Dataset


def stated_interests(data: "Dataset", users: CodedColumn) -> tuple[list[str], Integers]:
    """Each text that a user states, once, and which of them each user states.

    Args:
        users: of the rows of the log, without names that no row has.

    Returns:
        The texts, and the number of one of them for each name of `users`, -1 for none, and at the end -1 for rows of
        nobody, int64 [users + 1].
    """
    said = {one.user_id: text for one in who_tell(data.users).values() if (text := one.interests.strip())}
    telling = sorted(zip(users.codes_of_names(list(said)).tolist(), said.values(), strict=True))
    telling = [(user, text) for user, text in telling if user >= 0]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(text for _, text in telling))}
    stated = np.full(len(users.names) + 1, -1)
    for user, text in telling:
        stated[user] = numbers[text]
    return list(numbers), stated
