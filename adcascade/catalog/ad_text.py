"""What an index version reads of an ad."""

from collections.abc import Iterable

from adcascade.records.ads import Ad


def embedding_text(ad: Ad) -> str:
    """The text of an ad that its vector is made from, and whose words are searched."""
    return joined_text(ad.title, ad.body, ad.keywords, ad.category, ad.advertiser)


def joined_text(title: str, body: str, keywords: Iterable[str], category: str, advertiser: str) -> str:
    """`embedding_text` of an ad with these fields."""
    parts = [part.strip() for part in (title, body, ", ".join(keywords), category, advertiser)]
    return ". ".join(filter(None, parts))
