"""What users of a log say of themselves. Knows no models."""

from typing import TYPE_CHECKING

import numpy as np

from adcascade.records.clicks import Integers

if TYPE_CHECKING:
    from ranking.data.dataset import Dataset


def stated_interests(data: "Dataset") -> tuple[list[str], Integers]:
    """Each text that a user states once, and which of them the user of each row states, -1 for none, int64 [rows]."""
    people = data.log.user_id.compact()
    said = [data.users[user].interests.strip() if user in data.users else "" for user in people.names.to_pylist()]
    texts = list(dict.fromkeys(text for text in said if text))
    number = {text: place for place, text in enumerate(texts)}
    of_user = np.array([*(number.get(text, -1) for text in said), -1], np.int64)  # the last one for rows of nobody
    return texts, of_user[people.codes]
